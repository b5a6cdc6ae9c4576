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
from ketchd.containers.shims import LaunchFailed
from ketchd.containers.supervisor import Box, ExecRecord
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
