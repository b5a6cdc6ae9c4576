"""Signal masks and dispositions without the enumerations of the signal module: they cost each shim 0.9 MiB."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
from collections.abc import Iterable

SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGTERM, SIGCHLD, SIGSTOP = 1, 2, 9, 13, 15, 17, 19
SIGTTIN, SIGTTOU = 21, 22
# What the launcher ignores; all else it has by default.
IGNORED_BY_LAUNCHER = (SIGHUP, SIGINT, SIGPIPE)
# And a shim. SIGTERM goes to every process of a unit that systemd stops: the container is to have its own grace then, and
# somebody who notes how it ended.
IGNORED_BY_US = (*IGNORED_BY_LAUNCHER, SIGTERM)
_SIG_SETMASK = 2
# 32 and 33 belong to the C library
_ALL = (*range(1, 32), *range(34, 65))


def reset_all() -> None:
    """Every signal by default and none blocked."""
    default(*(number for number in _ALL if number not in (SIGKILL, SIGSTOP)))
    unblock_all()


def default(*numbers: int) -> None:
    """The signals' default action."""
    for number in numbers:
        _signal.signal(number, _signal.SIG_DFL)


def ignore(*numbers: int) -> None:
    """Ignore them."""
    for number in numbers:
        _signal.signal(number, _signal.SIG_IGN)


def block_all() -> None:
    """Every signal waits for `wait`."""
    _signal.pthread_sigmask(_SIG_SETMASK, _ALL)


def unblock_all() -> None:
    """No signal waits."""
    _signal.pthread_sigmask(_SIG_SETMASK, ())


def wait(numbers: Iterable[int] = _ALL) -> int:
    """The next of the blocked signals `numbers`."""
    number: int = _signal.sigwaitinfo(numbers).si_signo
    return number
