"""Restart policies as Docker documents them."""

from __future__ import annotations

import pytest

from ketchd.containers.restarts import Policy, next_wait, starts_on_boot


def wait(policy: Policy, **given: object) -> float | None:
    values = {
        "exit_code": 1,
        "tries": 0,
        "last_wait_seconds": 0.0,
        "uptime_seconds": 1.0,
        "stopped_by_hand": False,
    }
    return next_wait(policy, **{**values, **given})  # type: ignore[arg-type]


def test_no_policy_never_restarts() -> None:
    assert wait(Policy("no")) is None


def test_back_off_doubles_up_to_a_minute() -> None:
    seen, last = [], 0.0
    for _ in range(12):
        last = wait(Policy("always"), last_wait_seconds=last) or 0.0
        seen.append(last)
    assert seen[:4] == [0.1, 0.2, 0.4, 0.8]
    assert seen[-1] == 60.0


def test_a_good_run_starts_the_back_off_anew() -> None:
    assert wait(Policy("always"), last_wait_seconds=51.2, uptime_seconds=10.0) == 0.1


@pytest.mark.parametrize(("code", "tries", "expected"), [(0, 0, None), (1, 0, 0.1), (1, 3, None)])
def test_on_failure_counts(code: int, tries: int, expected: float | None) -> None:
    assert wait(Policy("on-failure", 3), exit_code=code, tries=tries) == expected


def test_a_stop_by_hand_disables_restarting() -> None:
    assert wait(Policy("always"), stopped_by_hand=True) is None


@pytest.mark.parametrize(
    ("name", "by_hand", "code", "starts"),
    [
        ("always", True, 0, True),
        ("unless-stopped", True, 0, False),
        ("unless-stopped", False, 0, True),
        ("on-failure", False, 1, True),
        ("on-failure", False, 0, False),
        ("no", False, 1, False),
    ],
)
def test_start_on_boot(name: str, by_hand: bool, code: int, starts: bool) -> None:
    policy = Policy(name)
    assert (
        starts_on_boot(policy, was_running=True, exit_code=code, stopped_by_hand=by_hand, tries=9) is starts
    )


@pytest.mark.parametrize(("tries", "starts"), [(2, True), (3, False)])
def test_start_on_boot_gives_no_further_tries(tries: int, starts: bool) -> None:
    policy = Policy("on-failure", 3)
    assert starts_on_boot(policy, was_running=True, exit_code=1, stopped_by_hand=False, tries=tries) is starts
