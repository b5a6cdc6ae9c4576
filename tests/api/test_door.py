"""The door over a real unix socket: statuses, headers, streams, upgraded connections, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import structlog
from aiohttp import web

from ketch_wire.faults import Conflict, NotModified
from ketchd.api.routing import Call, Route, json_reply
from ketchd.api.server import ApiServer
from ketchd.api.streams import JsonStream, hijack

Ask = Callable[[bytes], Awaitable[bytes]]


class Handlers:
    """Small handlers that show what a handler can do."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.finish = asyncio.Event()
        self.ended = asyncio.Event()
        self.outcomes: list[str] = []
        self.server: ApiServer | None = None

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/echo", self.echo),
            Route("POST", "/echo", self.echo),
            Route("GET", "/conflict", self.conflict),
            Route("GET", "/same", self.same),
            Route("GET", "/broken", self.broken),
            Route("POST", "/progress", self.progress),
            Route("POST", "/late", self.late),
            Route("POST", "/upgrade", self.upgrade),
            Route("POST", "/upgrade-late", self.upgrade_late),
            Route("POST", "/long", self.long),
            Route("GET", "/watch", self.long),
            Route("GET", "/gone", self.gone),
            Route("POST", "/gone", self.gone),
        ]

    async def echo(self, call: Call) -> web.StreamResponse:
        return json_reply({"body": await call.json(), "version": call.version})

    async def conflict(self, call: Call) -> web.StreamResponse:
        raise Conflict("it is busy: <name>")

    async def same(self, call: Call) -> web.StreamResponse:
        raise NotModified("")

    async def broken(self, call: Call) -> web.StreamResponse:
        raise ZeroDivisionError("oh")

    async def progress(self, call: Call) -> web.StreamResponse:
        async with JsonStream(call) as stream:
            await stream.send({"status": "a <b>"})
            raise Conflict("it failed half-way")
        return stream.response

    async def late(self, call: Call) -> web.StreamResponse:
        async with JsonStream(call) as stream:
            raise Conflict("it failed at once")
        return stream.response

    async def upgrade(self, call: Call) -> web.StreamResponse:
        sent = await call.json()
        taken = await hijack(call, multiplexed=True)
        await taken.send(json.dumps(sent).encode() + b"|" + taken.initial + b"|")
        with socket.socket(fileno=taken.detach()) as link:
            link.setblocking(False)
            loop = asyncio.get_running_loop()
            while received := await loop.sock_recv(link, 1024):
                await loop.sock_sendall(link, received.upper())
        self.outcomes.append("upgraded and ended")
        return taken.response

    async def upgrade_late(self, call: Call) -> web.StreamResponse:
        self.begun.set()
        await self.finish.wait()
        try:
            return (await hijack(call, multiplexed=True)).response
        except ConnectionError:
            self.ended.set()
            raise

    async def gone(self, call: Call) -> web.StreamResponse:
        assert call.request.transport is not None
        call.request.transport.close()  # as when the client has left, and no handler has been told yet
        async with JsonStream(call) as stream:
            await stream.send({})
        return stream.response

    async def long(self, call: Call) -> web.StreamResponse:
        self.begun.set()
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.outcomes.append("cancelled")
            self.ended.set()
            raise
        self.outcomes.append("finished")
        self.ended.set()
        return json_reply({})


@pytest.fixture
async def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
async def path(tmp_path: Path, handlers: Handlers) -> AsyncIterator[Path]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    server = handlers.server = ApiServer(handlers.routes(), structlog.get_logger())
    await server.listen([listener])
    yield tmp_path / "s"
    handlers.finish.set()
    await server.close()
    listener.close()


