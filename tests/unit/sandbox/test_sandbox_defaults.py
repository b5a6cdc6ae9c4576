"""The defaults every container gets, and device nodes as plans."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ketch_wire.faults import EngineFailure
from ketch_wire.launch import MountPlan
from ketchd.sandbox import defaults, devices


def mounts(**given: object) -> dict[str, MountPlan]:
    settings = {
        "privileged": False, "shm_size": 1 << 20, "ipc_mode": "private", "cgroup_version": 2, "shm_source": "",
        **given,
    }  # fmt: skip
    return {plan.target: plan for plan in defaults.default_mounts(**settings)}  # type: ignore[arg-type]


def test_capability_mask_is_dockers() -> None:
    """CapEff of a default container: a80425fb."""
    mask = sum(1 << defaults.ALL_CAPABILITIES.index(name) for name in defaults.DEFAULT_CAPABILITIES)
    assert mask == 0xA80425FB
    assert len(defaults.ALL_CAPABILITIES) == 41


def test_order_and_options() -> None:
    """/dev before what lies on it; nothing is writable that should not be."""
    plans = mounts()
    assert list(plans) == ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm"]
    assert "ro" in plans["/sys"].options and "ro" in plans["/sys/fs/cgroup"].options
    assert "size=1048576" in plans["/dev/shm"].options
    assert "rw" in mounts(privileged=True)["/sys"].options


def test_shm_follows_the_ipc_mode() -> None:
    """none: no mount; host and container: bound."""
    assert "/dev/shm" not in mounts(ipc_mode="none")
    assert mounts(ipc_mode="host")["/dev/shm"].source == "/dev/shm"
    assert (
        mounts(ipc_mode="container:x", shm_source="/proc/7/root/dev/shm")["/dev/shm"].source
        == "/proc/7/root/dev/shm"
    )


def test_cgroup_version_1_binds_each_hierarchy() -> None:
    """With the links that programs look for, and closed at last."""
    join = ("/sys/fs/cgroup/cpu,cpuacct/docker/ID", "/sys/fs/cgroup/memory/docker/ID")
    plans = defaults.default_mounts(
        privileged=False, shm_size=1, ipc_mode="private", cgroup_version=1, shm_source="", cgroup_join=join
    )
    shown = [
        (plan.target, plan.type, plan.source) for plan in plans if plan.target.startswith("/sys/fs/cgroup")
    ]
    assert shown == [
        ("/sys/fs/cgroup", "tmpfs", "tmpfs"),
        ("/sys/fs/cgroup/cpu,cpuacct", "bind", join[0]),
        ("/sys/fs/cgroup/memory", "bind", join[1]),
        ("/sys/fs/cgroup/cpu", "symlink", "cpu,cpuacct"),
        ("/sys/fs/cgroup/cpuacct", "symlink", "cpu,cpuacct"),
        ("/sys/fs/cgroup", "remount", ""),
    ]
    assert "/sys/fs/cgroup" not in mounts(cgroup_version=1)


def test_host_devices() -> None:
    """A node, a link to one, a directory of them."""
    node = devices.host_devices("/dev/null", "/dev/nothing")[0]
    assert (node.path, node.kind, node.major, node.minor) == ("/dev/nothing", "c", 1, 3)
    names = {plan.path for plan in devices.all_host_devices()}
    assert "/dev/null" in names and not any(name.startswith(("/dev/pts/", "/dev/shm/")) for name in names)


def test_links_are_followed(tmp_path: Path) -> None:
    """`/dev/disk/by-id/x` means what it points to."""
    os.symlink("/dev/zero", tmp_path / "link")
    assert devices.host_devices(str(tmp_path / "link"), "/dev/x")[0].minor == 5


@pytest.mark.parametrize("path", ["/dev/nowhere", "/etc/passwd", "/dev/nul\0l", ""])
def test_no_device(path: str) -> None:
    """dockerd's words."""
    with pytest.raises(EngineFailure, match="error gathering device information while adding custom device"):
        devices.host_devices(path, "/dev/x")
