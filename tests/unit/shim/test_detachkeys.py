"""Detach keys: found wherever the reads cut them, and nothing else is held back or lost."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketchd.shim.detachkeys import DetachKeys

# A busy machine is no reason to fail.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEYS = b"\x10\x11"


@pytest.mark.parametrize(
    ("typed", "delivered", "detached"),
    [
        (b"abc", b"abc", False), (b"\x10\x11", b"", True), (b"ab\x10\x11cd", b"ab", True), (b"\x10a", b"\x10a", False),
        (b"\x10\x10\x11", b"\x10", True), (b"\x11\x10", b"\x11", False),
    ],
)  # fmt: skip
def test_the_sequence(typed: bytes, delivered: bytes, detached: bool) -> None:
    assert DetachKeys(KEYS).feed(typed) == (delivered, detached)


@CALM
@given(st.lists(st.sampled_from([b"a", b"\x10", b"\x11", b"xy"]), max_size=20), st.integers(1, 5))
def test_where_the_reads_cut_changes_nothing(parts: list[bytes], size: int) -> None:
    typed = b"".join(parts)
    whole = DetachKeys(KEYS).feed(typed)
    keys, out, detached = DetachKeys(KEYS), b"", False
    for start in range(0, len(typed), size):
        some, detached = keys.feed(typed[start : start + size])
        out += some
        if detached:
            break

    assert (out, detached) == whole
    assert detached == (KEYS in typed)
    if not detached:
        assert typed.startswith(out) and typed[len(out) :] in (b"", KEYS[:1])


def test_without_keys_everything_passes() -> None:
    assert DetachKeys(b"").feed(KEYS) == (KEYS, False)
