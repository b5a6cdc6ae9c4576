"""The journald log: every line as one message of the journal's native protocol, with Docker's fields. Written by the shim.

Source: systemd, "Native Journal Protocol"; moby's daemon/logger/journald.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from ketchd.kernel import rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ketchd.shim.jsonlog import JsonLog

LINE_LIMIT = 16 * 1024
PATIENCE_SECONDS = 1.0
_PRIORITY = {b"stdout": b"6", b"stderr": b"3"}
# fcntl's numbers; the module would be loaded for them alone
_ADD_SEALS, _ALL_SEALS = 1033, 0xF


def field(name: bytes, value: bytes) -> bytes:
    """One field: `NAME=value`, or with its length when the value has newlines."""
    if b"\n" in value:
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"


class JournalLog:
    """Sends to the journal at `socket`. A journal that does not take messages loses them, never the container.

    fields: what every message carries. cache: a local copy, which `logs` reads; None for none.
    """

    def __init__(self, socket: str, fields: dict[str, str], cache: JsonLog | None) -> None:
        self._target = socket
        self._fields = b"".join(
            field(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in fields.items()
        )
        self._cache = cache
        self._rest: dict[bytes, bytes] = {}
        self._partial: dict[bytes, tuple[bytes, int]] = {}
        self._is_stuck = False
        self._channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
        try:
            self._channel.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 8 << 20)
        except OSError:
            pass  # the kernel's limit is as good

    def write(self, stream: bytes, chunk: bytes) -> None:
        """Send what complete lines `chunk` brings; the rest waits for its newline."""
        if self._cache is not None:
            self._cache.write(stream, chunk)
        *lines, rest = (self._rest.get(stream, b"") + chunk).split(b"\n")
        for line in lines:
            while len(line) >= LINE_LIMIT:
                self._piece(stream, line[:LINE_LIMIT])
                line = line[LINE_LIMIT:]
            self._line(stream, line)
        while len(rest) >= LINE_LIMIT:
            self._piece(stream, rest[:LINE_LIMIT])
            rest = rest[LINE_LIMIT:]
        self._rest[stream] = rest

    def finish(self, stream: bytes) -> None:
        """The stream has ended: its last line has no newline."""
        if self._cache is not None:
            self._cache.finish(stream)
        if rest := self._rest.pop(stream, b""):
            self._line(stream, rest)

    def close(self) -> None:
        """Finish both streams. May be called twice."""
        for stream in list(self._rest):
            self.finish(stream)
        if self._cache is not None:
            self._cache.close()
        self._channel.close()

    def _line(self, stream: bytes, line: bytes) -> None:
        """A whole line, or the last piece of a long one."""
        if stream in self._partial:
            self._piece(stream, line, last=True)
            del self._partial[stream]
        else:
            self._send(stream, line, b"")

    def _piece(self, stream: bytes, piece: bytes, last: bool = False) -> None:
        name, ordinal = self._partial.get(stream, (b"", 0))
        name = name or os.urandom(32).hex().encode()
        self._partial[stream] = (name, ordinal + 1)
        more = field(b"CONTAINER_PARTIAL_ID", name) + field(
            b"CONTAINER_PARTIAL_ORDINAL", b"%d" % (ordinal + 1)
        )
        more += field(b"CONTAINER_PARTIAL_LAST", b"true" if last else b"false")
        if not last:
            more += field(b"CONTAINER_PARTIAL_MESSAGE", b"true")
        self._send(stream, piece, more)

    def _send(self, stream: bytes, message: bytes, more: bytes) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
        data = field(b"MESSAGE", message) + field(b"PRIORITY", _PRIORITY[stream])
        data += field(b"SYSLOG_TIMESTAMP", stamp.encode()) + self._fields + more
        try:
            # One that was stuck is not waited for again until it has taken something.
            self._channel.settimeout(0 if self._is_stuck else PATIENCE_SECONDS)
            try:
                self._channel.sendto(data, _socket.MSG_NOSIGNAL, self._target)
            except OSError as error:
                if not _is_too_long(error):
                    raise
                self._send_file(data)
            self._is_stuck = False
        except TimeoutError:
            self._is_stuck = True
        except BlockingIOError:
            pass
        except OSError:
            pass  # no journal there now: systemd starts it again

    def _send_file(self, data: bytes) -> None:
        """Too much for a datagram: in a sealed file."""
        import fcntl

        fd = os.memfd_create("ketch-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, data)
            fcntl.fcntl(fd, _ADD_SEALS, _ALL_SEALS)
            self._channel.sendmsg([b""], rights.packed([fd]), _socket.MSG_NOSIGNAL, self._target)
        finally:
            os.close(fd)


def _is_too_long(error: OSError) -> bool:
    return error.errno in (90, 105)  # EMSGSIZE, ENOBUFS
