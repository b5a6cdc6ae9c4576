"""Execs that are over, however: known for a while, then forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ketch_testing.rooms import container_of, image_of, rooms_below
from ketch_wire.faults import Conflict, EngineFailure
from ketchd.containers.lifecycle import State
from ketchd.containers.shims import LaunchFailed, ShimLink
from ketchd.containers.supervisor import Box, ExecRecord, Supervisor
from ketchd.engine import execs
from ketchd.engine.rooms import Rooms


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    async with rooms_below(tmp_path / "data") as made:
        yield made


async def made(rooms: Rooms, started: Any) -> tuple[Box, ExecRecord]:
    """A running container whose shim answers a start with what `started` does, and an exec."""
    box = container_of(rooms, await image_of(rooms, [], "x:1"), "it", state=State.RUNNING)
    link: Any = SimpleNamespace(exec_start=started)
    box.link = link
    return box, execs.create_exec(rooms, box, {"Cmd": ["x"]})


async def refused(*_: Any) -> int:
    raise LaunchFailed("no such program", 127)


async def begun(*_: Any) -> int:
    return 7


async def test_an_exec_that_could_not_start_is_forgotten(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, record = await made(rooms, refused)
    monkeypatch.setattr(execs, "KEPT_SECONDS", 0.0)

    with pytest.raises(LaunchFailed):
        await execs.start_exec(rooms, box, record, None)
    assert execs.render_exec(record)["ExitCode"] == 127
    await asyncio.sleep(0.001)

    assert rooms.supervisor.execs == {} and box.execs == {}


async def test_an_exec_that_ends_with_its_container_is_forgotten(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, record = await made(rooms, begun)
    monkeypatch.setattr(execs, "KEPT_SECONDS", 0.0)

    await execs.start_exec(rooms, box, record, None)
    execs.container_ended(rooms, box)
    assert execs.render_exec(record)["ExitCode"] == 137
    await asyncio.sleep(0.001)

    assert rooms.supervisor.execs == {} and box.execs == {}


async def test_execs_that_nobody_starts_are_bounded(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest stay; what has been started does not count. In the catalogue too."""
    monkeypatch.setattr(execs, "WAITING_LIMIT", 2)
    box, running = await made(rooms, begun)
    await execs.start_exec(rooms, box, running, None)
    waiting = [execs.create_exec(rooms, box, {"Cmd": ["x"]}).id for _ in range(4)]

    assert list(box.execs) == list(rooms.supervisor.execs) == [running.id, *waiting[2:]]
    rows = {row["id"] for row in rooms.catalogue.query("SELECT id FROM execs")}
    assert rows == {running.id, *waiting[2:]}

    execs.container_ended(rooms, box)
    assert [row["id"] for row in rooms.catalogue.query("SELECT id FROM execs")] == [running.id]


async def test_the_end_of_the_container_is_that_of_an_exec_that_starts(rooms: Rooms) -> None:
    """One exit code for the event and for inspect."""

    async def ends(*_: Any) -> int:
        execs.container_ended(rooms, box)
        raise Conflict("the container is not running")

    box, record = await made(rooms, ends)

    with pytest.raises(Conflict):
        await execs.start_exec(rooms, box, record, None)

    told = [event.attributes["exitCode"] for event in rooms.events.since(0) if event.action == "exec_die"]
    assert told == ["137"]
    assert execs.render_exec(record)["ExitCode"] == 137


async def test_an_exec_whose_start_cannot_be_told_does_not_run(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise EngineFailure("catalogue: no space left on device")

    box, record = await made(rooms, begun)
    monkeypatch.setattr(rooms.events, "append", full)

    with pytest.raises(EngineFailure):
        await execs.start_exec(rooms, box, record, None)

    shown = execs.render_exec(record)
    assert (shown["Running"], shown["ExitCode"]) == (False, 128)


async def test_an_end_that_cannot_be_recorded_is_not_acknowledged(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shim tells it again, to the next ketchd, which takes the exec for a running one until then."""
    box, record = await made(rooms, begun)
    await execs.start_exec(rooms, box, record, None)

    def full(*_: Any, **__: Any) -> None:
        raise EngineFailure("catalogue: no space left on device")

    sent: list[Any] = []
    with monkeypatch.context() as disk:
        disk.setattr(rooms.events, "append", full)
        shims: Any = SimpleNamespace(
            exec_ended=lambda _, exec_id, code: execs.exec_ended(rooms, box, exec_id, code), log=rooms.log
        )
        link = ShimLink(box.record.id, shims)
        link._channel = SimpleNamespace(send=sent.append, close=lambda: None)  # type: ignore[assignment]
        link.exec_ended(record.id, 5)
    assert sent == []
    assert execs.render_exec(record)["ExitCode"] == 5

    again = Supervisor(rooms.catalogue, rooms.events)
    again.load()
    assert [(one.id, one.running) for one in again.execs.values()] == [(record.id, True)]


async def test_what_a_shim_found_again_does_not_know_did_not_run(rooms: Rooms) -> None:
    """One of an older shim, which forgets what has ended, did: its code is not known."""
    box, record = await made(rooms, begun)
    await execs.start_exec(rooms, box, record, None)
    execs.found_again(rooms, box, {record.id: 9}, complete=True)
    assert (record.running, record.pid) == (True, 9)
    execs.found_again(rooms, box, {}, complete=True)
    assert (record.running, record.exit_code) == (False, 128)

    other = execs.create_exec(rooms, box, {"Cmd": ["x"]})
    await execs.start_exec(rooms, box, other, None)
    execs.found_again(rooms, box, {}, complete=False)
    assert (other.running, other.exit_code) == (False, 255)
    told = [event.attributes for event in rooms.events.since(0) if event.action == "exec_die"]
    assert [(one["execID"], one["exitCode"]) for one in told] == [(other.id, "255")]
