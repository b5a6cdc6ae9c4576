"""Memory that a process has and does not need: what was freed, and programs' pages that it does not run at the moment."""

from __future__ import annotations

import ctypes

from ketchd.kernel.syscalls import libc

_MADV_DONTNEED = 4
_trim = getattr(libc, "malloc_trim", None)  # a C library other than glibc has none
_instructions: list[
    tuple[ctypes.c_void_p, ctypes.c_size_t]
] = []  # a forked process has them at the same places


def give_back() -> None:
    """Return freed pages to the kernel. Takes milliseconds. Source: malloc_trim(3)."""
    if _trim is not None:
        _trim(0)


def note_instructions() -> None:
    """Remember where the program's and its libraries' instructions are mapped now. Source: proc(5), maps."""
    _instructions.clear()
    with open("/proc/self/maps") as maps:
        for line in maps:
            area, rights, _, _, inode, *_ = line.split()
            if rights == "r-xp" and inode != "0":
                start, end = (int(address, 16) for address in area.split("-"))
                _instructions.append((ctypes.c_void_p(start), ctypes.c_size_t(end - start)))


def let_go_of_instructions() -> None:
    """Unmap what `note_instructions` saw, page by page mapped again when it is run. Never written, it stays in the page cache.

    For a process that sleeps for long. Source: madvise(2).
    """
    for start, size in _instructions:
        libc.madvise(start, size, _MADV_DONTNEED)
