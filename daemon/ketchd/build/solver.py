"""The solver: carries out a graph, every ready step at once; and Flights, which let builds share equal steps under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from ketchd.build.ops import Graph, Node
from ketchd.build.schedule import needed, ready

State = TypeVar("State")
Result = TypeVar("Result")
Output = Callable[[int, bytes], Awaitable[None]]
_REPLAY_LIMIT = 1 << 20


async def solve(
    graph: Graph, execute: Callable[[Node, Mapping[int, State]], Awaitable[State]]
) -> dict[int, State]:
    """Every needed node's state. execute(node, states of the nodes done) is called once for each, when its needs are done.

    Raises what the first failing step raised; the others are cancelled and waited for. Cancelled: so are all steps.
    """
    wanted = needed(graph)
    done: dict[int, State] = {}
    begun: set[int] = set()
    failed: list[BaseException] = []

    async def carry_out(index: int) -> None:
        try:
            done[index] = await execute(graph.nodes[index], done)
        except Exception as error:
            failed.append(error)
            raise
        begin()

    def begin() -> None:
        for index in ready(graph, done, begun, wanted):
            begun.add(index)
            group.create_task(carry_out(index), name=f"build step {index}")

    try:
        async with asyncio.TaskGroup() as group:
            begin()
    except BaseExceptionGroup:
        if failed:
            raise failed[0] from None
        raise
    return done


async def _ended(task: asyncio.Task[Result]) -> None:
    """Wait for its end, however often the waiting is cancelled: who calls this is on its way out already."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


class _Flight(Generic[Result]):
    def __init__(self) -> None:
        self.task: asyncio.Task[Result] | None = None
        self.waiting = 0
        self.sinks: list[Output] = []
        self.said: list[tuple[int, bytes]] = []
        self.size = 0

    async def output(self, stream: int, content: bytes) -> None:
        if self.size <= _REPLAY_LIMIT:
            self.said.append((stream, content))
            self.size += len(content)
            if self.size > _REPLAY_LIMIT:
                self.said.append((1, b"[earlier output is not repeated here]\n"))
        for sink in list(self.sinks):
            await sink(stream, content)


class Flights(Generic[Result]):
    """Steps under way, by key. Who asks for a step that somebody already carries out waits for that one and sees its output."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[Result]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def share(
        self, key: str, perform: Callable[[Output], Awaitable[Result]], output: Output
    ) -> tuple[Result, bool]:
        """(the result, whether it was somebody else's). Raises what `perform` raises.

        Cancelled: the step goes on as long as another build waits for it, else it is cancelled and waited for. Who began it stays
        for that long: `perform` works with what is the beginner's, its context and its lease.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.sinks.append(output)
            flight.task = asyncio.ensure_future(perform(flight.output))
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.waiting += 1
        assert flight.task is not None
        try:
            if joined:
                await self._replay(flight, output)
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiting -= 1
            if output in flight.sinks:
                flight.sinks.remove(output)
            if not flight.waiting and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()
                await _ended(flight.task)
            elif not joined:
                await _ended(flight.task)
            if flight.task.done() and not flight.task.cancelled():
                flight.task.exception()  # seen, whoever was waiting for it

    async def _replay(self, flight: _Flight[Result], output: Output) -> None:
        at = 0
        while at < len(flight.said):
            stream, content = flight.said[at]
            at += 1
            await output(stream, content)
        flight.sinks.append(output)

    def _land(self, key: str, flight: _Flight[Result]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
