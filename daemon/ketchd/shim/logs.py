"""Which log a container's output goes to."""

from __future__ import annotations

from ketchd.shim.jsonlog import JsonLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ketch_wire.launch import LogPlan
    from ketchd.shim.journallog import JournalLog
    from ketchd.shim.loop import Loop

    Log = JsonLog | JournalLog


def open_log(plan: LogPlan, loop: Loop) -> Log | None:
    """The plan's log; None when nothing is kept. Raises OSError."""
    written = None
    if plan.path and plan.driver != "none":
        written = JsonLog(
            plan.path, plan.max_size, plan.max_files, plan.attrs, loop if plan.compress else None
        )
    if plan.driver != "journald":
        return written
    from ketchd.shim.journallog import JournalLog  # only shims that need it

    return JournalLog(plan.journal_socket, plan.journal, written)
