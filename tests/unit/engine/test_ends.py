"""Ends, and what a ketchd finds that was killed amid one."""

from __future__ import annotations

import asyncio
import errno
import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ketch_testing.rooms import container_of, image_of, rooms_below
from ketch_wire.faults import EngineFailure, NotModified
from ketchd import tracepoint
from ketchd.containers.lifecycle import State
from ketchd.containers.record import ContainerRecord
from ketchd.containers.shims import ExitRecord, Shims
from ketchd.containers.supervisor import Box
from ketchd.engine import ending, health, stop
from ketchd.engine.remove import remove
from ketchd.engine.restore import restore
from ketchd.engine.rooms import Rooms
from ketchd.kernel.process import start_time


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    """Rooms in which nothing runs."""

    async def nothing(*_: Any, **__: Any) -> None:
        return None

    async with rooms_below(tmp_path / "data") as made:
        networks: Any = SimpleNamespace(ids=dict, release=nothing, restore=nothing)
        cgroups: Any = SimpleNamespace(place=lambda *_: "", remove=lambda *_: None)
        shims: Any = SimpleNamespace(adopt=nothing, end_stray=nothing)
        made.networks, made.cgroups, made.shims = networks, cgroups, shims
        yield made


async def ran(rooms: Rooms, state: State, *, policy: str = "no", auto_remove: bool = False) -> Box:
    """A container that has run once."""
    box = container_of(rooms, await image_of(rooms, [], "x:1"), "it", state=state, started_once=True)
    box.record.host_config["RestartPolicy"] = {"Name": policy, "MaximumRetryCount": 0}
    box.record.host_config["AutoRemove"] = auto_remove
    rooms.supervisor.save(box.record)
    return box


def stored(rooms: Rooms) -> list[ContainerRecord]:
    """As another connection to the catalogue, which is a ketchd after a kill, sees them."""
    connection = sqlite3.connect(rooms.data_root / "catalogue.sqlite")
    try:
        return [
            ContainerRecord.from_json(row[0]) for row in connection.execute("SELECT record FROM containers")
        ]
    finally:
        connection.close()


