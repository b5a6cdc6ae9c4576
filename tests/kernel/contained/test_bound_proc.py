"""A procfs of the host as a container's /proc, and what would only look like one or lie in it. CVEs as in test_hostile_images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketch_testing.contained import Contained, layer, replaced_by_link
from ketch_wire.launch import MountPlan
from ketchd.containers.shims import LaunchFailed
from ketchd.kernel import mounts
from ketchd.sandbox import defaults


@pytest.fixture
def procfs(box: Contained) -> Iterator[Path]:
    """A procfs of the host beside its own."""
    place = box.base / "procfs"
    place.mkdir()
    mounts.mount("proc", str(place), "proc")
    try:
        yield place
    finally:
        mounts.umount(str(place), mounts.MNT_DETACH)


def with_proc(
    box: Contained, source: Path, *more: MountPlan, propagation: str = "rprivate"
) -> tuple[MountPlan, ...]:
    """Docker's mounts, with a bind of `source` as /proc in the place of a new procfs."""
    others = [one for one in box.mounts() if one.target != "/proc"]
    return (*others, MountPlan("/proc", "bind", str(source), ("rbind", propagation)), *more)


async def test_cve_2025_52881_sysctls_go_to_our_own_procfs(box: Contained, procfs: Path) -> None:
    """/proc is one of the host's, where something lies over the sysctl: that stays, and the network has its setting."""
    decoy = procfs / "sys/net/ipv4/ip_unprivileged_port_start"
    mounts.mount("decoy", str(procfs / "sys/net"), "tmpfs")
    try:
        decoy.parent.mkdir()
        decoy.write_text("untouched")
        plan = box.plan(
            "sh", "-c", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; mount -t proc own /tmp; cat /tmp/$0; umount /tmp",
            "sys/net/ipv4/ip_unprivileged_port_start", mounts=with_proc(box, procfs), seccomp=b"",
            sysctls={"net.ipv4.ip_unprivileged_port_start": "7"}, capabilities=defaults.ALL_CAPABILITIES,
        )  # fmt: skip
        assert await box.end(await box.start(plan)) is not None
        assert box.logged(plan) == "untouched7\n"
        assert decoy.read_text() == "untouched"
    finally:
        mounts.umount(str(procfs / "sys/net"), mounts.MNT_DETACH)


async def test_cve_2019_16884_a_bound_proc_is_masked(box: Contained, procfs: Path) -> None:
    """A whole procfs may be /proc; what is hidden and read-only in a new one is in that one, too."""
    code, output = await box.run(
        "sh", "-c", "echo x > /proc/sys/kernel/core_pattern; stat -c %t:%T /proc/keys; cat /proc/self/comm",
        mounts=with_proc(box, procfs),
    )  # fmt: skip

    assert (code, output.count("Read-only file system")) == (0, 1)
    assert output.endswith("1:3\ncat\n")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("fake", "not of type proc"), ("fake/self", "not of type proc"), ("procfs/1", "not the root of a procfs"),
        ("procfs/sys", "not the root of a procfs"), ("procfs/version", "not the root of a procfs"),
    ],
)  # fmt: skip
async def test_cve_2019_16884_proc_must_be_a_procfs(
    box: Contained, procfs: Path, source: str, why: str
) -> None:
    """A directory that looks like one, or a part of one, would leave nothing where the masks and labels go."""
    (box.base / "fake/self/attr").mkdir(parents=True)

    with pytest.raises(LaunchFailed, match=f'"/proc" cannot be mounted because it is {why}') as caught:
        await box.start(box.plan("true", mounts=with_proc(box, box.base / source)))

    assert (caught.value.exit_code, caught.value.status) == (128, 500)


async def test_the_masks_of_a_bound_proc_stay_inside(box: Contained, procfs: Path) -> None:
    """A mount that the host has shared: with rslave nothing comes back, and rshared is refused."""
    mounts.mount(None, str(procfs), None, mounts.MS_SHARED)

    def seen() -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if f" {procfs}" in line]

    before = seen()

    code, output = await box.run(
        "stat", "-c", "%t:%T", "/proc/keys", mounts=with_proc(box, procfs, propagation="rslave")
    )
    assert (code, output) == (0, "1:3\n")
    with pytest.raises(LaunchFailed, match='"/proc" cannot be mounted because it is shared with the host'):
        await box.start(box.plan("true", mounts=with_proc(box, procfs, propagation="rshared")))

    assert seen() == before and len(before) == 1


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
@pytest.mark.parametrize(
    ("target", "place"), [("/proc", "/proc"), ("proc/sys", "/proc/sys"), ("/proc/acpi/../fs", "/proc/fs")]
)
async def test_cve_2019_16884_no_link_of_the_image_leads_into_proc(
    box: Contained, kind: str, target: str, place: str
) -> None:
    """`VOLUME /v`, and /v is a link: the volume would cover what the masks are for."""
    volume = box.base / "volume"
    volume.mkdir()
    top = layer(box, replaced_by_link("v", target))
    options = ("rbind", "rprivate") if kind == "bind" else ()
    over = MountPlan("/v", kind, str(volume) if kind == "bind" else "tmpfs", options)

    for wanted in ((*box.mounts(), over), with_proc(box, Path("/proc"), over)):
        with pytest.raises(LaunchFailed, match=f'"{place}" cannot be mounted because it is inside /proc'):
            await box.start(box.plan("true", mounts=wanted, layers=(top,)))

    assert os.listdir(volume) == []


@pytest.mark.parametrize("target", ["/tmp", "tmp", "/nowhere"])
async def test_cve_2023_28642_a_bound_proc_lies_on_an_ordinary_directory(
    box: Contained, procfs: Path, target: str
) -> None:
    top = layer(box, replaced_by_link("proc", target))

    with pytest.raises(LaunchFailed, match='filesystem "proc" must be mounted on ordinary directory'):
        await box.start(box.plan("true", mounts=with_proc(box, procfs), layers=(top,)))


@pytest.mark.parametrize("cwd", ["/proc/1/root", "/proc/1/cwd", "/proc/self/fd/3"])
async def test_cve_2024_21626_a_bound_proc_is_no_way_out(box: Contained, procfs: Path, cwd: str) -> None:
    """The host's processes are in it: an image's WORKDIR must not lead to what they have open."""
    with pytest.raises(LaunchFailed, match="chdir to cwd"):
        await box.start(box.plan("true", cwd=cwd, mounts=with_proc(box, procfs)))


async def test_what_is_hidden_is_not_hidden_from_the_host(box: Contained) -> None:
    """A directory that is shared both ways, as `-v /sys:/sys:rshared`: a mask in it would lie in the host's as well."""
    place = box.base / "shared"
    place.mkdir()
    mounts.mount("shared", str(place), "tmpfs")
    try:
        mounts.mount(None, str(place), None, mounts.MS_SHARED)
        (place / "secret").mkdir()
        (place / "secret/file").write_text("the host's")
        wanted = (*box.mounts(), MountPlan("/data", "bind", str(place), ("rbind", "rshared")))
        for hidden in ({"masked_paths": ("/data/secret",)}, {"readonly_paths": ("/data/secret",)}):
            with pytest.raises(LaunchFailed, match='"/data" cannot be mounted because it is shared'):
                await box.start(box.plan("true", mounts=wanted, **hidden))
        assert (await box.run("cat", "/data/secret/file", mounts=wanted)) == (0, "the host's")
        assert (place / "secret/file").read_text() == "the host's"
    finally:
        mounts.umount(str(place), mounts.MNT_DETACH)
