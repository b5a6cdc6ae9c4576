"""The door itself: one HTTP server over any number of listening sockets, every request to its route, every fault to its status.

Source: Engine API 1.50, "Versioning" and "Errors"; aiohttp's low-level server.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import structlog
from aiohttp import web

from ketch_wire.defaults import API_VERSION, ENGINE_VERSION
from ketch_wire.faults import Fault
from ketchd.api.connection import Server
from ketchd.api.faultmap import error_reply, fault_reply
from ketchd.api.routing import Call, Route, Router, TooOld, split_version
from ketchd.api.tls import encrypted
from ketchd.api.versions import PLAIN_ERRORS_BEFORE
from ketchd.registry import caller

# The word in parentheses is what clients take the engine's system from.
STANDARD_HEADERS = {
    "Api-Version": API_VERSION,
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": f"Docker/{ENGINE_VERSION} (linux)",
}
SHUTDOWN_SECONDS = 10.0
_READ_BUFFER = 1024 * 1024
_LINE_LIMIT = (
    1024 * 1024
)  # of a request line and of a header, as in Go: filters and X-Registry-Config grow long


class _Request(web.BaseRequest):
    """A request whose answers carry the standard headers; its body is limited by who reads it."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        for name, value in STANDARD_HEADERS.items():
            response.headers[name] = value


class ApiServer:
    """Serves `routes` until `close`. Handlers that change something run to their end when their client goes away."""

    def __init__(self, routes: Iterable[Route], log: Any) -> None:
        self._router = Router(routes)
        self._log = log
        self._jobs: set[asyncio.Task[web.StreamResponse]] = set()
        self._listeners: list[asyncio.Server] = []
        self._server: Server | None = None

    async def listen(self, sockets: Iterable[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Begin to answer on listening sockets: unix ones plain, TCP ones with TLS if given."""
        loop = asyncio.get_running_loop()
        self._server = Server(
            self._handle,
            request_factory=self._make_request,
            handler_cancellation=True,
            keepalive_timeout=600.0,
            access_log=None,
            read_bufsize=_READ_BUFFER,
            max_line_size=_LINE_LIMIT,
            max_field_size=_LINE_LIMIT,
            auto_decompress=False,
        )
        for listener in sockets:
            # Not create_unix_server: from Python 3.13 on that deletes the file of a socket that it is given, and systemd's is
            # to outlive us.
            make = (
                self._server
                if tls is None or listener.family == socket.AF_UNIX
                else encrypted(tls, self._server)
            )
            self._listeners.append(await loop.create_server(make, sock=listener, backlog=1024))

    async def close(self) -> None:
        """Stop listening, let changes under way come to their end (at most 10 s), cancel the rest."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=SHUTDOWN_SECONDS)
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(0.2)
        for job in list(self._jobs):
            job.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=SHUTDOWN_SECONDS)

    @staticmethod
    def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> _Request:
        return _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = os.urandom(4).hex()
        structlog.contextvars.bind_contextvars(request=request_id)
        caller.ask_for(request.headers)
        self._log.debug("request", method=request.method, path=str(request.rel_url), peer=_peer(request))
        if request.method == "OPTIONS":
            return web.Response(status=200)
        try:
            version, path = split_version(unquote(request.rel_url.raw_path, errors="surrogateescape"))
        except TooOld as fault:
            return fault_reply(fault, plain=True)
        except Fault as fault:
            return fault_reply(fault)
        found = self._router.find(request.method, path)
        if found is None:
            return error_reply(404, "page not found", plain=version < PLAIN_ERRORS_BEFORE)
        route, variables = found
        call = Call(request, variables, version)
        if route.ends_with_client:
            return await self._answer(route, call)
        job = asyncio.get_running_loop().create_task(self._answer(route, call))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.shield(job)

    async def _answer(self, route: Route, call: Call) -> web.StreamResponse:
        try:
            return await route.handler(call)
        except Fault as fault:
            self._log.debug("refused", path=call.request.path, status=fault.status, reason=fault.message)
            reply = fault_reply(fault, plain=call.version < PLAIN_ERRORS_BEFORE)
        except ConnectionError:
            if call.taken is None:
                if not _has_left(call.request):
                    raise
                reply = web.Response()  # to nobody
        except Exception as error:
            self._log.exception("request failed", method=call.request.method, path=call.request.path)
            reply = error_reply(500, f"internal error: {type(error).__name__}: {error}")
        if call.taken is not None:  # whose client may be gone by now: nobody but us ends the connection
            call.taken.close()
            return call.taken.response
        if getattr(call.request.protocol, "early", None) is not None:
            reply.force_close()  # an upgrade that was refused: what follows on this connection is no request
        return reply


def _has_left(request: web.BaseRequest) -> bool:
    """Whether nobody is at the other end, though the handler may not have been cancelled yet."""
    return request.transport is None or request.transport.is_closing()


def _peer(request: web.BaseRequest) -> str:
    """Who asks: `pid:uid` over a unix socket, the address over TCP."""
    transport = request.transport
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is None:
        return ""
    if connection.family != socket.AF_UNIX:
        return str(request.remote)
    try:
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return ""
    return f"{pid}:{uid}"
