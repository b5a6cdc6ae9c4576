"""Retries: how often, how long, and for whom not at all."""

from __future__ import annotations

import pytest

from ketchd.registry.retries import Pace, Policy, retry_after, seconds_words

POLICY = Policy(attempts=5, first_seconds=0.5, longest_seconds=4.0, patience_seconds=60.0)


def test_waits_double_up_to_a_limit_and_end() -> None:
    """Chance spreads them over their second half."""
    assert [POLICY.wait(failures, 1.0) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 4.0, None]
    assert [POLICY.wait(failures, 0.0) for failures in range(1, 5)] == [0.25, 0.5, 1.0, 2.0]


def test_what_a_server_asks_for_is_honoured() -> None:
    """Never sooner; beyond the patience the user is told instead."""
    assert POLICY.wait(1, 0.0, asked=7.0) == 7.0
    assert 7.0 <= (POLICY.wait(1, 1.0, asked=7.0) or 0) <= 8.0
    assert POLICY.wait(1, 0.5, asked=61.0) is None
    assert POLICY.wait(5, 0.5, asked=1.0) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("30", 30.0),
        (" 0 ", 0.0),
        ("-1", None),
        ("1e9", None),
        ("9" * 30, None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 60.0),
        ("Wed, 21 Oct 2015 07:26:00 GMT", 0.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after_in_both_forms(text: str | None, expected: float | None) -> None:
    """Seconds, or a date; the past is now."""
    assert retry_after(text, 1445412420.0) == expected


def test_a_wait_is_shown_as_dockerd_shows_it() -> None:
    """Rounded up, at least one."""
    assert [seconds_words(seconds) for seconds in (0.1, 1.0, 1.2, 5.0)] == [
        "1 second",
        "1 second",
        "2 seconds",
        "5 seconds",
    ]


def test_a_dripping_peer_is_as_good_as_dead() -> None:
    """Every window must bring its least."""
    pace = Pace(window_seconds=60, least_bytes=100)

    assert not any(pace.is_too_slow(float(second), 2) for second in range(60))
    assert not pace.is_too_slow(60.0, 0)
    assert not any(pace.is_too_slow(60.0 + second, 1) for second in range(60))
    assert pace.is_too_slow(120.0, 0)
