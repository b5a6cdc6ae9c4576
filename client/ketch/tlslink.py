"""A TLS connection that can be half-closed: the end of input is told to the engine while its output still comes. Acting.

`ssl.SSLSocket` cannot: its `shutdown` leaves TLS, and what comes then is ciphertext. Here OpenSSL works on memory, and the socket is ours.
Source: RFC 8446 section 6.1 (close_notify ends one direction), Go's crypto/tls `CloseWrite`, which docker uses.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from types import TracebackType

CHUNK = 256 * 1024
# One write at most becomes so much that is to be sent: the rest waits with the caller.
RECORDS = 64 * 1024


class TlsLink:
    """As a socket: `recv`, `send`, `sendall`, `shutdown` of writing, `close`, `fileno` to wait on. One thread may send while another receives.

    Not blocking, a `send` that raised BlockingIOError must be called again with the same bytes, as OpenSSL wants it.
    """

    def __init__(self, link: socket.socket, context: ssl.SSLContext, name: str) -> None:
        """Shakes hands on a connected, blocking socket, which is ours from now on. Raises ssl.SSLError, OSError."""
        self._link = link
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._lock = threading.Lock()  # of OpenSSL's object; never held while waiting
        self._sending = threading.Lock()  # of the order in which records go out
        self._unsent = b""
        self._written = 0  # of the caller's bytes, in what could not be sent yet
        self._early = b""  # decrypted before the half-close
        self._has_ended = False  # our direction, whether or not the engine has been told
        self._shake_hands()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                received = self._link.recv(CHUNK)
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                return

    def __enter__(self) -> TlsLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's; what was decrypted ahead does not show there: see `pending`."""
        return self._link.fileno()

    def setblocking(self, on: bool) -> None:
        """As of a socket."""
        self._link.setblocking(on)

    def pending(self) -> int:
        """How many bytes can be had without waiting."""
        with self._lock:
            return len(self._early) + self._tls.pending() + self._incoming.pending

    def recv(self, size: int) -> bytes:
        """The next bytes, empty at the end. Raises BlockingIOError where a socket would."""
        while True:
            with self._lock:
                if self._early:
                    found, self._early = self._early[:size], self._early[size:]
                    return found
                try:
                    return self._tls.read(size)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            if (self._outgoing.pending or self._unsent) and self._sending.acquire(blocking=False):
                # A change of keys.
                try:
                    with contextlib.suppress(BlockingIOError):
                        self._send_all()
                finally:
                    self._sending.release()
            received = self._link.recv(CHUNK)
            with self._lock:
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()

    def send(self, content: bytes) -> int:
        """Send some of it. Raises BlockingIOError; then call again with the same."""
        with self._lock:
            if not self._written:
                self._written = self._tls.write(content[:RECORDS])
        self._flush()
        written, self._written = self._written, 0
        return written

    def sendall(self, content: bytes) -> None:
        """Send all of it, on a blocking socket."""
        view = memoryview(content)
        while view:
            view = view[self.send(bytes(view[:RECORDS])) :]

    def shutdown(self, how: int) -> None:
        """SHUT_WR: tell the engine that nothing follows; receiving goes on. SHUT_RDWR: end the connection.

        Raises BlockingIOError when there is no room for the former; then call again.
        """
        if how != socket.SHUT_WR:
            self._link.shutdown(how)
            return
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                # What is here must be read first: OpenSSL would take it for an answer to the end.
                with contextlib.suppress(ssl.SSLError):
                    while part := self._tls.read(CHUNK):
                        self._early += part
                with contextlib.suppress(ssl.SSLError):
                    self._tls.unwrap()
        self._flush()

    def close(self) -> None:
        """May be called twice."""
        self._link.close()

    def _flush(self) -> None:
        with self._sending:
            self._send_all()

    def _send_all(self) -> None:
        """Send what OpenSSL has made, `_sending` being held. Raises BlockingIOError, and keeps the rest."""
        with self._lock:
            self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._link.send(self._unsent) :]
