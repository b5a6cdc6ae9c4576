"""TLS in front of a protocol, as asyncio has it but for the half-close: a client's close_notify ends its input alone.

asyncio's own ends the whole connection there, and what a container still writes after its stdin's end is lost.
Source: RFC 8446 section 6.1; Go's crypto/tls `CloseWrite`, which docker's clients call.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

HANDSHAKE_SECONDS = 60.0
_CHUNK = 256 * 1024


class TlsProtocol(asyncio.Protocol):
    """One connection. What it decrypts goes to the protocol that `make` gives, as soon as hands are shaken."""

    def __init__(self, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._make = make
        self._timer: asyncio.TimerHandle | None = None
        self._early: list[bytes] = []
        self._is_input_open = True
        self._has_ended = False
        self.is_paused = False
        self.raw: asyncio.Transport | None = None
        self.app: asyncio.Protocol | None = None
        self.plain: TlsTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        assert isinstance(transport, asyncio.Transport)
        self.raw = transport
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Ciphertext."""
        self._incoming.write(data)
        self.advance()

    def advance(self) -> None:
        """As far as what came leads. A fault of TLS ends the connection, once its alert is sent."""
        if self.raw is None:
            return
        try:
            with contextlib.suppress(ssl.SSLWantReadError):
                if self.app is None:
                    self.tls.do_handshake()
                    self._begin(self.raw)
                self._read()
        except ssl.SSLError:
            self.flush()
            self.raw.close()
            return
        self.flush()

    def _begin(self, raw: asyncio.Transport) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.plain = TlsTransport(self, raw)
        self.app = self._make()
        self.app.connection_made(self.plain)

    def _read(self) -> None:
        while not self.is_paused and not self._has_ended:
            part = self._early.pop(0) if self._early else self._decrypted()
            if part:
                assert self.app is not None
                self.app.data_received(part)
            else:
                self._end_input()

    def _decrypted(self) -> bytes:
        """Raises ssl.SSLWantReadError when there is no more yet; empty after the client's close_notify."""
        if not self._is_input_open:
            return b""
        try:
            found = self.tls.read(_CHUNK)
        except ssl.SSLZeroReturnError:
            found = b""
        if not found:
            self._is_input_open = False
        return found

    def _end_input(self) -> None:
        self._has_ended = True
        assert self.app is not None and self.plain is not None
        if not self.app.eof_received():
            self.plain.close()

    def eof_received(self) -> bool:
        """The end of the TCP stream: of input alone if TLS had said so, and else of everything."""
        if not self._is_input_open:
            return True
        self._incoming.write_eof()
        self.advance()
        return False

    def say_end(self) -> None:
        """Send our close_notify, once. What came before is kept: OpenSSL would take it for the client's answer."""
        with contextlib.suppress(ssl.SSLError):
            while part := self._decrypted():
                self._early.append(part)
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.flush()

    def flush(self) -> None:
        """Send what OpenSSL has made."""
        if self._outgoing.pending and self.raw is not None and not self.raw.is_closing():
            self.raw.write(self._outgoing.read())

    def pause_writing(self) -> None:
        """The client reads slowly."""
        if self.app is not None:
            self.app.pause_writing()

    def resume_writing(self) -> None:
        """It has read."""
        if self.app is not None:
            self.app.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        if self._timer is not None:
            self._timer.cancel()
        self.raw = None
        if self.app is not None:
            self.app.connection_lost(error)


class TlsTransport(asyncio.Transport):
    """The plaintext's side of one connection, for HTTP and for what takes it over."""

    def __init__(self, protocol: TlsProtocol, raw: asyncio.Transport) -> None:
        super().__init__()
        self._protocol = protocol
        self._raw = raw
        self._is_closing = False
        self._has_ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object` and `sslcontext` are ours, the rest the connection's."""
        if name == "ssl_object":
            return self._protocol.tls
        if name == "sslcontext":
            return self._protocol.tls.context
        return self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Who hears of what comes from now on."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol.app = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who hears of what comes."""
        assert self._protocol.app is not None
        return self._protocol.app

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._is_closing or self._raw.is_closing()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Encrypted at once; the connection's own buffer holds it until the client reads."""
        view = memoryview(data)
        if self.is_closing() or self._has_ended:
            return
        while view:
            view = view[self._protocol.tls.write(view) :]
        self._protocol.flush()

    def can_write_eof(self) -> bool:
        """TLS has an end for each direction."""
        return True

    def write_eof(self) -> None:
        """Tell the client that nothing follows."""
        if not self.is_closing() and not self._has_ended:
            self._has_ended = True
            self._protocol.say_end()

    def close(self) -> None:
        """End it, once what was written is sent."""
        if not self._is_closing:
            self.write_eof()
            self._is_closing = True
            self._raw.close()

    def abort(self) -> None:
        """End it at once."""
        self._is_closing = True
        self._raw.abort()

    def pause_reading(self) -> None:
        """Nothing more is handed on; the client is held up."""
        self._protocol.is_paused = True
        if not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """What waits is handed on, soon."""
        self._protocol.is_paused = False
        if not self._raw.is_closing():
            self._raw.resume_reading()
        asyncio.get_running_loop().call_soon(self._protocol.advance)

    def is_reading(self) -> bool:
        """Whether it is not paused."""
        return not self._protocol.is_paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The connection's."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """The connection's."""
        return self._raw.get_write_buffer_size()


def encrypted(context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> Callable[[], TlsProtocol]:
    """What makes a protocol for each connection that TLS is spoken on."""
    return lambda: TlsProtocol(context, make)
