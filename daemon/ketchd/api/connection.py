"""One HTTP connection that keeps what a client sends behind an upgrade request.

A client may write its first stdin bytes before it has read our 101. aiohttp's parser keeps them aside only when the request
has no body; behind the JSON body of an exec's start it would take them for the next request. So such a request is cut here:
the parser gets exactly its head and body, the rest waits in `early`.
"""

from __future__ import annotations

import re

from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

from ketchd.api.faultmap import error_reply

_HEAD_LIMIT = 64 * 1024
_UPGRADE = re.compile(
    rb"\r\nupgrade:[ \t]*(?!websocket)\S", re.IGNORECASE
)  # websockets are aiohttp's own business
# The first byte of a client that takes us for a TLS server. Source: RFC 8446 section 5.1
_TLS_HANDSHAKE = 0x16
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class Connection(RequestHandler):
    """aiohttp's connection, with `early`: bytes behind an upgrade request, None while there was none."""

    __slots__ = ("_arriving", "_body_left", "_head", "early")

    def __init__(self, manager: web.Server, **given: object) -> None:
        super().__init__(manager, **given)  # type: ignore[arg-type]
        self._head = b""
        self._body_left = 0
        self._arriving: StreamReader | None = None
        self.early: bytes | None = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no request is answered in the Engine API's form as well."""
        plain = super().handle_error(request, status, exc, message)
        reply = error_reply(
            plain.status, (getattr(plain, "text", "") or "bad request").split("\n", 1)[0][:200]
        )
        reply.force_close()
        return reply

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self.early is not None:
            rest = self._feed_body(data)
            self.early += rest
            return
        if self._current_request is not None or self._messages or self._is_body_arriving():
            super().data_received(data)
            return
        self._head += data
        if self._head[0] == _TLS_HANDSHAKE:
            self._head = b""
            super().data_received(b"\0\r\n\r\n")  # bad, and whole: its client waits for an answer
            return
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) <= _HEAD_LIMIT:
            return  # the parser would only wait as well
        received, self._head = self._head, b""
        head = received[: end + 2]
        if end < 0 or _UPGRADE.search(head) is None:
            super().data_received(received)
            if self._messages:
                self._arriving = self._messages[-1][1]
            return
        length = _LENGTH.search(head)
        self._body_left = int(length[1]) if length else 0
        self.early = b""
        body = received[end + 4 :]
        first, rest = body[: self._body_left], body[self._body_left :]
        self._body_left -= len(first)
        super().data_received(received[: end + 4] + first)
        self.early = rest

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio.Protocol has it
        """True: the connection stays. Whoever has asked for an upgrade and sends no more still listens, to a container without input."""
        is_whole = self.early is not None and not self._body_left
        return is_whole and self.transport is not None and self.transport.get_extra_info("ssl_object") is None

    def _is_body_arriving(self) -> bool:
        """Whether a request's body is not whole yet. Between the parser's message and the task that handles it, the body is the
        only sign of the request: what comes then must not be taken for the head of another one."""
        return self._arriving is not None and not self._arriving.is_eof()

    def _feed_body(self, data: bytes) -> bytes:
        """Give the parser what still belongs to the request; returns what does not."""
        mine, rest = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(mine)
        if mine:
            super().data_received(mine)
        return rest

    def take_early(self) -> bytes:
        """What came behind the request, once."""
        taken, self.early = self.early or b"", None
        return taken


class Server(web.Server):
    """aiohttp's server over such connections."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)
