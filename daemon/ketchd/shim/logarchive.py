"""Compressing a rotated log file bit by bit, between two looks at what happens. gzip, level 1.

Its header's comment says which file it was (`inode`) and when its last entry was written, so that a reader that has held the
plain file goes on at the right place, and one that wants newer entries does not inflate it. Source: RFC 1952.
"""

from __future__ import annotations

import os
import struct

STEP = 256 * 1024
COMMENT = rb"inode=(\d+) last=([0-9T:.Z-]*)"
_COMMENTED = 0x10
_NEAR = 128 * 1024


def read_comment(head: bytes) -> bytes:
    """The comment in a gzip file's first bytes, b"" when there is none."""
    if len(head) < 10 or head[:3] != b"\x1f\x8b\x08" or head[3] != _COMMENTED:
        return b""
    return head[10:].partition(b"\0")[0]


class Archiver:
    """Makes TARGET of the plain file SOURCE; both names may change while it works. Call `step` until it returns True."""

    def __init__(self, source: str, scratch: str) -> None:
        """Raises OSError. scratch: where the compressed bytes are gathered."""
        import zlib  # only shims that compress need it

        self._scratch = scratch
        self._source = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._target = -1
        try:
            self._target = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            info = os.fstat(self._source)
            comment = b"inode=%d last=%s" % (info.st_ino, self._last_time(info.st_size))
            self._put(
                struct.pack("<4BI2B", 0x1F, 0x8B, 8, _COMMENTED, int(info.st_mtime), 4, 3) + comment + b"\0"
            )
        except OSError:
            self.close()
            raise
        self._deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
        self._checksum = zlib.crc32
        self._sum = self._position = 0

    def _last_time(self, size: int) -> bytes:
        near = os.pread(self._source, _NEAR, max(0, size - _NEAR))
        return near.rpartition(b'"time":"')[2].partition(b'"')[0]

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._target, view) :]

    def step(self) -> bool:
        """Do a part of the work; True when it is done. Raises OSError."""
        data = os.pread(self._source, STEP, self._position)
        self._position += len(data)
        if data:
            self._sum = self._checksum(data, self._sum)
            self._put(self._deflater.compress(data))
            return False
        self._put(self._deflater.flush() + struct.pack("<2I", self._sum, self._position & 0xFFFFFFFF))
        os.utime(self._target, ns=(os.fstat(self._source).st_atime_ns, os.fstat(self._source).st_mtime_ns))
        return True

    def publish(self, name: str) -> None:
        """The finished file becomes NAME.gz, and the plain NAME goes. Raises OSError."""
        os.rename(self._scratch, f"{name}.gz")
        os.unlink(name)

    def close(self) -> None:
        """Let go. May be called twice."""
        for fd in (self._source, self._target):
            if fd >= 0:
                os.close(fd)
        self._source = self._target = -1
