"""What a file's bytes need on their way to the disk, where `os` has no name for it."""

from __future__ import annotations

import ctypes

from ketchd.kernel.syscalls import check, libc

SYNC_FILE_RANGE_WRITE = 2
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def sync_file_range(fd: int, offset: int, length: int, flags: int, what: str = "sync_file_range") -> None:
    """sync_file_range(2)."""
    check(libc.sync_file_range(fd, offset, length, flags), what)


def syncfs(fd: int, what: str = "syncfs") -> None:
    """syncfs(2)."""
    check(libc.syncfs(fd), what)
