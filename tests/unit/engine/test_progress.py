"""Progress: Docker's texts, bounded memory for a client that does not read, and the end of one that is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ketch_wire.faults import NotFound
from ketchd.engine.progress import ProgressBoard, bar, human_size, message


class Client:
    """Takes messages; `gate` closed is a client that does not read, `gone` one that left."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = False

    async def send(self, *messages: dict[str, Any]) -> None:
        await self.gate.wait()
        if self.gone:
            raise ConnectionResetError("gone")
        self.got += messages


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (16384, "16.38kB"), (1064323, "1.064MB"), (2.5e9, "2.5GB")],
)
def test_sizes_are_dockers(size: float, text: str) -> None:
    """Four significant digits, thousands."""
    assert human_size(size) == text


def test_bars_are_dockers() -> None:
    """As dockerd 20.10 printed them."""
    assert bar(36445, 1064323) == "[=>                                                 ]  36.45kB/1.064MB"
    assert bar(1064323, 1064323) == "[" + "=" * 50 + ">]  1.064MB/1.064MB"
    assert bar(1986560, 1982256) == "[" + "=" * 50 + ">]  1.987MB"
    assert bar(100, 0) == "    100B"
    assert bar(0, 0) == ""
    assert message("Waiting", "a") == {"status": "Waiting", "progressDetail": {}, "id": "a"}


async def test_everything_that_is_said_arrives_in_order() -> None:
    """A bar's last position comes before what ends it."""
    client = Client()
    board = ProgressBoard(client.send)
    async with board.pump():
        board.say("Pulling fs layer", "a")
        board.move("Downloading", "a", 1, 10)
        board.move("Downloading", "a", 7, 10)
        board.say("Download complete", "a")
        board.tell({"aux": 1})
        board.say("Status: done")

    assert [entry.get("status") for entry in client.got] == [
        "Pulling fs layer", "Downloading", "Download complete", None, "Status: done",
    ]  # fmt: skip
    assert client.got[1]["progressDetail"] == {"current": 7, "total": 10}


async def test_a_client_that_does_not_read_costs_one_line_a_bar() -> None:
    """However long it takes."""
    client = Client()
    client.gate.clear()
    board = ProgressBoard(client.send)
    async with board.pump():
        for position in range(10_000):
            for layer in ("a", "b", "c"):
                board.move("Downloading", layer, position, 10_000)
            if position % 1000 == 0:
                await asyncio.sleep(0)
        for layer in ("a", "b", "c"):
            board.say("Download complete", layer)
        assert len(board._waiting) + len(board._moving) <= 9
        client.gate.set()

    assert len(client.got) <= 12
    bars = [entry for entry in client.got if entry["status"] == "Downloading"]
    assert bars[-1]["progressDetail"]["current"] == 9999


async def test_a_client_that_is_gone_ends_the_work() -> None:
    """As its own cancellation would, but with its own error."""
    client = Client()
    board = ProgressBoard(client.send)
    client.gone = True
    ended = False
    with pytest.raises(ConnectionResetError):
        async with board.pump():
            board.say("Status: x")
            try:
                await asyncio.Event().wait()
            finally:
                ended = True
    assert ended
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_fault_comes_after_what_was_said() -> None:
    """If anything was sent; before that it is the whole answer."""
    client = Client()
    board = ProgressBoard(client.send)
    with pytest.raises(NotFound):
        async with board.pump():
            board.say("one")
            raise NotFound("nothing")
    assert client.got == []
    board = ProgressBoard(client.send)
    with pytest.raises(NotFound):
        async with board.pump():
            board.say("two")
            await board.flush()
            board.say("three")
            raise NotFound("nothing")
    assert [entry["status"] for entry in client.got] == ["two", "three"]


async def test_a_cancelled_body_stays_cancelled() -> None:
    """The pump does not swallow it."""
    client = Client()
    board = ProgressBoard(client.send)

    async def work() -> None:
        async with board.pump():
            board.say("x")
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    while not client.got:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
