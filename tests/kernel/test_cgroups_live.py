"""Cgroups on the host's own hierarchies: limits, device policy, freezing, counting, removal; both versions where there are both."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ketchd.kernel import cgroupjoin
from ketchd.kernel.cgroup1 import CgroupsV1
from ketchd.kernel.cgroup2 import CgroupsV2
from ketchd.kernel.cgrouphost import read_mountinfo
from ketchd.kernel.cgroups import Cgroups

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to make cgroups"),
]
PARENT = f"ketch-test-{os.getpid()}"


class SilentLog:
    """Takes warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, event: str, **_: Any) -> None:
        self.lines.append(event)


@pytest.fixture(params=[1, 2])
def cgroups(request: pytest.FixtureRequest) -> Iterator[Cgroups]:
    """The version asked for, if the host has it mounted and writable."""
    mounted = read_mountinfo(Path("/proc/self/mountinfo").read_text())
    if request.param == 1:
        writable = {name: point for name, point in mounted.hierarchies.items() if os.access(point, os.W_OK)}
        if not writable.keys() & {"memory", "pids"}:
            pytest.skip("no writable version 1 cgroups on this host")
        made = Cgroups(1, CgroupsV1(writable), SilentLog())
    else:
        if not mounted.unified or not os.access(mounted.unified, os.W_OK):
            pytest.skip("no writable version 2 cgroups on this host")
        made = Cgroups(2, CgroupsV2(mounted.unified), SilentLog())
    yield made
    made.close()
    assert not any(
        (Path(point) / PARENT).exists() for point in [*mounted.hierarchies.values(), mounted.unified]
    )


class Sleeper:
    """A process in a container's cgroup, made as a shim makes it."""

    def __init__(self, cgroups: Cgroups, host: dict[str, Any], job: Callable[[], None] | None = None) -> None:
        self.id = secrets.token_hex(8)
        self._cgroups = cgroups
        self.plan = cgroups.plan(self.id, PARENT, host)
        cgroupjoin.make(self.plan)
        ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(ready)
                cgroupjoin.enter(self.plan)
                if job is not None:
                    job()
                    os._exit(0)
                os.write(told, b"x")
                while True:
                    signal.pause()
            except OSError as error:
                os._exit(error.errno or 255)
            finally:
                os._exit(99)
        os.close(told)
        os.read(ready, 1)
        os.close(ready)

    def end(self) -> int:
        """The exit code; the cgroup is gone afterwards."""
        code = self.wait()
        self._cgroups.remove(self.id)
        self._cgroups.remove(self.id)
        assert not any(os.path.exists(directory) for directory in self.plan.join)
        return code

    def wait(self) -> int:
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            pid, self.pid = self.pid, 0
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return 0

    def run(self) -> int:
        """The exit code of the job."""
        pid, self.pid = self.pid, 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.end()
        return code


def test_join_count_and_remove(cgroups: Cgroups) -> None:
    """The process is where it should be, is counted, and leaves nothing."""
    sleeper = Sleeper(cgroups, {})
    try:
        assert cgroups.pids(sleeper.id) == [sleeper.pid]
        usage = cgroups.usage(sleeper.id)
        assert usage is not None
        if cgroups.has("pids/pids.max") or cgroups.has("pids.max"):
            assert usage.pids == 1
        lines = Path(f"/proc/{sleeper.pid}/cgroup").read_text()
        assert f"/{PARENT}/{sleeper.id}" in lines
    finally:
        sleeper.end()
    assert cgroups.usage(sleeper.id) is None


def test_freeze_and_thaw(cgroups: Cgroups) -> None:
    """A frozen process does not even die before it is thawed (version 1), or stands still until killed (version 2)."""
    sleeper = Sleeper(cgroups, {})
    try:
        assert cgroups.is_frozen(sleeper.id) is False
        cgroups.freeze(sleeper.id)
        cgroups.freeze(sleeper.id)
        assert cgroups.is_frozen(sleeper.id) is True
        cgroups.thaw(sleeper.id)
        cgroups.thaw(sleeper.id)
        assert cgroups.is_frozen(sleeper.id) is False
    finally:
        assert sleeper.end() == -signal.SIGKILL


