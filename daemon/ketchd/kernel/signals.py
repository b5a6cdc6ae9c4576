"""Signal masks and dispositions without the enumerations of the signal module: they cost each shim 0.9 MiB."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
from collections.abc import Iterable

SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGTERM, SIGCHLD, SIGSTOP, SIGTTIN, SIGTTOU = (
    1,
    2,
    9,
    13,
    15,
    17,
    19,
    21,
    22,
)
_SIG_SETMASK = 2
_LAST = 64


def reset_all() -> None:
    """Every signal by default and none blocked, as an executed program expects them."""
    for number in range(1, _LAST + 1):
        if number not in (SIGKILL, SIGSTOP, 32, 33):  # 32 and 33 belong to the C library
            try:
                _signal.signal(number, _signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    _signal.pthread_sigmask(_SIG_SETMASK, ())


def default(number: int) -> None:
    """The signal's default action."""
    _signal.signal(number, _signal.SIG_DFL)


def ignore(number: int) -> None:
    """Ignore it."""
    _signal.signal(number, _signal.SIG_IGN)


def block_all() -> None:
    """Every signal waits for `wait`."""
    _signal.pthread_sigmask(_SIG_SETMASK, range(1, _LAST + 1))


def unblock_all() -> None:
    """No signal waits."""
    _signal.pthread_sigmask(_SIG_SETMASK, ())


def wait(numbers: Iterable[int] = range(1, _LAST + 1)) -> int:
    """The next of the blocked signals `numbers`."""
    number: int = _signal.sigwaitinfo(numbers).si_signo
    return number
