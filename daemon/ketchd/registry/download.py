"""One blob from a registry into its partial file: resumed, in ranges when it is large, again after a passing trouble.

Who unpacks it meanwhile follows `frontier`: up to there the file is without gaps. Digests are checked by whoever reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import aiohttp

from ketchd.model.manifest import Descriptor
from ketchd.registry import ranges
from ketchd.registry.errors import Refused
from ketchd.registry.exchange import Tell, told_when
from ketchd.registry.partial import PIECE, Partial
from ketchd.registry.repository import Repository
from ketchd.registry.retries import Pace
from ketchd.registry.together import together
from ketchd.registry.transport import Unreachable

RANGE = 32 * 1024 * 1024
STREAMS = 4
_WORTH_SPLITTING = 96 * 1024 * 1024


class Download:
    """`run` it once; `reached` and `frontier` tell others how far it is. on_progress: hears of the bytes that are here."""

    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        partial: Partial,
        *,
        on_progress: Callable[[int], None],
        tell: Tell,
    ) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._partial = partial
        self._on_progress = on_progress
        self._tell = tell
        self._advanced = asyncio.Event()
        self._takes_ranges = True

    @property
    def frontier(self) -> int:
        """Bytes from the blob's beginning that are here without a gap."""
        return self._partial.extents.frontier

    async def reached(self, offset: int) -> int:
        """The frontier, as soon as it is beyond `offset`."""
        while (frontier := self.frontier) <= offset:
            self._advanced.clear()
            await self._advanced.wait()
        return frontier

    async def run(self) -> None:
        """Until every byte is here. Raises Refused, Unreachable, EngineFailure. Cancelled or failed: what arrived stays."""
        failures, size = 0, self._descriptor.size
        while gaps := self._partial.extents.missing(size):
            before = self._partial.extents.total
            try:
                await self._round(gaps)
            except (Refused, Unreachable) as fault:
                if isinstance(fault, Refused) and fault.http_status == 416 and self._takes_ranges:
                    self._takes_ranges = False
                    self._partial.restart()
                    continue
                moved = self._partial.extents.total - before >= PIECE
                failures = 1 if moved else failures + 1
                wait = self._repository.wait_after(fault, failures)
                if wait is None:
                    raise told_when(fault) from fault.__cause__
                await self._repository.pause(wait, self._tell)
        self._advanced.set()

    async def _round(self, gaps: list[tuple[int, int]]) -> None:
        size = self._descriptor.size
        if not self._takes_ranges or size < _WORTH_SPLITTING:
            for start, stop in gaps if self._takes_ranges else [(0, size)]:
                await self._stream(start, stop)
            return
        waiting = deque(ranges.split(gaps, RANGE))
        await together(self._streams(waiting) for _ in range(min(STREAMS, len(waiting))))

    async def _streams(self, waiting: deque[tuple[int, int]]) -> None:
        while waiting:
            start, stop = waiting.popleft()
            await self._stream(start, stop)
            if not self._takes_ranges:
                waiting.clear()

    async def _stream(self, start: int, stop: int) -> None:
        """Bytes [start, stop), or from 0 if the registry ignores ranges. Returns when the body or the range is at its end."""
        size = self._descriptor.size
        asked_to = None if stop == size else stop
        async with self._repository.blob(self._descriptor.digest, size, start, asked_to) as body:
            if body.ranged or (start == 0 and asked_to is None):
                await self._store(body.content, start, stop)
            elif self._takes_ranges:
                # The registry sends the whole blob whatever is asked for: this stream takes it, the others end.
                self._takes_ranges = False
                await self._store(body.content, 0, size)

    async def _store(self, body: aiohttp.StreamReader, at: int, stop: int) -> None:
        loop, pace = asyncio.get_running_loop(), Pace()
        pieces: list[bytes | memoryview] = []
        gathered, here = 0, self._partial.extents
        while at + gathered < stop:
            try:
                chunk: bytes | memoryview = await body.readany()
            except (aiohttp.ClientError, OSError):
                await self._write(at, pieces)  # what has arrived need not come again
                raise
            if not chunk:
                await self._write(at, pieces)
                raise Unreachable(
                    f"unexpected EOF: blob {self._descriptor.digest.short} ended after {here.total} of "
                    f"{self._descriptor.size} bytes", dialled=True,
                )  # fmt: skip
            if pace.is_too_slow(loop.time(), len(chunk)):
                raise Unreachable("net/http: the registry sends too slowly", dialled=True)
            pieces.append(memoryview(chunk)[: stop - at - gathered])
            gathered += len(pieces[-1])
            if gathered >= PIECE:
                await self._write(at, pieces)
                at, pieces, gathered = at + gathered, [], 0
        await self._write(at, pieces)

    async def _write(self, offset: int, pieces: list[bytes | memoryview]) -> None:
        if not pieces:
            return
        await self._partial.write(offset, pieces)
        self._advanced.set()
        self._on_progress(self._partial.extents.total)
