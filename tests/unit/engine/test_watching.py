"""Watching health goes on whatever happens in it, and what should not have happened is told with the container's name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from ketch_testing.rooms import container_of, image_of, rooms_below
from ketch_wire.faults import EngineFailure
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.engine import background, execs, health
from ketchd.engine.rooms import Rooms


class Log:
    """structlog's interface, remembering errors."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **values: Any) -> None:
        self.errors.append((event, {**structlog.contextvars.get_contextvars(), **values}))

    def __getattr__(self, level: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    async with rooms_below(tmp_path / "data") as made:
        made.log = Log()
        yield made


async def watched(rooms: Rooms) -> Box:
    """A running container that is probed a thousand times a second."""
    box = container_of(rooms, await image_of(rooms, [], "x:1"), "it", state=State.RUNNING)
    box.record.config["Healthcheck"] = {"Test": ["CMD", "true"], "Interval": 10**6, "Retries": 1}
    return box


async def becomes(box: Box, status: str) -> None:
    async with asyncio.timeout(10):
        while (box.record.health or {}).get("Status") != status:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_defect_in_a_probe_is_told_and_the_next_probe_comes(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, answers = await watched(rooms), [ZeroDivisionError("by chance")]

    async def command(*_: Any) -> tuple[int, str]:
        if answers:
            raise answers.pop()
        return 0, "well"

    monkeypatch.setattr(health, "_command", command)
    health.watch(rooms, box)
    await becomes(box, "healthy")
    health.unwatch(box)

    assert box.record.health is not None
    assert box.record.health["Log"][0]["Output"] == "ZeroDivisionError: by chance"
    ((event, values),) = rooms.log.errors
    assert (event, values["container"]) == ("probe failed", box.record.id)
    assert isinstance(values["exc_info"], ZeroDivisionError)


async def test_a_result_that_cannot_be_recorded_is_one(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk: who waits for good health is told, and the watching goes on."""
    box, codes = await watched(rooms), [0]

    async def command(*_: Any) -> tuple[int, str]:
        return codes[0], ""

    def full(*_: Any, **__: Any) -> None:
        raise EngineFailure("catalogue: no space left on device")

    monkeypatch.setattr(health, "_command", command)
    healthy = asyncio.create_task(health.wait_healthy(rooms, box))
    with monkeypatch.context() as disk:
        disk.setattr(rooms.events, "append", full)
        health.watch(rooms, box)
        async with asyncio.timeout(10):
            assert await healthy == (0, "")
    assert [values["container"] for _, values in rooms.log.errors] == [box.record.id]

    codes[0] = 1
    await becomes(box, "unhealthy")
    health.unwatch(box)
    told = [event.action for event in rooms.events.since(0) if event.action.startswith("health_status")]
    assert told == ["health_status: unhealthy"]


async def test_what_fails_in_the_background_is_told(rooms: Rooms) -> None:
    box = await watched(rooms)

    async def defect() -> None:
        raise LookupError("nobody thought of this")

    with structlog.contextvars.bound_contextvars(request="that of the start"):
        await asyncio.wait([background.begin(rooms, box, "restart", defect())])
        await asyncio.sleep(0)

    ((event, values),) = rooms.log.errors
    assert (event, values["container"]) == ("restart failed", box.record.id)
    assert "request" not in values  # which is over long since
    assert isinstance(values["exc_info"], LookupError)


async def test_a_cancelled_watch_is_no_failure(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    box, begun = await watched(rooms), asyncio.Event()

    async def command(*_: Any) -> tuple[int, str]:
        begun.set()
        await asyncio.Event().wait()
        return 0, ""

    monkeypatch.setattr(health, "_command", command)
    health.watch(rooms, box)
    task: Any = box.health_watch
    await begun.wait()
    health.unwatch(box)
    await asyncio.wait([task])

    assert task.cancelled() and rooms.log.errors == []
    assert box.health_watch is None


async def test_a_probe_that_is_given_up_amid_its_start_does_not_run_on(rooms: Rooms) -> None:
    """A pause comes while the shim starts the process: it is ended as soon as it is known."""
    box, asked, go = await watched(rooms), asyncio.Event(), asyncio.Event()
    killed: list[tuple[str, int]] = []

    async def exec_start(*_: Any) -> int:
        asked.set()
        await go.wait()
        return 7

    async def exec_signal(exec_id: str, number: int) -> None:
        killed.append((exec_id, number))
        execs.exec_ended(rooms, box, exec_id, 137)

    link: Any = SimpleNamespace(exec_start=exec_start, exec_signal=exec_signal)
    box.link = link
    health.watch(rooms, box)
    task: Any = box.health_watch
    await asked.wait()
    health.unwatch(box)
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait([task])

    assert [number for _, number in killed] == [9]
    assert box.execs == {} and rooms.log.errors == []
