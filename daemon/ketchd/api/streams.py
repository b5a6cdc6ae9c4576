"""Answers that go on: progress as JSON messages, and connections that become two-way byte streams.

Source: Engine API, "Hijacking" and the progress stream of images/create, push, load and build.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import sys
import termios
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, cast

import structlog
from aiohttp import web

from ketch_wire.faults import EngineFailure, Fault
from ketchd.api.connection import Connection
from ketchd.api.faultmap import JSON_TYPE
from ketchd.api.routing import Call
from ketchd.api.tunnel import open_tunnel

_HEAD_SECONDS, _HEAD_PAUSE = 1.0, 0.0003  # a client that does not read gets its stream all the same
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def message_bytes(message: dict[str, Any]) -> bytes:
    """One message of a progress stream, with the separator that docker's clients expect."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    return text.encode("utf-8", "surrogateescape") + b"\r\n"


class JsonStream:
    """A progress stream, as an async context.

    The status line goes out with the first message. A fault before it is an ordinary error answer; after it, it is the
    stream's last message (`errorDetail` and `error`) and the context ends normally.
    """

    def __init__(self, call: Call, content_type: str = JSON_TYPE) -> None:
        self._call = call
        self.response = web.StreamResponse(headers={"Content-Type": content_type})

    async def __aenter__(self) -> Self:
        return self

    async def open(self) -> None:
        """Send the status line and headers now. May be called twice."""
        if not self.response.prepared:
            await self.response.prepare(self._call.request)

    async def send(self, *messages: dict[str, Any]) -> None:
        """Send messages. Waits while the client does not read."""
        await self.open()
        await self.response.write(b"".join(message_bytes(message) for message in messages))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            await self.open()
        elif (
            not self.response.prepared
            or not isinstance(error, Exception)
            or isinstance(error, ConnectionError)
        ):
            return False
        else:
            await self._tell(error)
        await self.response.write_eof()
        return True

    async def _tell(self, error: Exception) -> None:
        if not isinstance(error, Fault):
            structlog.get_logger().error("request failed", path=self._call.request.path, exc_info=error)
            error = EngineFailure(f"internal error: {type(error).__name__}: {error}")
        detail: dict[str, Any] = {"message": error.message}
        if (code := getattr(error, "code", None)) is not None:
            detail = {"code": code, **detail}
        await self.send({"errorDetail": detail, "error": error.message})


async def send_chunks(
    call: Call, chunks: AsyncIterator[bytes], headers: dict[str, str]
) -> web.StreamResponse:
    """A body of unknown length. A fault before its first piece is an ordinary answer; one on the way cuts the body off, so that the
    client sees that it is not whole, and the log says why."""
    first = await anext(chunks, b"")
    response = web.StreamResponse(headers=headers)
    await response.prepare(call.request)
    try:
        await response.write(first)
        async for chunk in chunks:
            await response.write(chunk)
    except Exception as error:
        if isinstance(error, Fault):
            structlog.get_logger().warning(
                "an answer was cut off", path=call.request.path, reason=error.message
            )
        if call.request.transport is not None:
            call.request.transport.abort()
        raise
    await response.write_eof()
    return response


class _Taken(web.StreamResponse):
    """Stands for an answer that was written by hand: nothing more is to be sent.

    The connection's own protocol hears of the connection's end only when the handler is through: its end cancels handlers.
    """

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.force_close()
        self._protocol = protocol

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class Hijacked:
    """A connection that left HTTP behind. initial: what the client sent before it had read our answer.

    Give the socket away with `detach` (or a copy with `duplicate`), then `close`; response is what the handler returns.
    """

    def __init__(
        self, call: Call, transport: asyncio.Transport, initial: bytes, tunnel: socket.socket | None = None
    ) -> None:
        self.initial = initial
        self.response: web.StreamResponse = _Taken(cast(asyncio.Protocol, call.request.protocol))
        self._transport = transport
        self._tunnel = tunnel

    def duplicate(self) -> int:
        """A copy of the socket's fd, blocking; the caller owns it."""
        found = self._tunnel or self._transport.get_extra_info("socket")
        return os.dup(found.fileno())

    def detach(self) -> int:
        """The socket's fd; this object is closed."""
        fd = self.duplicate()
        self.close()
        return fd

    async def send(self, content: bytes) -> None:
        """Write to the client. Waits until it is with the kernel; raises ConnectionError when the client is gone."""
        if not content:
            return
        with socket.socket(fileno=self.duplicate()) as copy:
            copy.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(copy, content)

    async def until_read(self) -> None:
        """Until the client has taken what was sent, or has had its time for that.

        docker-py reads the head of an answer through a buffer and the stream below it: output that is there already when it reads
        would be lost. The kernel says what a unix socket's peer has not read, and what TCP has not delivered.
        """
        with socket.socket(fileno=self.duplicate()) as copy, contextlib.suppress(OSError):
            for _ in range(round(_HEAD_SECONDS / _HEAD_PAUSE)):
                if not _unread(copy):
                    break
                await asyncio.sleep(_HEAD_PAUSE)

    def close(self) -> None:
        """Let our end go without telling the client; copies of the socket live on. May be called twice."""
        if self._tunnel is not None:
            self._tunnel.close()
        elif not self._transport.is_closing():
            self._transport.abort()


def _unread(sent: socket.socket) -> int:
    """Bytes (on a unix socket with what they cost the kernel) that have not arrived. Source: tcp(7), SIOCOUTQ; linux/net/unix/af_unix.c"""
    return int.from_bytes(fcntl.ioctl(sent, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class _Silent(asyncio.Protocol):
    """What a hijacked transport talks to."""


async def hijack(call: Call, *, multiplexed: bool) -> Hijacked:
    """Answer 101 (200 for clients that do not ask for an upgrade) and take the connection out of HTTP.

    Reading stops at once: bytes that arrive later are for whoever gets the socket.
    """
    request = call.request
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    upgrade = bool(request.headers.get("Upgrade"))  # dockerd does not ask for `Connection: Upgrade`
    if upgrade:
        kind = "multiplexed" if multiplexed and call.version >= (1, 42) else "raw"
        head = (
            "HTTP/1.1 101 UPGRADED\r\n"
            f"Content-Type: application/vnd.docker.{kind}-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
    else:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
    transport.pause_reading()
    initial = cast(Connection, request.protocol).take_early()
    if transport.get_extra_info("ssl_object") is None:
        taken = call.taken = Hijacked(call, transport, initial)
        transport.set_protocol(_Silent())
    else:
        # Nobody but us can speak TLS with the client: what is given away is the end of a tunnel.
        taken = call.taken = Hijacked(call, transport, initial, await open_tunnel(transport))
        cast(Connection, request.protocol).transport = None  # its end must not close what goes on
    await taken.send(head.encode())
    await taken.until_read()
    return taken
