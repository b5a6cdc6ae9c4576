"""A websocket in front of a byte stream: what a shim gets is one end of a pair of sockets, this carries bytes from the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import WSMsgType, web

_PIECE = 65536


@asynccontextmanager
async def carry(client: web.WebSocketResponse) -> AsyncIterator[int]:
    """Gives the fd of the stream's far end, which the body passes on; then carries until either side has ended.

    A client that does not read is waited for: what is for it waits with whoever writes to the far end.
    """
    near, far = socket.socketpair()
    try:
        near.setblocking(False)
        try:
            yield far.detach()
        except BaseException:
            far.close()
            raise
        outward = asyncio.ensure_future(_outward(near, client))
        inward = asyncio.ensure_future(_inward(client, near))
        try:
            await asyncio.wait({outward, inward}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (outward, inward):
                task.cancel()
            await asyncio.gather(outward, inward, return_exceptions=True)
    finally:
        near.close()


async def _outward(near: socket.socket, client: web.WebSocketResponse) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(near, _PIECE):
        await client.send_bytes(data)


async def _inward(client: web.WebSocketResponse, near: socket.socket) -> None:
    """Text is taken as well: browsers' terminals send it."""
    loop = asyncio.get_running_loop()
    async for message in client:
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            break
        data = message.data
        await loop.sock_sendall(near, data.encode() if isinstance(data, str) else data)
