"""fork(2), and clone3(2) straight into a cgroup."""

from __future__ import annotations

import ctypes
import errno
import os

_SYS_CLONE3 = 435
_CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD = 17
CLONE_PARENT = 0x8000

# The interpreter's lock is kept over the call (PyDLL), as os.fork keeps it.
_api = ctypes.PyDLL(None, use_errno=True)
_api.syscall.restype = ctypes.c_long


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    )  # fmt: skip


def fork_into_cgroup(cgroup: int, flags: int = 0) -> int:
    """fork(2) whose child is born in the cgroup v2 directory fd `cgroup` (-1: in ours) and in the new namespaces of `flags`: 0 in the child.

    With CLONE_PARENT among `flags` it is not our child, but our parent's.
    A migration by cgroup.procs waits for an RCU grace period (5 to 20 ms); being born there costs nothing.
    Raises OSError: ENOSYS and E2BIG before Linux 5.7.
    """
    if cgroup >= 0:
        flags |= _CLONE_INTO_CGROUP
    arguments = _CloneArgs(
        flags=flags, exit_signal=0 if flags & CLONE_PARENT else _SIGCHLD, cgroup=max(cgroup, 0)
    )
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _api.syscall(
        ctypes.c_long(_SYS_CLONE3), ctypes.byref(arguments), ctypes.c_size_t(ctypes.sizeof(arguments))
    )
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code), "clone3")
    return pid


def is_too_old(error: OSError) -> bool:
    """Whether the kernel does not know CLONE_INTO_CGROUP."""
    return error.errno in (errno.ENOSYS, errno.E2BIG, errno.EINVAL, errno.EPERM)
