"""seccomp(2): putting a filter on the calling process."""

from __future__ import annotations

import ctypes
import os

from ketchd.kernel.syscalls import libc

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Filter every further call of this process and its children. program: an array of struct sock_filter.

    Needs CAP_SYS_ADMIN or no_new_privs. Raises OSError. Source: seccomp(2), prctl(2) PR_SET_SECCOMP.
    """
    wanted = _FilterProgram(len(program) // 8, program)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(wanted), 0, 0) < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"seccomp filter of {wanted.length} instructions")
