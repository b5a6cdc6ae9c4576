"""prctl(2) and what a process says of itself."""

from __future__ import annotations

import ctypes
import os

from ketchd.kernel.syscalls import check, libc

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME = 1, 4, 15
PR_SET_NO_NEW_PRIVS, PR_SET_KEEPCAPS, PR_CAPBSET_DROP = 38, 8, 24
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    """prctl(2) with number arguments."""
    return check(libc.prctl(option, value, third, 0, 0), f"prctl {option}")


def set_name(name: str) -> None:
    """The name that ps shows in brackets, 15 bytes."""
    check(libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl PR_SET_NAME")


def command_line_area() -> tuple[int, int]:
    """(address, bytes) of our command line where execve put it; in a fork it lies in the same place.

    Source: proc_pid_stat(5), fields 48 and 49.
    """
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return int(fields[45]), int(fields[46]) - int(fields[45])


def set_command_line(area: tuple[int, int], text: bytes) -> None:
    """What ps shows of us, cut to what the area holds.

    Source: Linux fs/proc/base.c, get_mm_proctitle: where the last byte is not NUL, the line ends at the first one.
    """
    address, size = area
    ctypes.memset(address, 0, size)
    ctypes.memmove(address, text, min(len(text), size - 2))
    ctypes.memset(address + size - 1, 1, 1)


def start_time(pid: int) -> int:
    """Clock ticks after boot when `pid` started (/proc/PID/stat field 22). Raises FileNotFoundError."""
    return int(read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])


def read_small(path: str) -> bytes:
    """A file of the kernel's that one read(2) of a page gets whole; shims are spared the objects of `open`. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