def test_limits_are_in_force(cgroups: Cgroups) -> None:
    """Written where the kernel reads them, changed while the process runs."""
    memory = "memory/memory.limit_in_bytes" if cgroups.version == 1 else "memory.max"
    if not cgroups.has(memory):
        pytest.skip(f"no memory controller in version {cgroups.version} on this host")
    size = 64 * 1024 * 1024
    sleeper = Sleeper(
        cgroups,
        {
            "Memory": size,
            "MemorySwap": 2 * size,
            "PidsLimit": 5,
            "NanoCpus": 500_000_000,
            "CpuShares": 512,
            "CpusetCpus": "0",
        },
    )
    try:
        usage = cgroups.usage(sleeper.id)
        assert usage is not None and (usage.memory_limit, usage.pids_limit) == (size, 5)
        assert os.sched_getaffinity(sleeper.pid) == {0}
        cgroups.update(sleeper.id, {"Memory": 4 * size, "MemorySwap": 8 * size, "PidsLimit": 50})
        cgroups.update(sleeper.id, {"Memory": size // 2, "MemorySwap": size, "PidsLimit": -1})
        usage = cgroups.usage(sleeper.id)
        assert usage is not None and (usage.memory_limit, usage.pids_limit) == (size // 2, None)
    finally:
        sleeper.end()


def test_pids_limit(cgroups: Cgroups) -> None:
    """fork fails with EAGAIN above the limit."""
    if not cgroups.has("pids/pids.max" if cgroups.version == 1 else "pids.max"):
        pytest.skip(f"no pids controller in version {cgroups.version} on this host")

    def fork_once() -> None:
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)

    assert Sleeper(cgroups, {"PidsLimit": 1}, fork_once).run() == errno.EAGAIN
    assert Sleeper(cgroups, {"PidsLimit": 2}, fork_once).run() == 0


def _open(path: str, flags: int) -> Callable[[], None]:
    return lambda: os.close(os.open(path, flags))


@pytest.fixture
def device_directory() -> Iterator[Path]:
    """Where a device node can be opened: /tmp is often mounted nodev."""
    for place in (tempfile.gettempdir(), "/var/tmp", "/root"):
        if os.path.isdir(place) and not os.statvfs(place).f_flag & os.ST_NODEV:
            with tempfile.TemporaryDirectory(prefix="ketch-test-", dir=place) as made:
                yield Path(made)
            return
    pytest.skip("every directory for temporary files is mounted nodev")


def test_device_policy(cgroups: Cgroups, device_directory: Path) -> None:
    """Harmless devices are usable, nodes of others can be made but not opened, rules and privilege open more."""
    kmsg = device_directory / "kmsg"

    def make_and_open() -> None:
        os.mknod(kmsg, 0o600 | stat.S_IFCHR, os.makedev(1, 11))
        os.close(os.open(kmsg, os.O_RDONLY))

    assert Sleeper(cgroups, {}, _open("/dev/null", os.O_RDWR)).run() == 0
    assert Sleeper(cgroups, {}, make_and_open).run() == errno.EPERM
    assert kmsg.exists()
    assert Sleeper(cgroups, {"DeviceCgroupRules": ["c 1:11 r"]}, _open(str(kmsg), os.O_RDONLY)).run() == 0
    assert (
        Sleeper(cgroups, {"DeviceCgroupRules": ["c 1:11 r"]}, _open(str(kmsg), os.O_RDWR)).run()
        == errno.EPERM
    )
    assert Sleeper(cgroups, {"Privileged": True}, _open(str(kmsg), os.O_RDONLY)).run() == 0


def test_cgroups_below_are_removed_too(cgroups: Cgroups) -> None:
    """A container with a writable hierarchy leaves its own children behind."""
    sleeper = Sleeper(cgroups, {})
    for directory in sleeper.plan.join:
        os.makedirs(f"{directory}/a/b")
    sleeper.end()


def test_busy_cgroup_does_not_hold_anybody_up(cgroups: Cgroups) -> None:
    """What still holds a process is removed once that is gone; nothing is killed for it."""
    sleeper = Sleeper(cgroups, {})
    try:
        cgroups.remove(sleeper.id)
        os.kill(sleeper.pid, 0)
        assert cgroups.pids(sleeper.id) == [sleeper.pid]
    finally:
        sleeper.end()


def test_detect_finds_what_the_host_has() -> None:
    """A version, and a tree below which a container can be planned."""
    log = SilentLog()
    found = Cgroups.detect(log, "1 1 0:1 / / rw - ext4 /dev/vda rw\n")
    assert found.plan("x", "", {}).join == () and log.lines
    mounted = read_mountinfo(Path("/proc/self/mountinfo").read_text())
    if mounted.version != 1:
        pytest.skip("on version 2 alone detection may move this very process")
    assert Cgroups.detect(log).version == 1
