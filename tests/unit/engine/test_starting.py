"""What comes to a container while it starts."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ketch_testing.rooms import container_of, image_of, rooms_below
from ketch_wire.faults import EngineFailure
from ketchd.containers.shims import ClientStream
from ketchd.containers.supervisor import Box
from ketchd.engine import ending, start


async def test_a_client_that_attaches_meanwhile_is_not_left_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rooms_below(tmp_path / "data") as rooms:
        box = container_of(rooms, await image_of(rooms, [], "x:1"), "it")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            stream = ClientStream(theirs.fileno(), False, True, True, False, b"", b"")
            given: list[ClientStream] = []

            async def attach(one: ClientStream) -> None:
                one.take()
                given.append(one)

            async def launch(rooms: Any, box: Box, *_: Any) -> Any:
                box.wait_for_start(stream)  # as `_hand_over` does: there is no link yet
                return SimpleNamespace(pid=1, start_time=1, ooms=0, attach=attach, abort=None)

            async def watch(*_: Any) -> None:
                return None

            monkeypatch.setattr(start, "_launch", launch)
            monkeypatch.setattr(ending, "watch", watch)
            await start.start(rooms, box)
            assert box.watch is not None
            await asyncio.wait([box.watch])

            assert given == [stream]
            assert box.pending == []


async def test_a_failure_that_cannot_be_recorded_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise EngineFailure("catalogue: no space left on device")

    async with rooms_below(tmp_path / "data") as rooms:
        box = container_of(rooms, await image_of(rooms, [], "x:1"), "it")
        client = asyncio.create_task(rooms.supervisor.wait(box, "next-exit"))
        await asyncio.sleep(0)
        monkeypatch.setattr(rooms.supervisor, "save", full)
        monkeypatch.setattr(start, "_launch", full)

        with pytest.raises(EngineFailure):
            await start.start(rooms, box)

        assert await asyncio.wait_for(client, 5) == (128, "")
