"""The output of a process that ketchd itself has started, read to its end: a build step's, a health check's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ketchd.containers.shims import ClientStream


@asynccontextmanager
async def reading_output(
    read: Callable[[socket.socket], Awaitable[None]], *, multiplexed: bool
) -> AsyncIterator[tuple[ClientStream, asyncio.Future[None]]]:
    """(what to hand to the shim, the task of `read`, which gets our end). Afterwards the task is over and both ends are closed."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stream = ClientStream(
        fd=theirs.detach(),
        stdin=False,
        stdout=True,
        stderr=True,
        multiplexed=multiplexed,
        detach_keys=b"",
        initial=b"",
    )
    reading = asyncio.ensure_future(read(ours))
    try:
        yield stream, reading
    finally:
        stream.close()  # unless it was handed over
        reading.cancel()
        await asyncio.wait([reading])  # ahead of the close: its number may be another's next
        ours.close()
