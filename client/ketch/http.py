"""One HTTP/1.1 connection to the engine: plain requests, streamed answers, and connections taken over. Acting.

Our own, in place of http.client: it starts in a tenth of the time, and a connection that has been upgraded hands over
what was read ahead instead of losing it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from ketch.faults import EngineAway

CHUNK = 256 * 1024
HEADER_LIMIT = 256 * 1024


class Link(Protocol):
    """What is used of a connection's socket, however its bytes travel.

    Not blocking, a `send` is repeated with the same bytes, and a `shutdown` that raised BlockingIOError is called again.
    """

    def fileno(self) -> int: ...
    def setblocking(self, on: bool, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def send(self, content: bytes, /) -> int: ...
    def sendall(self, content: bytes, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


def half_close(link: Link) -> bool:
    """Tell the other side that nothing follows. False where there is no room for that yet: then it is called again."""
    try:
        link.shutdown(socket.SHUT_WR)
    except BlockingIOError:
        return False
    except OSError:
        pass  # nobody reads any more; the end of the output tells the rest
    return True


Body = bytes | Iterable[bytes] | None


class Answer:
    """The head of an answer, and its body as it arrives. `close()` it, or use it in a `with`."""

    def __init__(
        self, connection: Connection, status: int, headers: dict[str, str], rest: bytes, head: bool
    ) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._rest = rest
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length")
        self._left: int | None = int(length) if length is not None and not self._chunked else None
        if head or status in (101, 204, 304):
            self._left, self._chunked = 0, False
        self._is_closed = False
        self._is_last = status == 101 or headers.get("connection", "").lower() == "close"

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, or give it back if the body was read to its end. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._left == 0 and not self._rest and not self._is_last:
            self._connection.park()
        else:
            self._connection.close()

    def parts(self) -> Iterator[bytes]:
        """The body as it comes. Raises EngineAway when it is cut short."""
        if self._chunked:
            yield from self._chunks()
            return
        while self._left is None or self._left > 0:
            part = self._rest or self._connection.receive()
            self._rest = b""
            if not part:
                if self._left is None:
                    return
                raise EngineAway("unexpected EOF")
            if self._left is not None:
                part = part[: self._left]
                self._left -= len(part)
            yield part

    def read(self) -> bytes:
        """All of the body."""
        return b"".join(self.parts())

    def fileno(self) -> int:
        """To wait for more of the body with poll; what was read ahead does not show there."""
        return self._connection.fileno()

    def is_ready(self) -> bool:
        """Whether reading on would not wait."""
        return bool(self._rest) or self._connection.is_readable()

    def take_over(self) -> tuple[Link, bytes]:
        """The socket of an upgraded connection, and what was already read from it. The caller owns both."""
        return self._connection.release(), self._rest

    def _chunks(self) -> Iterator[bytes]:
        while True:
            size = int(self._line().split(b";")[0], 16)
            if size == 0:
                while self._line():
                    pass
                self._left = 0
                return
            while size:
                if not self._rest:
                    self._fill()
                part = self._rest[:size]
                self._rest = self._rest[size:]
                size -= len(part)
                yield part
            self._line()

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._fill()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _fill(self) -> None:
        received = self._connection.receive()
        if not received:
            raise EngineAway("unexpected EOF")
        self._rest += received


class Connection:
    """One request, one answer, then closed: with an engine on this host, a connection costs less than bookkeeping.

    park: takes one that could serve again. explain: what to say of a stream that ended, from what is known here.
    """

    def __init__(
        self,
        link: Link,
        *,
        explain: Callable[[str], str] = str,
        park: Callable[[Connection], None] | None = None,
    ) -> None:
        self._link: Link | None = link
        self._explain = explain
        self._park = park
        self._body_fault: BaseException | None = None

    def close(self) -> None:
        """May be called twice."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def park(self) -> None:
        """Its answer is read to the end."""
        if self._park is None or self._link is None:
            self.close()
        else:
            self._park(self)

    def release(self) -> Link:
        """Give the socket away."""
        assert self._link is not None
        link, self._link = self._link, None
        return link

    def fileno(self) -> int:
        """The socket's."""
        assert self._link is not None
        return self._link.fileno()

    def is_readable(self) -> bool:
        """Whether bytes, or the end, have come."""
        if self._link is None:
            return True
        import select

        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        return bool(poll.poll(0))

    def receive(self) -> bytes:
        """The next bytes, empty at the end. Raises what the streamed body raised."""
        if self._link is None:
            return b""
        try:
            received = self._link.recv(CHUNK)
        except ConnectionError:
            received = b""
        if not received and self._body_fault is not None:
            raise self._body_fault
        return received

    def exchange(self, method: str, target: str, headers: Mapping[str, str], body: Body) -> Answer:
        """Send one request and read the head of its answer. Raises EngineAway, and what a streamed body raises.

        A streamed body is sent from a thread: an engine may answer while it still reads (progress of a load), and one
        that answers an error is heard at once; what is left of the body is then not sent.
        """
        assert self._link is not None
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if body is not None and not isinstance(body, bytes):
            lines.append("Transfer-Encoding: chunked")
        elif body is not None or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body) if body else 0}")
        head = "\r\n".join([*lines, "", ""]).encode()
        if body is None or isinstance(body, bytes):
            self._send(head + (body or b""))
        elif self._send(head):
            import threading

            self._park = None  # an answer may come before all of it is sent
            threading.Thread(target=self._send_parts, args=(self._link, body), daemon=True).start()
        return self._answer(method == "HEAD")

    def _send(self, content: bytes) -> bool:
        """Whether the other side still takes it; if not, its answer may still be there to be read."""
        assert self._link is not None
        try:
            self._link.sendall(content)
        except ConnectionError:
            return False
        return True

    def _send_parts(self, link: Link, body: Iterable[bytes]) -> None:
        """The body in chunks, until nobody listens. A fault of its source ends the connection and is kept for the reader."""
        try:
            for part in body:
                if part and not _sent(link, b"%x\r\n" % len(part) + part + b"\r\n"):
                    return
            _sent(link, b"0\r\n\r\n")
        except BaseException as error:
            self._body_fault = error
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _answer(self, head: bool) -> Answer:
        received = b""
        while b"\r\n\r\n" not in received:
            part = self.receive()
            if not part or len(received) > HEADER_LIMIT:
                if received and not received.startswith(b"HTTP/"):
                    known = f"malformed HTTP response {_first_line(received)!r}"
                else:
                    known = "error during connect: the connection was closed before an answer came: EOF"
                fault = EngineAway(self._explain(known))
                self.close()
                raise fault
            received += part
        text, _, rest = received.partition(b"\r\n\r\n")
        lines = text.decode("latin-1").split("\r\n")
        fields = lines[0].split(" ", 2)
        if not fields[0].startswith("HTTP/1.") or len(fields) < 2 or not fields[1].isdigit():
            self.close()
            raise EngineAway(f"malformed HTTP response {lines[0]!r}")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return Answer(self, int(fields[1]), headers, rest, head)


def _first_line(received: bytes) -> str:
    return received[:200].decode("utf-8", "replace").splitlines()[0]


def _sent(link: Link, content: bytes) -> bool:
    """Send on a socket that another thread may close."""
    try:
        link.sendall(content)
    except OSError:
        return False
    return True
