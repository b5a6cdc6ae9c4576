"""unshare(2) and setns(2)."""

from __future__ import annotations

from ketchd.kernel.syscalls import check, libc

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000


def unshare(flags: int) -> None:
    """unshare(2)."""
    check(libc.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, flags: int) -> None:
    """setns(2)."""
    check(libc.setns(fd, flags), f"setns {flags:#x}")
