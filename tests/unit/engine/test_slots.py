"""Slots: so many at once, in order, whatever happens to those that wait, and the number may change."""

from __future__ import annotations

import asyncio

import pytest

from ketchd.engine.slots import Slots


class Crowd:
    """Tasks that come to the slots, and stay until they are told to go. inside: who is in, in the order of coming in."""

    def __init__(self, limit: int) -> None:
        self.slots = Slots(limit)
        self.inside: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._go: dict[str, asyncio.Event] = {}

    async def come(self, *names: str) -> None:
        for name in names:
            self._go[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._stay(name))
            await settle()

    async def leave(self, name: str) -> None:
        self._go[name].set()
        await self._tasks[name]
        await settle()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def gone(self, name: str) -> None:
        with pytest.raises(asyncio.CancelledError):
            await self._tasks[name]
        await settle()

    async def _stay(self, name: str) -> None:
        async with self.slots:
            self.inside.append(name)
            try:
                await self._go[name].wait()
            finally:
                self.inside.remove(name)


async def settle() -> None:
    """Every task has gone as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_in_the_order_of_coming() -> None:
    crowd = Crowd(2)
    await crowd.come("a", "b", "c", "d")
    assert crowd.inside == ["a", "b"] and crowd.slots.are_taken
    await crowd.leave("a")
    assert crowd.inside == ["b", "c"]
    for name in ("b", "c", "d"):
        await crowd.leave(name)
    assert not crowd.slots.are_taken


async def test_more_slots_let_in_who_waits() -> None:
    crowd = Crowd(1)
    await crowd.come("a", "b", "c", "d")
    crowd.slots.resize(3)
    await settle()
    assert crowd.inside == ["a", "b", "c"]
    for name in ("a", "b", "c", "d"):
        await crowd.leave(name)


async def test_fewer_slots_send_nobody_away() -> None:
    crowd = Crowd(3)
    await crowd.come("a", "b", "c", "d")
    crowd.slots.resize(1)
    await crowd.leave("a")
    await crowd.leave("b")
    assert crowd.inside == ["c"]
    await crowd.leave("c")
    assert crowd.inside == ["d"]
    await crowd.leave("d")
    assert not crowd.slots.are_taken


async def test_who_gives_up_waiting_takes_no_slot() -> None:
    crowd = Crowd(1)
    await crowd.come("a", "b", "c")
    crowd.cancel("b")
    await crowd.gone("b")
    await crowd.leave("a")
    assert crowd.inside == ["c"]
    await crowd.leave("c")
    assert not crowd.slots.are_taken


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_who_is_cancelled_while_it_is_let_in_gives_the_slot_on(cancelled_first: bool) -> None:
    """Both in one step of the loop, in either order."""
    crowd = Crowd(1)
    await crowd.come("a", "b", "c")
    if cancelled_first:
        crowd.cancel("b")
    crowd.slots.resize(2)
    if not cancelled_first:
        crowd.cancel("b")
    await crowd.gone("b")
    assert crowd.inside == ["a", "c"]
    await crowd.leave("a")
    await crowd.leave("c")
    assert not crowd.slots.are_taken