async def test_a_kill_while_an_end_is_caught_up_with_loses_no_policy(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ran(rooms, State.RUNNING, policy="always")
    seen: list[str] = []

    def look(name: str) -> None:
        if name == "end.recorded":
            seen.extend(one.host_config["RestartPolicy"]["Name"] for one in stored(rooms))

    monkeypatch.setattr(tracepoint, "reach", look)
    await restore(rooms)

    assert seen == ["always"]
    assert [one.state for one in stored(rooms)] == [State.EXITED]  # `start_by_policy` comes later


async def test_what_was_to_be_removed_at_its_end_is_removed_by_the_next_ketchd(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the end's record and the removal's mark."""
    box = await ran(rooms, State.RUNNING, auto_remove=True)

    async def killed(*_: Any) -> None:
        return None

    with monkeypatch.context() as patch:
        patch.setattr(ending, "remove_quietly", killed)
        async with box.lock:
            await ending.finish(rooms, box, None)
    assert [one.state for one in stored(rooms)] == [State.EXITED]

    await restore(rooms)

    assert stored(rooms) == []
    assert not rooms.container_dir(box.record.id).exists()


async def test_what_never_ran_waits_for_its_start(rooms: Rooms) -> None:
    box = await ran(rooms, State.CREATED, auto_remove=True)
    box.record.started_once = False
    rooms.supervisor.save(box.record)

    await restore(rooms)

    assert [one.state for one in stored(rooms)] == [State.CREATED]


class Link:
    """A shim whose container ends at any signal."""

    def __init__(self, rooms: Rooms, box: Box) -> None:
        self._rooms, self._box = rooms, box
        self.signals: list[int] = []
        box.link = self  # type: ignore[assignment]

    async def signal(self, number: int) -> None:
        self.signals.append(number)
        if self._box.link is self:
            self._box.link = None
            self.end = asyncio.ensure_future(self._end())

    async def note(self, number: int) -> None:
        """`signal`, of a container that minds none."""
        self.signals.append(number)

    async def _end(self) -> None:
        async with self._box.lock:
            await ending.finish(self._rooms, self._box, ExitRecord(137, 0, 2))


async def test_two_restarts_at_once_leave_the_rm_that_was_asked_for(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is it ever out of the record, for a kill to find it so."""
    box = await ran(rooms, State.RUNNING, auto_remove=True)
    Link(rooms, box)
    seen: list[bool] = []

    async def start(*_: Any) -> None:
        seen.extend(one.auto_remove for one in stored(rooms))

    monkeypatch.setattr(stop, "start", start)
    await asyncio.gather(stop.restart(rooms, box), stop.restart(rooms, box))

    assert seen == [True, True]
    assert [one.auto_remove for one in stored(rooms)] == [True]


async def test_a_restart_that_another_one_has_started_for_is_done(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await ran(rooms, State.EXITED)

    async def runs(*_: Any) -> None:
        raise NotModified("")

    monkeypatch.setattr(stop, "start", runs)
    await stop.restart(rooms, box)

    assert [event.action for event in rooms.events.since(0)] == ["restart"]


@pytest.mark.parametrize("auto_remove", [False, True])
async def test_a_stop_by_hand_is_stronger_than_a_restart_for_bad_health(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch, auto_remove: bool
) -> None:
    """Whoever was told that it has stopped does not find it running."""
    box = await ran(rooms, State.RUNNING, auto_remove=auto_remove)
    Link(rooms, box)
    started: list[Box] = []

    async def start(_: Rooms, box: Box) -> None:
        started.append(box)

    monkeypatch.setattr(stop, "start", start)
    await asyncio.gather(stop.restart(rooms, box, yields=True), stop.stop(rooms, box))

    assert started == []
    assert [one.state for one in stored(rooms)] == ([] if auto_remove else [State.EXITED])

    if not auto_remove:
        box.record.state = State.RUNNING
        Link(rooms, box)
        await stop.restart(rooms, box, yields=True)
        assert started == [box]


async def test_a_forced_removal_is_not_refused_for_the_rm_of_the_same_container(rooms: Rooms) -> None:
    box = await ran(rooms, State.RUNNING, auto_remove=True)
    link = Link(rooms, box)

    await remove(rooms, box, force=True)
    await link.end

    assert stored(rooms) == []
    assert [event.action for event in rooms.events.since(0)].count("destroy") == 1


async def test_a_forced_removal_ends_what_was_started_meanwhile(rooms: Rooms) -> None:
    """Whoever waited for the end was faster, and started it again."""
    box = await ran(rooms, State.RUNNING)
    first = Link(rooms, box)
    await box.lock.acquire()
    removing = asyncio.ensure_future(remove(rooms, box, force=True))
    await asyncio.sleep(0)  # it waits for the lock
    starting = asyncio.ensure_future(box.lock.acquire())
    box.lock.release()
    await starting
    assert first.signals == [9]
    starting = asyncio.ensure_future(box.lock.acquire())  # behind the end, and ahead of the mark
    box.lock.release()
    await starting
    assert box.record.state is State.EXITED
    box.record.state, second = State.RUNNING, Link(rooms, box)
    box.lock.release()

    await removing

    assert second.signals == [9]
    assert stored(rooms) == []


async def waiting(rooms: Rooms, box: Box, condition: str) -> asyncio.Task[tuple[int, str]]:
    """A client's wait, registered."""
    stands = asyncio.Event()
    task = asyncio.create_task(rooms.supervisor.wait(box, condition, stands.set))
    await stands.wait()
    return task


@pytest.mark.parametrize("condition", ["not-running", "next-exit"])
async def test_a_stop_between_two_runs_is_an_end_to_wait_for(rooms: Rooms, condition: str) -> None:
    box = await ran(rooms, State.RESTARTING, policy="always")
    box.record.exit_code = 3
    client = await waiting(rooms, box, condition)

    await stop.stop(rooms, box)

    assert await asyncio.wait_for(client, 5) == (3, "")


@pytest.mark.parametrize(
    ("state", "condition"),
    [
        (State.CREATED, "next-exit"), (State.CREATED, "removed"), (State.EXITED, "next-exit"),
        (State.RESTARTING, "not-running"), (State.RESTARTING, "next-exit"),
    ],
)  # fmt: skip
async def test_nobody_waits_for_the_end_of_what_is_removed(
    rooms: Rooms, state: State, condition: str
) -> None:
    box = await ran(rooms, state)
    client = await waiting(rooms, box, condition)

    await remove(rooms, box, force=True)

    assert await asyncio.wait_for(client, 5) == (0, "")


def _full(*_: Any, **__: Any) -> None:
    raise EngineFailure("catalogue: no space left on device")


async def test_a_removal_that_cannot_be_recorded_is_none(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at its beginning nor at its end: it may be tried again."""
    box = await ran(rooms, State.EXITED)
    box.record.exit_code = 3
    with monkeypatch.context() as disk:
        disk.setattr(rooms.supervisor, "save", _full)
        with pytest.raises(EngineFailure):
            await remove(rooms, box)
    assert box.record.state is State.EXITED

    client = await waiting(rooms, box, "removed")
    with monkeypatch.context() as disk:
        disk.setattr(rooms.supervisor, "forget", _full)
        with pytest.raises(EngineFailure):
            await remove(rooms, box)
    assert await asyncio.wait_for(client, 5) == (3, "catalogue: no space left on device")
    assert [one.action for one in rooms.events.since(0) if one.type == "container"] == []

    await remove(rooms, box)
    assert stored(rooms) == []


async def test_signals_that_end_nothing_leave_nobody_waiting(rooms: Rooms) -> None:
    box = await ran(rooms, State.RUNNING)
    link = Link(rooms, box)
    link.signal = link.note  # type: ignore[method-assign]

    for _ in range(3):
        await stop.kill(rooms, box, "USR1")

    assert link.signals == [10, 10, 10]
    assert box.exit_waiters == []


@pytest.mark.parametrize(
    ("own", "number", "state"),
    [
        ("", "KILL", State.EXITED), ("", "HUP", State.EXITED), ("INT", "KILL", State.EXITED), ("INT", "INT", State.EXITED),
        ("INT", "HUP", State.RESTARTING),
    ],
)  # fmt: skip
async def test_a_kill_between_two_runs_is_the_end_of_them(
    rooms: Rooms, own: str, number: str, state: State
) -> None:
    box = await ran(rooms, State.RESTARTING, policy="always")
    box.record.config["StopSignal"] = own

    await stop.kill(rooms, box, number)

    assert box.record.state is state
    assert [one.stopped_by_hand for one in stored(rooms)] == [state is State.EXITED]


@pytest.mark.parametrize("frozen", [True, False, None])
@pytest.mark.parametrize("recorded", [State.RUNNING, State.PAUSED])
async def test_a_pause_that_a_kill_left_unrecorded_is_seen(
    rooms: Rooms, recorded: State, frozen: bool | None
) -> None:
    box = await ran(rooms, recorded)
    ends: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def adopt(_: str) -> Any:
        return SimpleNamespace(pid=7, start_time=8, ooms=0, wait=lambda: ends)

    shims: Any = SimpleNamespace(adopt=adopt)
    cgroups: Any = SimpleNamespace(place=lambda *_: "", is_frozen=lambda _: frozen)
    rooms.shims, rooms.cgroups = shims, cgroups
    rooms.supervisor._boxes.clear()
    await restore(rooms)

    seen = recorded if frozen is None else State.PAUSED if frozen else State.RUNNING
    assert [one.state for one in stored(rooms)] == [seen]
    told = [event.action for event in rooms.events.since(0)]
    assert told == ([] if seen is recorded else ["pause" if frozen else "unpause"])
    watch = rooms.supervisor.find(box.record.id).watch
    assert watch is not None
    watch.cancel()


async def test_what_cannot_be_asked_is_not_taken_for_ended(
    rooms: Rooms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ketchd has no descriptors left: it does not start, and the container runs on."""
    box = await ran(rooms, State.RUNNING)
    run_root = tmp_path / "run"
    run_dir = run_root / box.record.id
    run_dir.mkdir(parents=True)

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    rooms.shims = Shims(None, run_root, rooms.log, lambda *_: None, lambda *_: None)  # type: ignore[arg-type]
    rooms.supervisor._boxes.clear()
    with monkeypatch.context() as patched:
        patched.setattr("ketchd.containers.shims.os.open", full)
        with pytest.raises(EngineFailure, match=r"cannot ask the shim of container .*: too many open files"):
            await restore(rooms)

    assert [one.state for one in stored(rooms)] == [State.RUNNING]


async def test_the_end_of_ketchd_stops_nobody_by_hand(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed amid it, the next one starts by policy what this one has stopped, and nothing starts meanwhile."""
    box = await ran(rooms, State.RUNNING, policy="unless-stopped")
    Link(rooms, box)
    seen: list[tuple[State, bool]] = []

    def look(name: str) -> None:
        seen.extend((one.state, one.stopped_by_hand) for one in stored(rooms))

    monkeypatch.setattr(tracepoint, "reach", look)
    await stop.stop_all(rooms, 15)

    assert (State.RUNNING, True) not in seen
    assert seen[-1] == (State.EXITED, False)
    assert box.restart_timer is None


async def test_an_end_that_cannot_be_recorded_is_an_end(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk: whoever waits for it has its code, and the restarts go on."""
    box = await ran(rooms, State.RUNNING, policy="always")
    client = await waiting(rooms, box, "not-running")

    def full(*_: Any, **__: Any) -> None:
        raise EngineFailure("catalogue: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rooms.events, "append", full)
        async with box.lock:
            await ending.finish(rooms, box, ExitRecord(3, 0, 2))

    assert await asyncio.wait_for(client, 5) == (3, "")
    assert box.record.state is State.RESTARTING and box.restart_timer is not None
    ending.cancel_restart(box)
    assert [one.state for one in stored(rooms)] == [
        State.RUNNING
    ]  # with the shim's record, as a kill leaves it


@pytest.mark.parametrize("is_it", [True, False])
async def test_a_process_whose_shim_does_not_answer_does_not_run_on(rooms: Rooms, is_it: bool) -> None:
    """Its container is said to have ended, and may be started again. Another process of the same pid is left alone."""
    box = await ran(rooms, State.RUNNING, policy="always")
    rooms.run_dir(box.record.id).mkdir(parents=True)
    none_starts: Any = None
    rooms.shims = Shims(none_starts, rooms.exec_root / "containers", rooms.log, lambda *_: None)
    process = await asyncio.create_subprocess_exec("sleep", "3600")
    try:
        box.record.pid, box.record.start_time = process.pid, start_time(process.pid) - (not is_it)
        rooms.supervisor.save(box.record)
        rooms.supervisor._boxes.clear()

        await restore(rooms)

        assert [one.state for one in stored(rooms)] == [State.EXITED]
        if is_it:
            assert await asyncio.wait_for(process.wait(), 10) == -signal.SIGKILL
        assert process.returncode == (-signal.SIGKILL if is_it else None)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_what_a_signal_thawed_is_watched_again(rooms: Rooms) -> None:
    """It need not end by it."""
    box = await ran(rooms, State.PAUSED)
    box.record.config["Healthcheck"] = {"Test": ["CMD", "true"], "Interval": 3600 * 10**9}
    cgroups: Any = SimpleNamespace(thaw=lambda _: None)
    rooms.cgroups = cgroups
    link = Link(rooms, box)
    link.signal = link.note  # type: ignore[method-assign]

    await stop.kill(rooms, box, "USR1")

    assert box.record.state is State.RUNNING
    assert box.health_watch is not None and not box.health_watch.done()
    health.unwatch(box)


async def test_the_kill_after_the_grace_is_not_for_the_next_run(rooms: Rooms) -> None:
    """The end came while the lock was another's; what runs when it is free was started meanwhile."""
    box = await ran(rooms, State.RUNNING)
    sent: list[int] = []

    async def send(number: int) -> None:
        sent.append(number)

    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    link: Any = SimpleNamespace(signal=send)
    box.link = link
    async with box.lock:
        stopping = asyncio.ensure_future(stop._see_it_end(rooms, box, ended, 0))
        await asyncio.sleep(0.05)
        ended.set_result(0)
    await stopping

    assert sent == []
