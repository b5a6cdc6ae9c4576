"""A container's name when the catalogue cannot be written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ketch_testing.rooms import container_of, image_of, layer_of, rooms_below
from ketch_wire.faults import EngineFailure
from ketchd.engine.create import create
from ketchd.engine.rooms import Rooms


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    async with rooms_below(tmp_path / "data") as made:
        cgroups: Any = SimpleNamespace(version=1, check=lambda *_: None, discard=lambda *_: [])
        made.cgroups = cgroups
        yield made


def full(*_: Any, **__: Any) -> None:
    raise EngineFailure("catalogue: no space left on device")


async def test_a_container_that_cannot_be_recorded_leaves_its_name_free(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1")
    wanted = {"Image": "x:1", "Cmd": ["true"]}
    with monkeypatch.context() as patch:
        patch.setattr(rooms.events, "append", full)
        with pytest.raises(EngineFailure):
            await create(rooms, wanted, name="it")

    assert list(rooms.supervisor) == []
    box, _ = await create(rooms, wanted, name="it")
    assert rooms.supervisor.find("it") is box


async def test_a_container_that_cannot_be_renamed_keeps_its_name(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = container_of(rooms, await image_of(rooms, [], "x:1"), "it")
    with monkeypatch.context() as patch:
        patch.setattr(rooms.events, "append", full)
        with pytest.raises(EngineFailure):
            rooms.supervisor.rename(box, "other")

    assert box.record.name == "it"
    assert rooms.supervisor.find("it") is box and rooms.supervisor.is_free("other")
    assert rooms.supervisor.rename(box, "other") == "it"
    assert rooms.supervisor.find("other") is box and rooms.supervisor.is_free("it")
