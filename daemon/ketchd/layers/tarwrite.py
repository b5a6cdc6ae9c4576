"""Writing tars, always the same bytes for the same members: headers (pure), and a writer over a sink of bytes and copies."""

from __future__ import annotations

from typing import Protocol

from ketchd.layers.tarheaders import BLOCK, REGULAR, Entry, header, shown

__all__ = ["Sink", "TarWriter", "header"]


class Sink(Protocol):
    """Where a tar goes: a LayerFile, or anything with its two methods."""

    def write(self, data: bytes) -> None:
        """The next bytes."""

    def copy(self, source: int, offset: int, length: int) -> None:
        """The next `length` bytes, from the file descriptor `source`."""


class TarWriter:
    """Members in the order of `add`, then `finish`. Order, names and times are the caller's: for a reproducible tar, sort."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.members = 0

    def add(self, entry: Entry, data: bytes | None = None, *, source: int = -1, offset: int = 0) -> None:
        """One member. A regular file's `entry.stored` bytes are `data`, or lie at `offset` of the descriptor `source`."""
        length = entry.stored if entry.type == REGULAR else 0
        if data is not None and len(data) != length:
            raise ValueError(f"{shown(entry.name)} has {len(data)} bytes, its header says {length}")
        self._sink.write(header(entry))
        if length:
            if data is not None:
                self._sink.write(data)
            else:
                self._sink.copy(source, offset, length)
            self._sink.write(bytes(-length % BLOCK))
        self.members += 1

    def finish(self) -> None:
        """The end-of-archive blocks."""
        self._sink.write(bytes(2 * BLOCK))
