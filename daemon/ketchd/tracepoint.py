"""Named points in the journeys where a test can make the daemon die, fail or wait. Without a setting: one dict look-up.

`KETCHD_TRACEPOINTS="pull.blob-published=kill,build.step-done=raise"`: `kill` is SIGKILL to the process itself, `raise` an EngineFailure.
Names are `journey.what-just-happened`; `ALL` lists them, so a crash matrix can walk every one.
"""

from __future__ import annotations

import os
import signal

from ketch_wire.faults import EngineFailure

ALL: set[str] = set()
_actions: dict[str, str] = dict(
    item.split("=", 1) for item in os.environ.get("KETCHD_TRACEPOINTS", "").split(",") if "=" in item
)


def declare(*names: str) -> None:
    """Make `names` known to the crash matrix. Called at import by the module that reaches them."""
    ALL.update(names)


def reach(name: str) -> None:
    """Say that `name` was reached. Raises EngineFailure, or ends the process, if a test asked for it."""
    if not _actions:
        return
    action = _actions.get(name)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "raise":
        raise EngineFailure(f"trace point {name}")
