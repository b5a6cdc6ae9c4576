"""Our own PID 1 (`--init`): reaps orphans, forwards signals to its one child, ends as that ended. Source: tini's contract."""

from __future__ import annotations

import os

from ketchd.kernel import lockdown, signals
from ketchd.kernel.process import set_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# These say something about PID 1 itself: a fault of its own, or the terminal's job control.
_OWN = frozenset((signals.SIGCHLD, signals.SIGTTIN, signals.SIGTTOU, 4, 5, 6, 7, 8, 11))


def serve(child: int) -> NoReturn:
    """Be PID 1 of `child`. Every signal is blocked already, so none was lost since the fork."""
    set_name("docker-init")
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
    except ProcessLookupError:
        pass


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
