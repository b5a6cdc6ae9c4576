"""capabilities(7): names, the thread's sets, the bounding set."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable

from ketchd.kernel.process import PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAPBSET_DROP, prctl
from ketchd.kernel.syscalls import check, libc

NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
CAP_SYS_ADMIN, CAP_SETPCAP = 21, 8
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32),
    )  # fmt: skip


def mask(names: Iterable[str]) -> int:
    """The bits of `names`. Raises ValueError for an unknown one."""
    bits = 0
    for name in names:
        bits |= 1 << NAMES.index(name)
    return bits


def permitted() -> int:
    """The caller's permitted set."""
    sets = (_Sets * 2)()
    check(libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), sets), "capget")
    return int(sets[0].permitted) | int(sets[1].permitted) << 32


def capset(effective: int, permitted_set: int) -> None:
    """The caller's sets; inheritable becomes empty (CVE-2022-24769)."""
    sets = (_Sets * 2)(
        _Sets(effective & 0xFFFFFFFF, permitted_set & 0xFFFFFFFF, 0),
        _Sets(effective >> 32, permitted_set >> 32, 0),
    )
    check(libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), sets), "capset")


def drop_bounding(keep: int) -> None:
    """Take everything but `keep` out of the bounding set, and empty the ambient set."""
    for number in range(64):
        if keep >> number & 1:
            continue
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:
                break  # the first number that this kernel does not know
            raise
    try:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
