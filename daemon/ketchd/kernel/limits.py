"""prlimit(2) by Docker's names of the limits."""

from __future__ import annotations

import ctypes

from ketchd.kernel.syscalls import check, libc

NUMBERS = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
    "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
UNLIMITED = -1


class _Limit(ctypes.Structure):
    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


def _prlimit(name: str, new: _Limit | None, old: _Limit | None) -> None:
    check(
        libc.prlimit64(
            0, NUMBERS[name], None if new is None else ctypes.byref(new), None if old is None else ctypes.byref(old)
        ),
        f"prlimit {name}",
    )  # fmt: skip


def get_limit(name: str) -> tuple[int, int]:
    """(soft, hard) of the caller; -1 for unlimited. Raises KeyError for an unknown name."""
    old = _Limit()
    _prlimit(name, None, old)
    return _signed(old.soft), _signed(old.hard)


def set_limit(name: str, soft: int, hard: int) -> None:
    """Set the caller's limit; -1 for unlimited. Raises OSError (EPERM: `hard` is above what it has)."""
    _prlimit(name, _Limit(soft & 0xFFFFFFFFFFFFFFFF, hard & 0xFFFFFFFFFFFFFFFF), None)


def _signed(value: int) -> int:
    return UNLIMITED if value == 0xFFFFFFFFFFFFFFFF else value
