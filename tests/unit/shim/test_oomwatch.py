"""How a shim hears that memory ran out, on both cgroup versions: files as the kernel writes them, and a loop that is told what is ready."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ketch_wire.launch import CgroupPlan
from ketchd.shim import oomwatch
from ketchd.shim.loop import Loop, Timer
from ketchd.shim.oomwatch import OomWatch


class Ready(Loop):
    """A loop in which a plain file can be watched, too: what is ready is said by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Callable[[int], None]] = {}
        self.timers: list[Timer] = []

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self.watched[fd] = handler

    def forget(self, fd: int) -> None:
        del self.watched[fd]

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, call))
        return self.timers[-1]

    def let_time_pass(self) -> int:
        """Call what is due; how many were."""
        due, self.timers = [one.call for one in self.timers if one.call is not None], []
        for call in due:
            call()
        return len(due)

    def tell(self) -> None:
        for handler in list(self.watched.values()):
            handler(0)


class Version2:
    """A memory cgroup of version 2."""

    def __init__(self, path: Path) -> None:
        self.directory = path
        self.kills = 0
        self.write()

    def write(self, limit_hits: int = 0) -> None:
        (self.directory / "memory.events").write_text(
            f"low 0\nhigh 0\nmax {limit_hits}\noom {limit_hits}\noom_kill {self.kills}\noom_group_kill 0\n"
        )

    def kill(self, processes: int = 1) -> None:
        self.kills += processes
        self.write(self.kills)


class Version1:
    """One of version 1. What is registered is kept: the kernel would write to it."""

    def __init__(self, path: Path) -> None:
        self.directory = path
        (path / "cgroup.event_control").touch()
        self.kills = 0
        self.write()

    def write(self, under_oom: int = 0, disabled: int = 0) -> None:
        (self.directory / "memory.oom_control").write_text(
            f"oom_kill_disable {disabled}\nunder_oom {under_oom}\noom_kill {self.kills}\n"
        )

    def notify(self) -> None:
        for told in (self.directory / "cgroup.event_control").read_text().split()[:1]:
            os.eventfd_write(int(told), 1)

    def kill(self, processes: int = 1) -> None:
        self.notify()
        self.kills += processes
        self.write()


@pytest.fixture(params=[Version1, Version2])
def cgroup(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.param(tmp_path)


@pytest.fixture
def loop() -> Ready:
    return Ready()


def watching(loop: Loop, cgroup: Any) -> tuple[OomWatch, list[int]]:
    """The watch, and its count at each call."""
    told: list[int] = []
    plan = CgroupPlan(join=(str(cgroup.directory),), writes=(), device_program=b"")
    watch = OomWatch(loop, plan, lambda: told.append(watch.count))
    return watch, told


def test_each_kill_is_told_once_while_it_runs(loop: Ready, cgroup: Any) -> None:
    watch, told = watching(loop, cgroup)

    for kill in (cgroup.kill, cgroup.kill, lambda: None):
        kill()
        loop.tell()

    assert told == [1, 2]
    assert watch.end() == 2


def test_kills_that_come_together_are_one(loop: Ready, cgroup: Any) -> None:
    """What is killed before it is looked at is told as one."""
    watch, told = watching(loop, cgroup)

    cgroup.kill(3)
    cgroup.kill()
    loop.tell()

    assert told == [1]
    assert watch.end() == 1


def test_what_killed_the_container_is_heard_with_its_end(loop: Ready, cgroup: Any) -> None:
    """The end of the first process may be seen before the notification."""
    watch, told = watching(loop, cgroup)

    cgroup.kill()

    assert watch.end() == 1
    assert told == [1]
    assert loop.watched == {}


def test_kills_of_an_earlier_run_are_not_this_ones(loop: Ready, cgroup: Any) -> None:
    cgroup.kills = 7
    cgroup.write()

    watch, told = watching(loop, cgroup)
    loop.tell()

    assert (watch.end(), told) == (0, [])


def test_a_limit_that_was_hit_without_a_kill_is_none(loop: Ready, tmp_path: Path) -> None:
    """Version 2: the file changes for other reasons, too."""
    cgroup = Version2(tmp_path)
    watch, told = watching(loop, cgroup)

    cgroup.write(limit_hits=5)
    loop.tell()

    assert (watch.end(), told) == (0, [])


def test_with_the_killer_switched_off_it_is_told_though_nothing_is_killed(
    loop: Ready, tmp_path: Path
) -> None:
    """Version 1, `--oom-kill-disable`."""
    cgroup = Version1(tmp_path)
    watch, told = watching(loop, cgroup)

    cgroup.write(under_oom=1, disabled=1)
    cgroup.notify()
    loop.tell()

    assert (watch.end(), told) == (1, [1])


def test_one_kill_is_one_however_often_it_is_notified(loop: Ready, tmp_path: Path) -> None:
    """Version 1 notifies for each process that finds no memory while the victim dies: dozens of times."""
    cgroup = Version1(tmp_path)
    watch, told = watching(loop, cgroup)

    cgroup.kill()
    for _ in range(5):
        loop.tell()
        cgroup.notify()
    loop.tell()
    loop.let_time_pass()

    assert (watch.end(), told) == (1, [1])
    assert loop.let_time_pass() == 0


def test_a_notification_before_its_kill_is_looked_after(loop: Ready, tmp_path: Path) -> None:
    """Version 1 speaks first. Not for ever: there may be no kill, when something else gives memory back."""
    cgroup = Version1(tmp_path)
    watch, told = watching(loop, cgroup)

    cgroup.notify()
    loop.tell()
    assert loop.let_time_pass() == 1 and told == []
    cgroup.kills = 1
    cgroup.write(under_oom=1)
    assert loop.let_time_pass() == 1 and told == [1]
    assert loop.let_time_pass() == 0

    cgroup.notify()
    loop.tell()
    looks = 0
    while loop.let_time_pass():
        looks += 1
    assert looks > 1 and watch.end() == 1


def test_where_nothing_is_told_the_end_looks(
    loop: Ready, cgroup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without notifications."""

    def refused(*_: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(oomwatch.OomWatch, "_listen", refused)
    watch, told = watching(loop, cgroup)
    cgroup.kill(2)

    assert (watch.end(), told) == (1, [1])


def test_no_memory_cgroup_is_no_failure(loop: Ready, tmp_path: Path) -> None:
    watch = OomWatch(loop, CgroupPlan(join=(str(tmp_path),), writes=(), device_program=b""), lambda: None)

    assert watch.end() == 0
    watch.close()
