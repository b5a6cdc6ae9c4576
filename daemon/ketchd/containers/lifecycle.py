"""The life of a container as one total table: (state, happening) -> what follows.

States are Docker's `State.Status` words plus `starting` (shown as `created` or `exited`, whichever it was before).
`asked` happenings come from a client and may be refused; observed ones (started, exited …) never are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ketch_wire.faults import Conflict, Fault, NotModified


class State(Enum):
    """Where a container is. The value is what the Engine API shows."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"


class Happening(Enum):
    """What a client asks or the supervisor observes."""

    ASK_START = "start"
    ASK_STOP = "stop"
    ASK_KILL = "kill"
    ASK_PAUSE = "pause"
    ASK_UNPAUSE = "unpause"
    ASK_REMOVE = "remove"
    ASK_EXEC = "exec"
    ASK_ATTACH = "attach"
    STARTED = "started"
    START_FAILED = "start failed"
    EXITED = "exited"
    BACK_OFF = "back off"
    PAUSED = "paused"
    UNPAUSED = "unpaused"
    REMOVE_FAILED = "remove failed"


@dataclass(frozen=True, slots=True)
class Then:
    """The next state."""

    state: State


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request fails: fault class and message, with {id} and {name} filled in by `follow`."""

    fault: type[Fault]
    text: str


Outcome = Then | Refuse

_NOT_RUNNING = Refuse(Conflict, "container {id} is not running")
_REMOVING = Refuse(Conflict, "container is marked for removal and cannot be started")
_IN_PROGRESS = Refuse(Conflict, "removal of container {bare} is already in progress")
_SAME = Refuse(NotModified, "")
_BUSY = Refuse(Conflict, "container {id} is starting, try again when it runs")
_PAUSED_EXEC = Refuse(Conflict, "container {id} is paused, unpause the container before exec")
_RESTARTING = Refuse(Conflict, "container {id} is restarting, wait until the container is running")

_S, _H = State, Happening


def _row(state: State, **outcomes: Outcome | State) -> dict[tuple[State, Happening], Outcome]:
    row = {}
    for name, outcome in outcomes.items():
        row[(state, Happening[name.upper()])] = Then(outcome) if isinstance(outcome, State) else outcome
    return row


TABLE: dict[tuple[State, Happening], Outcome] = {
    **_row(
        _S.CREATED,
        ask_start=_S.STARTING, ask_stop=_SAME, ask_kill=_NOT_RUNNING, ask_pause=_NOT_RUNNING,
        ask_unpause=Refuse(Conflict, "container {id} is not paused"), ask_remove=_S.REMOVING,
        ask_exec=_NOT_RUNNING, ask_attach=_S.CREATED, started=_S.RUNNING, start_failed=_S.CREATED,
        exited=_S.EXITED, back_off=_S.RESTARTING, paused=_S.PAUSED, unpaused=_S.CREATED, remove_failed=_S.DEAD,
    ),
    **_row(
        _S.STARTING,
        ask_start=_SAME, ask_stop=_BUSY, ask_kill=_BUSY, ask_pause=_BUSY, ask_unpause=_BUSY,
        ask_remove=_BUSY, ask_exec=_BUSY, ask_attach=_S.STARTING, started=_S.RUNNING,
        start_failed=_S.CREATED, exited=_S.EXITED, back_off=_S.RESTARTING, paused=_S.PAUSED,
        unpaused=_S.RUNNING, remove_failed=_S.DEAD,
    ),
    **_row(
        _S.RUNNING,
        ask_start=_SAME, ask_stop=_S.RUNNING, ask_kill=_S.RUNNING, ask_pause=_S.PAUSED,
        ask_unpause=Refuse(Conflict, "container {id} is not paused"),
        ask_remove=Refuse(
            Conflict,
            'cannot remove container "{name}": container is running: '
            "stop the container before removing or force remove",
        ),
        ask_exec=_S.RUNNING, ask_attach=_S.RUNNING, started=_S.RUNNING, start_failed=_S.EXITED,
        exited=_S.EXITED, back_off=_S.RESTARTING, paused=_S.PAUSED, unpaused=_S.RUNNING, remove_failed=_S.RUNNING,
    ),
    **_row(
        _S.PAUSED,
        ask_start=Refuse(Conflict, "cannot start a paused container, try unpause instead"),
        ask_stop=_S.PAUSED, ask_kill=_S.PAUSED,
        ask_pause=Refuse(Conflict, "container {id} is already paused"), ask_unpause=_S.RUNNING,
        ask_remove=Refuse(
            Conflict,
            'cannot remove container "{name}": container is paused and must be unpaused first',
        ),
        ask_exec=_PAUSED_EXEC,
        ask_attach=Refuse(Conflict, "container {id} is paused, unpause the container before attach"),
        started=_S.PAUSED, start_failed=_S.EXITED, exited=_S.EXITED, back_off=_S.RESTARTING,
        paused=_S.PAUSED, unpaused=_S.RUNNING, remove_failed=_S.PAUSED,
    ),
    **_row(
        _S.RESTARTING,
        ask_start=_S.STARTING, ask_stop=_S.EXITED, ask_kill=_S.EXITED, ask_pause=_RESTARTING,
        ask_unpause=Refuse(Conflict, "container {id} is not paused"),
        ask_remove=Refuse(
            Conflict,
            'cannot remove container "{name}": container is restarting: '
            "stop the container before removing or force remove",
        ),
        ask_exec=_RESTARTING, ask_attach=_RESTARTING, started=_S.RUNNING, start_failed=_S.EXITED,
        exited=_S.EXITED, back_off=_S.RESTARTING, paused=_S.PAUSED, unpaused=_S.RUNNING, remove_failed=_S.DEAD,
    ),
    **_row(
        _S.EXITED,
        ask_start=_S.STARTING, ask_stop=_SAME, ask_kill=_NOT_RUNNING, ask_pause=_NOT_RUNNING,
        ask_unpause=Refuse(Conflict, "container {id} is not paused"), ask_remove=_S.REMOVING,
        ask_exec=_NOT_RUNNING, ask_attach=_S.EXITED, started=_S.RUNNING, start_failed=_S.EXITED,
        exited=_S.EXITED, back_off=_S.RESTARTING, paused=_S.PAUSED, unpaused=_S.EXITED, remove_failed=_S.DEAD,
    ),
    **_row(
        _S.REMOVING,
        ask_start=_REMOVING, ask_stop=_SAME, ask_kill=_NOT_RUNNING, ask_pause=_NOT_RUNNING,
        ask_unpause=_NOT_RUNNING, ask_remove=_IN_PROGRESS, ask_exec=_NOT_RUNNING,
        ask_attach=_IN_PROGRESS, started=_S.REMOVING, start_failed=_S.REMOVING, exited=_S.REMOVING,
        back_off=_S.REMOVING, paused=_S.REMOVING, unpaused=_S.REMOVING, remove_failed=_S.DEAD,
    ),
    **_row(
        _S.DEAD,
        ask_start=_REMOVING, ask_stop=_SAME, ask_kill=_NOT_RUNNING, ask_pause=_NOT_RUNNING,
        ask_unpause=_NOT_RUNNING, ask_remove=_S.REMOVING, ask_exec=_NOT_RUNNING,
        ask_attach=_NOT_RUNNING, started=_S.DEAD, start_failed=_S.DEAD, exited=_S.DEAD,
        back_off=_S.DEAD, paused=_S.DEAD, unpaused=_S.DEAD, remove_failed=_S.DEAD,
    ),
}  # fmt: skip


def follow(state: State, happening: Happening, *, container_id: str = "", name: str = "") -> State:
    """The state after `happening`. Raises the table's fault when the request is refused."""
    outcome = TABLE[(state, happening)]
    if isinstance(outcome, Refuse):
        raise outcome.fault(outcome.text.format(id=container_id, name=name, bare=name.removeprefix("/")))
    return outcome.state
