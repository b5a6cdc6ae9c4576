"""Slots: so many at once, in the order of coming, and the number may change while some are taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from types import TracebackType


class Slots:
    """`async with slots:` waits for a slot and has it. asyncio's semaphore, whose number is fixed, with `resize`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def are_taken(self) -> bool:
        """Whether who comes now has to wait."""
        return self._taken >= self._limit or bool(self._waiting)

    def resize(self, limit: int) -> None:
        """Another number. With a lower one who is in stays in, and the next comes in when there are fewer than that."""
        self._limit = limit
        self._admit()

    async def __aenter__(self) -> None:
        """Cancelled: no slot is taken."""
        if not self.are_taken:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
                self._admit()
            else:
                self._leave()  # admitted in the moment of the cancellation
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._taken -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._taken < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._taken += 1
