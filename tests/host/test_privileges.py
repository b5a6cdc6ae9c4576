"""What a container may touch on a host that refuses us nothing: devices by BPF, all capabilities, limits above our own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ketch_testing.clients import Client
from ketch_testing.service import Service

REFUSED = "Operation not permitted"


@pytest.fixture
def disk() -> tuple[str, int, int]:
    """(path, major, minor) of a whole disk of the host. It is only ever opened for reading here."""
    for name in sorted(os.listdir("/sys/block")):
        path = f"/dev/{name}"
        if name.startswith(("vd", "sd", "nvme", "xvd")) and os.path.exists(path):
            number = os.stat(path).st_rdev
            assert stat.S_ISBLK(os.stat(path).st_mode)
            return path, os.major(number), os.minor(number)
    pytest.skip("this needs a disk (vd*, sd*, nvme*, xvd*)")


def test_only_devices_that_were_asked_for(ketch: Client, disk: tuple[str, int, int]) -> None:
    """A node can be made of any device; only what --device or a rule names can be opened, and only as it says."""
    path, major, minor = disk
    look = f"head -c 512 {path} | wc -c"
    assert ketch.inside("--device", path, script=look) == "512"
    assert ketch.inside("--device", f"{path}:/dev/mine:r", script="head -c 512 /dev/mine | wc -c") == "512"
    node = f"busybox mknod /dev/mine b {major} {minor} && "
    assert REFUSED in ketch.inside(script=f"{node} head -c 512 /dev/mine 2>&1 | cat")
    rule = f"b {major}:{minor} r"
    assert ketch.inside("--device-cgroup-rule", rule, script=f"{node} head -c 512 /dev/mine | wc -c") == "512"
    # Opened for writing, never written to.
    assert REFUSED in ketch.inside("--device-cgroup-rule", rule, script=f"{node} (: >>/dev/mine) 2>&1 | cat")
    assert REFUSED in ketch.inside("--device", f"{path}:/dev/mine:r", script="(: >>/dev/mine) 2>&1 | cat")
    usual = "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo $d; done; head -c 4 /dev/urandom | wc -c"
    assert ketch.inside(script=usual) == "4"


def test_rules_hold_for_exec_and_after_a_restart(
    service: Service, ketch: Client, disk: tuple[str, int, int]
) -> None:
    """The policy is the cgroup's, not the process's."""
    _, major, minor = disk
    ketch("run", "-d", "--name", "one", "busybox", "sleep", "3600")
    look = f"[ -e /dev/mine ] || busybox mknod /dev/mine b {major} {minor}; head -c 1 /dev/mine 2>&1 | cat"
    assert REFUSED in ketch("exec", "one", "sh", "-c", look)
    service.systemctl_and_wait("restart", "ketchd")
    assert REFUSED in ketch("exec", "one", "sh", "-c", look)


def test_privileged_has_everything(service: Service, ketch: Client, disk: tuple[str, int, int]) -> None:
    """Each capability of the kernel, every device, no seccomp, a writable /sys."""
    status = Path(f"/proc/{service.pid}/status").read_text()
    everything = next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:"))
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert int(everything, 16) == (1 << (last + 1)) - 1
    got = ketch.inside(
        "--privileged",
        script="grep -E '^(CapEff|Seccomp):' /proc/self/status; head -c 512 " + disk[0] + " | wc -c",
    )
    assert got.split() == ["CapEff:", everything, "Seccomp:", "0", "512"]
    ketch.inside("--privileged", "--tmpfs", "/t", script="mount -t tmpfs none /tmp && touch /sys/fs/cgroup")
    assert "CapEff:\t00000000a80425fb" in ketch.inside(script="grep CapEff /proc/self/status")


def test_ulimits_above_the_daemons_own(ketch: Client) -> None:
    """CAP_SYS_RESOURCE is there: hard limits may be raised beyond what ketchd itself has."""
    got = ketch.inside(
        "--ulimit", "memlock=-1:-1", "--ulimit", "nofile=4096:8192", "--ulimit", "rtprio=20:30", "--ulimit", "nproc=5000",
        script="grep -E 'locked|open files|realtime priority|processes' /proc/self/limits",
    )  # fmt: skip
    rows = {line[:26].strip(): line[26:].split()[:2] for line in got.splitlines()}
    assert rows == {
        "Max locked memory": ["unlimited", "unlimited"], "Max open files": ["4096", "8192"],
        "Max realtime priority": ["20", "30"], "Max processes": ["5000", "5000"],
    }  # fmt: skip
    assert ketch.inside("--oom-score-adj", "-700", script="cat /proc/self/oom_score_adj") == "-700"
