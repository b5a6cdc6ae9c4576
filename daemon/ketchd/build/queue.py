"""BuildQueue: how many builds run at once; the others wait in the order they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class BuildQueue:
    """At most `limit` builds run. A build that leaves the queue (its client went away) leaves no gap."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def ahead(self) -> int:
        """How many builds a new one would wait for."""
        return 0 if self._running < self._limit else len(self._waiting) + 1

    @asynccontextmanager
    async def turn(self, when_waiting: Callable[[int], Awaitable[None]]) -> AsyncIterator[None]:
        """The body runs when it is this build's turn. when_waiting(builds ahead) is told before the wait, if there is one."""
        if self._running >= self._limit:
            await self._wait(when_waiting)
        else:
            self._running += 1
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, when_waiting: Callable[[int], Awaitable[None]]) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await when_waiting(len(self._waiting))
            await place
        except BaseException:
            if place in self._waiting:
                self._waiting.remove(place)
            elif place.done() and not place.cancelled():
                self._leave()  # the turn had just been given to us
            raise

    def _leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)  # the running count passes on to it
                return
        self._running -= 1
