"""What ketchd and a container's shim say to each other, and the plan of an exec.

Frames (`ketch_wire.frames`) over the socket that ketchd passed at the start, or over RUN_DIR/shim.sock afterwards. A
request carries `op` and `seq`; its answer `seq` and, if it failed, `failed` (a FAILED map). What happens by itself carries
`event`. A message that brings file descriptors says how many in `fds`. Both sides leave out keys they do not know: an old
shim meets a new daemon.

    start        outline (of the plan), whole (the plan as one frame), streams [STREAM…], ports (number of fds after the
                 streams')                                                           -> events child, then started or failed
    go           the network stands: the child may go on
    abort        nothing of it may stay
    signal       number
    attach       stream STREAM (one fd)
    ports        (any number of fds) sockets of published ports, held in place of those before
    resize       height, width
    exec         exec (ExecPlan), stream STREAM or None (one fd or none)              -> pid
    exec_resize  id, height, width
    exec_signal  id, number
    exec_seen    id: the exec's end is recorded, its stream may close and its code be forgotten (no answer)

    hello        version, id, state_dir, pid, start_time, state (starting, running, ended), execs {id: pid}, exit,
                 execs_ended {id: code}: not seen yet, ooms
    child        pid: its network namespace can be configured
    started      pid, start_time
    failed       FAILED: kind (`init`, `plain`), code (126, 127, 128), status (HTTP), message
    warning      message
    oom          ooms: how often memory ran out in this run
    exit         code, oom (bool), ooms (an older shim has none), finished_ns
    exec_exit    id, code
    detached     exec (its id, or "")

STREAM: stdin, stdout, stderr, multiplexed (bool), detach_keys, initial (bytes).
"""

from __future__ import annotations

TYPE_CHECKING = False  # this module is loaded into every shim: typing and dataclasses would cost it 2 MiB
if TYPE_CHECKING:
    from typing import Any

    from ketch_wire.launch import ProcessPlan

PROTOCOL_VERSION = 1
SOCKET_NAME = "shim.sock"
EXIT_NAME = "exit"
# One SCM_RIGHTS message carries at most 253 descriptors; more go ahead in messages of their own (`op: fds`).
FDS_PER_MESSAGE = 200


class ExecPlan:
    """One more process in a running container. id: the exec's. transient: it is ketchd's own, and is killed when ketchd is gone."""

    __slots__ = ("id", "process", "transient")

    def __init__(self, id: str, process: ProcessPlan, transient: bool = False) -> None:
        self.id = id
        self.process = process
        self.transient = transient

    def to_wire(self) -> dict[str, Any]:
        """As a map for `frames.pack`."""
        from ketch_wire.launch import to_plain

        return {"id": self.id, "process": to_plain(self.process), "transient": self.transient}

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> ExecPlan:
        """The plan again. Raises KeyError or TypeError on what is no plan."""
        from ketch_wire.launch import ProcessPlan

        known = ProcessPlan.__dataclass_fields__
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in wire["process"].items()
            if key in known
        }
        return ExecPlan(wire["id"], ProcessPlan(**values), bool(wire.get("transient")))
