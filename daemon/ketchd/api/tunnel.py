"""A connection that only the event loop can speak on (TLS), as a plain socket: bytes are carried between it and one end of a pair."""

from __future__ import annotations

import asyncio
import socket


class _Side(asyncio.Protocol):
    """Hands what its transport receives to the other side's transport, which holds it up when its own peer does not read."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """The end of input is passed on, and the other direction goes on."""
        target = None if self.other is None else self.other.transport
        if target is None or not target.can_write_eof():
            return False
        target.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def open_tunnel(transport: asyncio.Transport) -> socket.socket:
    """The far end, blocking, which the caller owns: all copies of it closed, the connection ends. Reading from `transport`, which
    was paused, goes on."""
    near, far = socket.socketpair()
    inner, outer = _Side(), _Side()
    inner.other, outer.other = outer, inner
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: inner, sock=near)
    except BaseException:
        near.close()
        far.close()
        raise
    outer.transport = transport
    transport.set_protocol(outer)
    transport.resume_reading()
    return far
