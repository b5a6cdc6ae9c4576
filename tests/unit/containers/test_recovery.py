"""What a restarted ketchd decides about each container."""

from __future__ import annotations

import itertools

import pytest

from ketchd.containers.lifecycle import State
from ketchd.containers.recovery import Decision, decide


@pytest.mark.parametrize(
    ("state", "shim", "left"), list(itertools.product(State, (False, True), (False, True)))
)
def test_total(state: State, shim: bool, left: bool) -> None:
    """There is a decision for everything that may be found."""
    assert decide(state, shim_runs=shim, exit_recorded=left) in Decision


@pytest.mark.parametrize(
    ("state", "shim", "left", "decision"),
    [
        (State.RUNNING, True, False, Decision.ADOPT),
        (State.RUNNING, False, True, Decision.FINISH),
        (State.RUNNING, False, False, Decision.FINISH_UNKNOWN),
        (State.CREATED, True, False, Decision.ADOPT),
        (State.CREATED, False, False, Decision.KEEP),
        (State.REMOVING, False, False, Decision.REMOVE),
        (State.EXITED, False, True, Decision.KEEP),
    ],
)
def test_decisions(state: State, shim: bool, left: bool, decision: Decision) -> None:
    assert decide(state, shim_runs=shim, exit_recorded=left) is decision
