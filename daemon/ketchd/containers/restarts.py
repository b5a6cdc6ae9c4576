"""Restart policies: whether and when an ended container starts again. Pure: time is passed in.

Source: Docker documentation "Start containers automatically"; the back-off is 100 ms, doubling, at most a minute, and
starts over when a run lasted ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, GOOD_RUN_SECONDS = 0.1, 60.0, 10.0


@dataclass(frozen=True, slots=True)
class Policy:
    """name: `no`, `always`, `on-failure` or `unless-stopped`; maximum: tries of on-failure, 0 for no limit."""

    name: str
    maximum: int = 0


def next_wait(
    policy: Policy,
    *,
    exit_code: int,
    tries: int,
    last_wait_seconds: float,
    uptime_seconds: float,
    stopped_by_hand: bool,
) -> float | None:
    """Seconds to wait before the next start, or None for none."""
    if stopped_by_hand or policy.name in ("", "no"):
        return None
    if policy.name == "on-failure" and (exit_code == 0 or (policy.maximum and tries >= policy.maximum)):
        return None
    if uptime_seconds >= GOOD_RUN_SECONDS or last_wait_seconds <= 0:
        return FIRST_WAIT_SECONDS
    return min(last_wait_seconds * 2, LONGEST_WAIT_SECONDS)


def starts_on_boot(
    policy: Policy, *, was_running: bool, exit_code: int, stopped_by_hand: bool, tries: int
) -> bool:
    """Whether a container that is found ended when ketchd starts should be started. tries: that it has had since a start by hand."""
    if policy.name == "always":
        return True
    if policy.name == "unless-stopped":
        return not stopped_by_hand
    has_tries = not policy.maximum or tries < policy.maximum
    return policy.name == "on-failure" and was_running and exit_code != 0 and has_tries
