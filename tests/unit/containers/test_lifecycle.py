"""The lifecycle table: total, and dockerd's answers."""

from __future__ import annotations

import pytest

from ketch_wire.faults import Conflict, NotModified
from ketchd.containers.lifecycle import TABLE, Happening, State, follow


def test_table_is_total() -> None:
    """Every state has an answer to everything that can happen."""
    assert set(TABLE) == {(state, happening) for state in State for happening in Happening}


@pytest.mark.parametrize("happening", [h for h in Happening if not h.name.startswith("ASK_")])
@pytest.mark.parametrize("state", list(State))
def test_what_was_observed_is_never_refused(state: State, happening: Happening) -> None:
    """A refusal is an answer to a client, not to the kernel."""
    assert follow(state, happening) in State


def test_start_of_a_running_container_changes_nothing() -> None:
    with pytest.raises(NotModified):
        follow(State.RUNNING, Happening.ASK_START)


def test_stop_of_an_ended_container_changes_nothing() -> None:
    with pytest.raises(NotModified):
        follow(State.EXITED, Happening.ASK_STOP)


def test_a_running_container_is_not_removed() -> None:
    with pytest.raises(Conflict, match=r'cannot remove container "/web": container is running'):
        follow(State.RUNNING, Happening.ASK_REMOVE, name="/web")


def test_exec_in_a_stopped_container() -> None:
    with pytest.raises(Conflict, match="container abc is not running"):
        follow(State.EXITED, Happening.ASK_EXEC, container_id="abc")
