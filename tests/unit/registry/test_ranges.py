"""Ranges: gaps, records that survive a crash, and answers that are not what was asked for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import EngineFailure
from ketchd.registry import ranges
from ketchd.registry.ranges import Extents

SIZE = 64
_PIECES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12)


@given(_PIECES)
def test_extents_are_the_union(pieces: list[tuple[int, int]]) -> None:
    """Against a set of single bytes."""
    extents, here = Extents(), set[int]()
    for start, stop in pieces:
        extents.add(start, stop)
        here |= set(range(start, stop))

    assert {byte for start, stop in extents for byte in range(start, stop)} == here
    assert extents.total == len(here)
    assert extents.frontier == next(byte for byte in range(SIZE + 1) if byte not in here)
    gaps = {byte for start, stop in extents.missing(SIZE) for byte in range(start, stop)}
    assert gaps == set(range(SIZE)) - here
    parts = list(extents)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(parts))


@given(_PIECES, st.integers(0, 200))
def test_a_torn_record_loses_one_piece(pieces: list[tuple[int, int]], cut: int) -> None:
    """What a crash leaves of the file is read up to the tear."""
    whole = b"".join(ranges.line(start, stop) for start, stop in pieces)
    found = ranges.read_lines(whole[:cut], SIZE)
    lines = whole[:cut].count(b"\n")

    expected = Extents()
    for start, stop in pieces[:lines]:
        expected.add(start, stop)
    assert list(found) == list(expected)


def test_a_record_beyond_the_blob_counts_for_nothing() -> None:
    """The size comes from the manifest."""
    assert list(ranges.read_lines(b"0 10\n10 65\n5 5\n", SIZE)) == [(0, 10)]
    assert list(ranges.read_lines(b"garbage\n0 10\n", SIZE)) == []


def test_gaps_are_cut_into_requests() -> None:
    """Of a bounded size, none empty."""
    assert ranges.split([(0, 10), (12, 13)], 4) == [(0, 4), (4, 8), (8, 10), (12, 13)]
    assert ranges.header(0, 10) == "bytes=0-9"
    assert ranges.header(5, None) == "bytes=5-"


def test_an_answer_is_checked_against_the_question() -> None:
    """200 is everything; 206 must be the range and the blob that were meant."""
    assert ranges.is_ranged(206, "bytes 5-9/64", 5, SIZE)
    assert ranges.is_ranged(206, "bytes 5-9/*", 5, SIZE)
    assert not ranges.is_ranged(200, None, 5, SIZE)
    for status, header in (
        (206, None),
        (206, "bytes 4-9/64"),
        (206, "bytes 5-9/65"),
        (206, "items 5-9/64"),
        (204, None),
    ):
        with pytest.raises(EngineFailure):
            ranges.is_ranged(status, header, 5, SIZE)
