"""What stands between a client and a registry: an HTTP proxy that knows CONNECT, and a line that breaks. Both on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class HttpProxy:
    """A forward proxy: absolute URLs in plain text, CONNECT for the rest. asked: request lines, without the version.

    names: where hosts are that nobody can resolve. credentials: `user:password` that it wants, or empty. address: while it runs.
    """

    names: dict[str, str] = field(default_factory=dict)
    credentials: str = ""
    asked: list[str] = field(default_factory=list)
    address: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; in plain text one request, since the next may be for another host."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.rstrip("\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        self.asked.append(f"{method} {target.partition('?')[0]}")
        headers = dict(entry.split(": ", 1) for entry in rest)
        wanted = "Basic " + base64.b64encode(self.credentials.encode()).decode()
        if self.credentials and headers.pop("Proxy-Authorization", "") != wanted:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        host = target if method == "CONNECT" else urlsplit(target).netloc
        name, _, port = self.names.get(host, host).rpartition(":")
        upstream, onwards = await asyncio.open_connection(name, int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            parts = urlsplit(target)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            kept = [f"{key}: {value}" for key, value in headers.items() if key != "Connection"]
            onwards.write(
                "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode(
                    "latin-1"
                )
            )
        await both_ways(reader, writer, upstream, onwards)


@dataclass(slots=True)
class BreakingLine:
    """A TCP line to `target` that breaks after `most` bytes in either direction, `breaks` times. carried: bytes to the target."""

    target: str
    most: int
    breaks: int
    carried: int = 0
    address: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        name, _, port = self.target.rpartition(":")
        upstream, onwards = await asyncio.open_connection(name, int(port))
        left = self.most

        def count(size: int, is_upwards: bool) -> bool:
            nonlocal left
            self.carried += size if is_upwards else 0
            left -= size
            if left >= 0 or not self.breaks:
                return True
            self.breaks -= 1
            return False

        await both_ways(reader, writer, upstream, onwards, count)


async def both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    upstream: asyncio.StreamReader,
    onwards: asyncio.StreamWriter,
    may_pass: Callable[[int, bool], bool] = lambda *_: True,
) -> None:
    """Carry bytes until either side is done, or `may_pass` (size, upwards) says no: then both connections are cut."""

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, is_upwards: bool) -> None:
        while piece := await source.read(65536):
            if not may_pass(len(piece), is_upwards):
                for end in (writer, onwards):
                    end.transport.abort()
                return
            target.write(piece)
            await target.drain()

    carrying = [
        asyncio.create_task(carry(*way)) for way in ((reader, onwards, True), (upstream, writer, False))
    ]
    try:
        await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)
        onwards.close()


@contextlib.asynccontextmanager
async def listening(handler: _Handler) -> AsyncIterator[str]:
    """Serve connections with `handler`; yields host:port. Those that are still open at the end are cut."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            running.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "127.0.0.1:" + str(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
