"""What a process gives up for good: new privileges, system calls, open files, its old keyring."""

from __future__ import annotations

import ctypes
import os

from ketchd.kernel.process import PR_SET_NO_NEW_PRIVS, prctl
from ketchd.kernel.syscalls import check, libc, syscall

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_SYS_CLOSE_RANGE, _CLOSE_RANGE_CLOEXEC = 436, 4
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_ALL_FDS = 0xFFFFFFFF


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def install_seccomp(program: bytes) -> None:
    """Filter the caller's system calls from now on by `program`: assembled classic BPF, 8 bytes an instruction."""
    buffer = ctypes.create_string_buffer(program, len(program))
    described = _Program(len(program) // 8, ctypes.addressof(buffer))
    check(
        libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0),
        "prctl PR_SET_SECCOMP",
    )


def close_on_exec_from(first: int) -> None:
    """Every fd from `first` on closes with the next execve."""
    syscall(_SYS_CLOSE_RANGE, first, _ALL_FDS, _CLOSE_RANGE_CLOEXEC, what="close_range")


def close_all_but(keep: set[int]) -> None:
    """Close every fd that is not in `keep`."""
    first = 0
    for fd in sorted(keep):
        if fd > first:
            syscall(_SYS_CLOSE_RANGE, first, fd - 1, 0, what="close_range")
        first = fd + 1
    syscall(_SYS_CLOSE_RANGE, first, _ALL_FDS, 0, what="close_range")


def new_session_keyring(name: str) -> None:
    """A keyring of its own, so that nothing of the daemon's keys is reachable. Raises OSError."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, os.fsencode(name), what="keyctl")
