"""Which bytes of a blob are here, which to ask for next, and what an answer to a range request holds. Pure.

Source: RFC 9110 section 14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ketch_wire.faults import EngineFailure

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_LINE = re.compile(rb"(\d{1,18}) (\d{1,18})\n")


class Extents:
    """Byte ranges [start, stop), merged and in order."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._parts)

    def add(self, start: int, stop: int) -> None:
        """These bytes are here; they may be known already."""
        if start >= stop:
            return
        merged: list[tuple[int, int]] = []
        for begin, end in self._parts:
            if end < start or begin > stop:
                merged.append((begin, end))
            else:
                start, stop = min(start, begin), max(stop, end)
        merged.append((start, stop))
        self._parts = sorted(merged)

    def clear(self) -> None:
        """Nothing is here."""
        self._parts = []

    @property
    def total(self) -> int:
        """How many bytes are here."""
        return sum(stop - start for start, stop in self._parts)

    @property
    def frontier(self) -> int:
        """Up to where nothing is missing."""
        return self._parts[0][1] if self._parts and self._parts[0][0] == 0 else 0

    def missing(self, size: int) -> list[tuple[int, int]]:
        """The gaps of a blob of `size` bytes."""
        gaps, at = [], 0
        for start, stop in self._parts:
            if start > at:
                gaps.append((at, min(start, size)))
            at = max(at, stop)
        if at < size:
            gaps.append((at, size))
        return [(start, stop) for start, stop in gaps if start < stop]


def line(start: int, stop: int) -> bytes:
    """The record of one received range in the file beside a partial blob."""
    return b"%d %d\n" % (start, stop)


def read_lines(content: bytes, size: int) -> Extents:
    """The ranges that the records tell of. A torn last record, and what reaches beyond `size`, counts for nothing."""
    extents = Extents()
    at = 0
    while match := _LINE.match(content, at):
        start, stop = int(match[1]), int(match[2])
        if start < stop <= size:
            extents.add(start, stop)
        at = match.end()
    return extents


def split(gaps: list[tuple[int, int]], piece: int) -> list[tuple[int, int]]:
    """The gaps cut into requests of at most `piece` bytes, in order."""
    return [
        (start, min(start + piece, stop))
        for begin, stop in gaps
        for start in range(begin, stop, piece)
    ]  # fmt: skip


def header(start: int, stop: int | None) -> str:
    """The Range header for [start, stop); None is to the end."""
    return f"bytes={start}-{'' if stop is None else stop - 1}"


def is_ranged(status: int, content_range: str | None, start: int, size: int) -> bool:
    """Whether an answer holds what was asked for from `start` on; False when the server ignored it and sends everything.

    Raises EngineFailure when it says something else.
    """
    if status == 200:
        return False
    match = _CONTENT_RANGE.fullmatch(content_range.strip()) if content_range else None
    if status != 206 or match is None:
        raise EngineFailure(f"the registry answers a range request with status {status} and no usable range")
    if int(match[1]) != start:
        raise EngineFailure(f"the registry answers a request from byte {start} with bytes from {match[1]}")
    if match[3] != "*" and int(match[3]) != size:
        raise EngineFailure(f"the registry's blob has {match[3]} bytes, its manifest says {size}")
    return True
