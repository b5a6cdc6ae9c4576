"""The files of one container's log, opened: found by what they are and not by their names, since the shim renames them meanwhile.

PATH is the newest, PATH.1, PATH.2 … are older; a rotated one may have become PATH.N.gz, whose header says which inode it was
and when its last entry was written. The inode alone is not enough: once the plain file has gone, the next one may get its
number. Everything here waits for the disk: call it in a thread.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from ketchd.containers.logformat import time_of
from ketchd.shim.logarchive import COMMENT, read_comment

BLOCK = 256 * 1024
_NEAR = 128 * 1024  # more than an entry takes: 16 KiB, each byte of them as \\u00XX, and its attributes


class LogFile:
    """One file, read from `position` on. Close it."""

    def __init__(self, fd: int, compressed: bool) -> None:
        self._fd = fd
        info = os.fstat(fd)
        self.compressed = compressed
        self._inode = self._origin = info.st_ino
        self._last_time = b""
        self._inflater = zlib.decompressobj(31) if compressed else None
        self.position = 0
        if compressed:
            head = os.pread(fd, 512, 0)
            match = re.fullmatch(COMMENT, read_comment(head))
            if match is not None:
                self._origin, self._last_time = int(match[1]), match[2]

    def is_same(self, other: LogFile) -> bool:
        """Whether both are one file, by another name or compressed meanwhile. Both are open."""
        if self._inode == other._inode:
            return True
        if self.compressed == other.compressed or self._origin != other._origin:
            return False
        return self.last_time() == other.last_time()

    @property
    def size(self) -> int:
        """Bytes of a plain file now."""
        return os.fstat(self._fd).st_size

    def read(self, limit: int = BLOCK) -> bytes:
        """Some of the next bytes, decompressed; b"" at the end for now. Raises OSError, zlib.error."""
        if self._inflater is None:
            data = os.pread(self._fd, limit, self.position)
            self.position += len(data)
            return data
        while not self._inflater.eof:
            raw = self._inflater.unconsumed_tail
            if not raw:
                raw = os.pread(self._fd, 65536, self.position)
                self.position += len(raw)
            data = self._inflater.decompress(raw, limit)  # even of nothing: it may hold some back
            if data or not raw:
                return data
        return b""

    def rewind(self) -> None:
        """Read from the beginning."""
        self.position = 0
        if self._inflater is not None:
            self._inflater = zlib.decompressobj(31)

    def ends_before(self, stamp: bytes) -> bool:
        """Whether every entry is older than `stamp`."""
        last = self.last_time()
        return bool(last) and last < stamp

    def last_time(self) -> bytes:
        """When its last entry was written; b"" when there is none."""
        if self.compressed:
            return self._last_time
        near = os.pread(self._fd, _NEAR, max(0, self.size - _NEAR)).split(b"\n")
        return next((time for line in reversed(near) if (time := time_of(line))), b"")

    def seek_time(self, stamp: bytes) -> None:
        """To an entry that is older than `stamp`, near the first that is not: by halving, since entries lie in time order.

        A compressed file stays where it is.
        """
        if self._inflater is not None:
            return
        low, high = 0, self.size
        while high - low > BLOCK:
            middle = (low + high) // 2
            found = self._first_entry(middle)
            if found is None or found[1] >= stamp:
                high = middle
            else:
                low = found[0]
        self.position = low

    def _first_entry(self, offset: int) -> tuple[int, bytes] | None:
        """(where it begins, its time) of the first whole entry behind `offset`."""
        near = os.pread(self._fd, 2 * _NEAR, offset)
        at = near.find(b"\n") + 1
        while at and (end := near.find(b"\n", at)) >= 0:
            if time := time_of(near[at:end]):
                return offset + at, time
            at = end + 1
        return None

    def seek_tail(self, lines: int) -> int:
        """To where the last `lines` (at least 1) begin; returns how many are missing when there are fewer: all are read then."""
        if self._inflater is not None:
            return self._seek_compressed_tail(lines)
        position = end = self.size
        missing = lines
        while position > 0:
            step = min(BLOCK, position)
            block = os.pread(self._fd, step, position - step)
            if position == end and block.endswith(b"\n"):
                missing += 1  # the newline at the very end closes the last line
            count = block.count(b"\n")
            if count >= missing:
                cut = len(block)
                for _ in range(missing):
                    cut = block.rindex(b"\n", 0, cut)
                self.position = position - step + cut + 1
                return 0
            missing -= count
            position -= step
        self.position = 0
        return missing - 1 if end else missing  # the file's first line has no newline before it

    def _seek_compressed_tail(self, lines: int) -> int:
        total = sum(block.count(b"\n") for block in self._blocks())
        self.rewind()
        self.skip = max(0, total - lines)
        return max(0, lines - total)

    def _blocks(self) -> Iterator[bytes]:
        while block := self.read():
            yield block

    skip = 0  # lines to leave out at the beginning, of a compressed file

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_all(path: Path) -> list[LogFile]:
    """Every file of the log, newest first.

    Renames go upwards, so looking upwards none is missed; one that is met twice has just been renamed.
    """
    found: list[LogFile] = []
    number = 0
    while True:
        one = _open(path, number)
        if one is None and number:
            return found
        if one is not None:
            if any(one.is_same(other) for other in found):
                one.close()
            else:
                found.append(one)
        number += 1


def _open(path: Path, number: int) -> LogFile | None:
    """PATH for 0, else PATH.NUMBER or what it was compressed to."""
    name = f"{path}.{number}" if number else str(path)
    for candidate in (name, f"{name}.gz") if number else (name,):
        try:
            return LogFile(os.open(candidate, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), candidate != name)
        except FileNotFoundError:
            continue
    return None


def open_successor(path: Path, current: LogFile) -> tuple[LogFile | None, bool]:
    """(the file that follows `current`, None when it is the newest; whether `current` is still one of the log's files)."""
    files = open_all(path)
    place = next((at for at, one in enumerate(files) if one.is_same(current)), len(files))
    chosen = files[place - 1] if place else None
    for one in files:
        if one is not chosen:
            one.close()
    return chosen, place < len(files)
