"""Request bodies of uploads: a range of a file (sendfile(2) where the connection is plain, large pieces where it is TLS), bytes.

aiohttp sends a request again by itself when a connection that it kept turns out to be broken. Of an upload some bytes may have
arrived: the registry has to be asked first, so these bodies can be sent once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from ketch_wire.faults import EngineFailure

_SENDFILE_PIECE = 4 * 1024 * 1024
_TLS_PIECE = 256 * 1024
_IDLE_SECONDS = 60.0


class BytesBody(Payload):
    """A manifest, or bytes of a small blob, for one attempt; a few megabytes at most."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, content_type="application/octet-stream")
        self._content = content
        self._size = len(content)

    @property
    def consumed(self) -> bool:
        """aiohttp asks before it sends a body again."""
        return True

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole body as text."""
        return self._content.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send everything."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send at most `content_length` bytes."""
        content = memoryview(self._content)[:content_length]
        for at in range(0, len(content), _TLS_PIECE):
            await writer.write(content[at : at + _TLS_PIECE])


class FileBody(Payload):
    """Bytes [start, stop) of the file at `path`, opened anew for every attempt. on_sent: hears of the position reached.

    A peer that takes nothing for a minute ends the request with TimeoutError.
    """

    def __init__(self, path: Path, start: int, stop: int, on_sent: Callable[[int], None]) -> None:
        super().__init__(None, content_type="application/octet-stream")
        self._path = path
        self._start = start
        self._stop = stop
        self._on_sent = on_sent
        self._size = stop - start

    @property
    def consumed(self) -> bool:
        """aiohttp asks before it sends a body again."""
        return True

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole body as text; aiohttp asks every payload for it, and never of one as large as this."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            return file.read(self._stop - self._start).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send everything."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send at most `content_length` bytes. Raises OSError, EngineFailure (the file is shorter than it was)."""
        stop = self._stop if content_length is None else min(self._stop, self._start + content_length)
        writer.send_headers()
        # Not in a thread: a request is cancelled when its answer comes early, and what a thread then opens nobody closes.
        with self._path.open("rb", buffering=0) as file:
            await self._send(writer, file, self._start, stop)

    async def _send(self, writer: AbstractStreamWriter, file: IO[bytes], at: int, stop: int) -> None:
        transport: asyncio.Transport | None = cast(Any, writer).transport
        plain = transport is not None and transport.get_extra_info("sslcontext") is None
        while at < stop:
            async with asyncio.timeout(_IDLE_SECONDS):
                sent = await _sendfile(transport, file, at, stop) if plain and transport is not None else None
                if sent is None:
                    plain = False
                    piece = await asyncio.to_thread(os.pread, file.fileno(), min(_TLS_PIECE, stop - at), at)
                    await writer.write(piece)
                    sent = len(piece)
            if not sent:
                raise EngineFailure(f"a blob on its way to the registry ended {stop - at} bytes early")
            at += sent
            self._on_sent(at)


async def _sendfile(transport: asyncio.Transport, file: IO[bytes], at: int, stop: int) -> int | None:
    """Bytes sent; None when this connection cannot."""
    if transport.is_closing():
        raise ConnectionResetError("the connection was closed")
    count = min(_SENDFILE_PIECE, stop - at)
    try:
        return await asyncio.get_running_loop().sendfile(transport, file, at, count, fallback=False)
    except asyncio.SendfileNotAvailableError:
        return None
