"""The `oom` event: told once for what a shim has counted, whichever ketchd hears it, and before the `die`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ketch_testing.rooms import container_of, image_of, rooms_below
from ketch_wire.faults import EngineFailure
from ketchd.containers.lifecycle import State
from ketchd.containers.record import ContainerRecord
from ketchd.containers.shims import ExitRecord
from ketchd.containers.supervisor import Box
from ketchd.engine import ending, ooms
from ketchd.engine.rooms import Rooms


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    """Rooms in which nothing runs."""

    async def nothing(*_: Any, **__: Any) -> None:
        return None

    async with rooms_below(tmp_path / "data") as made:
        networks: Any = SimpleNamespace(ids=dict, release=nothing)
        cgroups: Any = SimpleNamespace(remove=lambda *_: None)
        made.networks, made.cgroups = networks, cgroups
        yield made


async def running(rooms: Rooms, counted: int = 0) -> Box:
    """A container whose shim has counted so far."""
    box = container_of(rooms, await image_of(rooms, [], "x:1"), "it", state=State.RUNNING, started_once=True)
    count(box, counted)
    return box


def count(box: Box, ooms: int) -> None:
    link: Any = SimpleNamespace(ooms=ooms)
    box.link = link


def told(rooms: Rooms) -> list[str]:
    return [event.action for event in rooms.events.since(0)]


def stored(rooms: Rooms) -> ContainerRecord:
    (row,) = rooms.catalogue.query("SELECT record FROM containers")
    return ContainerRecord.from_json(row["record"])


async def end(rooms: Rooms, box: Box, ended: ExitRecord | None) -> None:
    async with box.lock:
        await ending.finish(rooms, box, ended)


async def test_each_is_told_once_and_the_end_tells_none_again(rooms: Rooms) -> None:
    box = await running(rooms)
    for counted in (0, 1, 1, 2):
        count(box, counted)
        ooms.tell(rooms, box)
    assert told(rooms) == ["oom", "oom"]
    assert (stored(rooms).ooms, stored(rooms).oom_killed) == (2, False)

    await end(rooms, box, ExitRecord(0, 2, 5))

    assert told(rooms) == ["oom", "oom", "die"]
    assert stored(rooms).oom_killed is True


async def test_what_came_while_nobody_listened_is_one(rooms: Rooms) -> None:
    box = await running(rooms, counted=9)

    ooms.tell(rooms, box)

    assert told(rooms) == ["oom"] and stored(rooms).ooms == 9


async def test_what_came_before_the_start_was_recorded_waits_for_it(rooms: Rooms) -> None:
    box = await running(rooms)
    box.link = None

    ooms.tell(rooms, box)

    assert told(rooms) == []


@pytest.mark.parametrize(("heard", "counted"), [(0, 1), (1, 4)])
async def test_an_end_tells_what_was_not_heard(rooms: Rooms, heard: int, counted: int) -> None:
    box = await running(rooms, counted=heard)
    ooms.tell(rooms, box)

    await end(rooms, box, ExitRecord(137, counted, 5))

    assert told(rooms) == ["oom"] * (heard + 1) + ["die"]


async def test_an_end_that_nobody_saw_keeps_what_was_heard(rooms: Rooms) -> None:
    box = await running(rooms, counted=1)
    ooms.tell(rooms, box)

    await end(rooms, box, None)

    assert told(rooms) == ["oom", "die"] and stored(rooms).oom_killed is True


async def test_what_the_disk_has_no_room_for_is_told_later(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await running(rooms, counted=1)

    def full(*_: Any, **__: Any) -> None:
        raise EngineFailure("catalogue: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rooms.events, "append", full)
        ooms.tell(rooms, box)
    assert (box.record.ooms, stored(rooms).ooms, told(rooms)) == (0, 0, [])

    ooms.tell(rooms, box)

    assert told(rooms) == ["oom"] and stored(rooms).ooms == 1