async def ask(path: Path, request: bytes) -> bytes:
    """One request on a connection of its own; everything that comes until the end."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def request(method: str, target: str, body: bytes = b"", headers: str = "") -> bytes:
    kind = "Content-Type: application/json\r\n" if body else ""
    return (
        f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}{headers}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def test_a_reply_has_dockers_headers(path: Path) -> None:
    answer = await ask(path, request("POST", "/v1.41/echo", b'{"A":1}'))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    lines = {line.partition(b": ")[0].lower(): line.partition(b": ")[2] for line in head.split(b"\r\n")[1:]}
    assert lines[b"content-type"] == b"application/json"
    assert lines[b"api-version"] == b"1.50"
    assert lines[b"server"].startswith(b"Docker/") and lines[b"server"].endswith(b"(linux)")
    assert json.loads(body) == {"body": {"A": 1}, "version": [1, 41]}


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (request("GET", "/nothing"), 404, "page not found"),
        (request("PUT", "/echo"), 404, "page not found"),
        (request("GET", "/v1.99/echo"), 400, "client version 1.99 is too new"),
        (request("GET", "/conflict"), 409, "it is busy: <name>"),
        (request("GET", "/broken"), 500, "internal error: ZeroDivisionError: oh"),
        (request("POST", "/echo", b"{"), 400, "invalid JSON"),
        (request("POST", "/echo", b"[]"), 400, "invalid JSON: an object is expected"),
        (request("POST", "/late"), 409, "it failed at once"),
    ],
)
async def test_a_fault_is_a_status_and_a_message(path: Path, sent: bytes, status: int, message: str) -> None:
    head, _, body = (await ask(path, sent)).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["message"].startswith(message)


async def test_a_client_from_before_1_24_is_refused_in_text(path: Path) -> None:
    head, _, body = (await ask(path, request("GET", "/v1.1/echo"))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Type: text/plain" in head
    assert body.startswith(b"client version 1.1 is too old. Minimum supported API version is ")


async def test_not_modified_has_no_body(path: Path) -> None:
    head, _, body = (await ask(path, request("GET", "/same"))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 304")
    assert body == b""


async def test_a_fault_after_the_first_message_is_in_the_stream(path: Path) -> None:
    answer = await ask(path, request("POST", "/progress"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'{"status":"a \\u003cb\\u003e"}\r\n' in answer
    assert b'{"errorDetail":{"message":"it failed half-way"},"error":"it failed half-way"}\r\n' in answer


@pytest.mark.parametrize("early", [b"", b"sent too early "])
async def test_an_upgraded_connection_loses_nothing(path: Path, handlers: Handlers, early: bytes) -> None:
    """A body, then bytes that the client sends before it has read the 101, then bytes both ways, then half a close."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    body = b'{"Tty":false}'
    writer.write(
        b"POST /v1.50/upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        b"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n" + body + early
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head == (
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    assert await reader.readuntil(b"|") == b'{"Tty": false}|'
    first = await reader.readuntil(b"|")
    writer.write(b"hello")
    await writer.drain()
    writer.write_eof()
    rest = await reader.read()
    assert first[:-1].upper() + rest == early.upper() + b"HELLO"
    writer.close()
    await writer.wait_closed()
    assert handlers.outcomes == ["upgraded and ended"]


async def test_who_sends_no_more_than_its_upgrade_still_listens(path: Path, handlers: Handlers) -> None:
    """As `nc -N` or `socat` with nothing to send: dockerd's attach goes on as well."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /upgrade-late HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
    writer.write_eof()
    await handlers.begun.wait()
    handlers.finish.set()
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 UPGRADED\r\n")
    writer.close()
    await writer.wait_closed()


async def test_without_an_upgrade_the_answer_is_200(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /upgrade HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
    writer.write_eof()
    assert await reader.read() == b"{}||"
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_left_before_its_upgrade_leaves_nothing(
    path: Path, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is known of its connection any more, and it is no failure of the request."""
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /upgrade-late HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
    await handlers.begun.wait()
    writer.close()
    await writer.wait_closed()
    handlers.finish.set()
    async with asyncio.timeout(10):
        await handlers.ended.wait()
        assert handlers.server is not None and handlers.server._server is not None
        while handlers.server._server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert caplog.records == []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_answer_to_nobody_is_no_failure(
    path: Path, handlers: Handlers, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that has left when its answer begins leaves no traceback in the log."""
    assert await ask(path, request(method, "/gone")) == b""
    async with asyncio.timeout(10):
        assert handlers.server is not None and handlers.server._server is not None
        while handlers.server._server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert caplog.records == []


@pytest.mark.parametrize(("target", "outcome"), [("POST /long", "finished"), ("GET /watch", "cancelled")])
async def test_what_a_vanished_client_ends(path: Path, handlers: Handlers, target: str, outcome: str) -> None:
    """What changes something runs to its end; what only reads is cancelled."""
    method, _, where = target.partition(" ")
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request(method, where))
    await handlers.begun.wait()
    writer.close()
    await writer.wait_closed()
    if outcome == "finished":
        handlers.finish.set()
    async with asyncio.timeout(10):
        await handlers.ended.wait()
    assert handlers.outcomes == [outcome]
