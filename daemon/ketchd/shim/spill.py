"""What a slow client has not taken yet: a ring in an unnamed file of the container's directory, never in memory.

The kernel's pages hold it while there is room and its disk when not; it is gone with its descriptor.
"""

from __future__ import annotations

import os

SPILL_LIMIT = 64 * 1024 * 1024
_SEND = 1024 * 1024


class Spill:
    """A queue of bytes of at most `limit`."""

    def __init__(self, directory: int, limit: int = SPILL_LIMIT) -> None:
        self._fd = os.open(
            "." if directory >= 0 else "/tmp",
            os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC,
            0o600,
            dir_fd=directory if directory >= 0 else None,
        )
        self._limit = limit
        self._head = self._size = 0

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._size

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return self._limit - self._size

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`, which must fit. Raises OSError (no space)."""
        view = memoryview(data)
        while view:
            at = (self._head + self._size) % self._limit
            written = os.pwrite(self._fd, view[: self._limit - at], at)
            self._size += written
            view = view[written:]

    def send(self, target: int) -> int:
        """Send some of the oldest bytes to the socket `target`. Raises BlockingIOError, OSError."""
        count = min(self._size, self._limit - self._head, _SEND)
        sent = os.sendfile(target, self._fd, self._head, count)
        self._head = (self._head + sent) % self._limit
        self._size -= sent
        if not self._size:
            self._head = 0
        return sent

    def close(self) -> None:
        """Forget it. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
