"""Our own PID 1 (`--init`): reaps orphans, forwards signals to its one child, ends as that ended. Source: tini's contract."""

from __future__ import annotations

import os

from ketchd.kernel import lockdown, signals
from ketchd.kernel.process import set_command_line, set_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# These say something about PID 1 itself: a fault of its own, or the terminal's job control.
_OWN = frozenset((signals.SIGCHLD, signals.SIGTTIN, signals.SIGTTOU, 4, 5, 6, 7, 8, 11))


# Where the launcher's command line lies, and with it ours; noted while /proc is the host's.
COMMAND_LINE: list[tuple[int, int]] = []


def serve(child: int, argv: Sequence[str]) -> NoReturn:
    """Be PID 1 of `child`, which runs `argv`. Every signal is blocked already, so none was lost since the fork."""
    set_name("docker-init")
    for area in COMMAND_LINE:  # else ps inside would show how ketchd was started, with its paths
        set_command_line(
            area, " ".join(("/sbin/docker-init", "--", *argv)).encode("utf-8", "surrogateescape")
        )
    lockdown.close_all_but({0, 1, 2})
    for fd in (0, 1, 2):  # the streams end with the program, not with us
        os.close(fd)
    while True:
        number = signals.wait()
        if number != signals.SIGCHLD:
            if number not in _OWN:
                _forward(child, number)
            continue
        status = _reap(child)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _forward(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, or has become another user: then we may not


def _reap(child: int) -> int | None:
    """Everything that has ended; the child's status when it is among them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == child:
            ended = status
