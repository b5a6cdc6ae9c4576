"""The connection: a body that comes in pieces arrives whole, whenever the event loop gets to the request's handler."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from aiohttp import web

from ketchd.api.connection import Server


async def test_a_body_in_pieces_is_whole() -> None:
    """Pieces that arrive between the parsing of the head and the start of its handler are the body, not a next request."""
    got: list[bytes] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        got.append(await request.read())
        return web.Response()

    server = Server(handle, access_log=None)
    ours, theirs = socket.socketpair()
    transport, connection = await asyncio.get_running_loop().connect_accepted_socket(lambda: server(), theirs)
    try:
        pieces = [b"one", b"two", b"three"]
        for rounds in range(6):
            connection.data_received(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in pieces:
                for _ in range(rounds):
                    await asyncio.sleep(0)
                connection.data_received(b"%x\r\n%s\r\n" % (len(piece), piece))
            connection.data_received(b"0\r\n\r\n")
            async with asyncio.timeout(10):
                while len(got) <= rounds:  # noqa: ASYNC110 (the handler has no other sign)
                    await asyncio.sleep(0)
                while connection._current_request is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0)
    finally:
        transport.close()
        ours.close()
        await server.shutdown(1)

    assert got == [b"onetwothree"] * 6


async def test_a_client_that_speaks_tls_is_answered() -> None:
    """At once and in plain text, by which it knows what is wrong: it sends nothing more until then."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="heard")

    server = Server(handle, access_log=None)
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: server(), theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    inside = ssl.MemoryBIO()
    try:
        with contextlib.suppress(ssl.SSLWantReadError):
            ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), inside, server_hostname="h").do_handshake()
        writer.write(inside.read())
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
        transport.close()
        await server.shutdown(1)
    assert answer.startswith(b"HTTP/1.") and b" 400 " in answer.split(b"\r\n")[0]
