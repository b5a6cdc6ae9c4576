"""What to do with a recorded container when ketchd starts: from what is seen of it to one decision. Pure and total."""

from __future__ import annotations

from enum import Enum

from ketchd.containers.lifecycle import State


class Decision(Enum):
    """What the restore journey carries out."""

    KEEP = "nothing to do"
    ADOPT = "the shim and its process live: supervise them again"
    FINISH = "it ended while nobody watched: record the exit that the shim left"
    FINISH_UNKNOWN = "it is gone and left no exit record: the exit stays unknown"
    UNDO_START = "a start was cut short: nothing of it may stay"
    REMOVE = "a removal was cut short: complete it"


def decide(state: State, *, shim_runs: bool, exit_recorded: bool) -> Decision:
    """state: as recorded. shim_runs: a shim answered and its process was executed. exit_recorded: an exit record lies there."""
    if state in (State.REMOVING, State.DEAD):
        return Decision.REMOVE
    if shim_runs:
        return Decision.ADOPT
    if state in (State.RUNNING, State.PAUSED) or (state is State.STARTING and exit_recorded):
        return Decision.FINISH if exit_recorded else Decision.FINISH_UNKNOWN
    if state is State.STARTING:
        return Decision.UNDO_START
    if state is State.RESTARTING:
        return Decision.FINISH_UNKNOWN
    return Decision.UNDO_START if exit_recorded and state is State.CREATED else Decision.KEEP
