"""inotify(7): being told that a file grew."""

from __future__ import annotations

import os
import struct

from ketchd.kernel.syscalls import check, libc

IN_MODIFY, IN_CREATE, IN_MOVED_TO, IN_DELETE_SELF = 0x2, 0x100, 0x80, 0x400
_EVENT = struct.Struct("iIII")


class Inotify:
    """One inotify instance on a non-blocking fd. Close it."""

    def __init__(self) -> None:
        self.fd = check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")

    def add(self, path: str, mask: int) -> int:
        """Watch `path`; returns the watch."""
        return check(libc.inotify_add_watch(self.fd, os.fsencode(path), mask), path)

    def drain(self) -> int:
        """Read what is there; returns how many events."""
        count = 0
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return count
            offset = 0
            while offset < len(data):
                count += 1
                offset += _EVENT.size + _EVENT.unpack_from(data, offset)[3]

    def close(self) -> None:
        """Let the kernel's side go. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
