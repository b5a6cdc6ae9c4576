"""unshare(2), setns(2), and the names of a uts namespace."""

from __future__ import annotations

import os

from ketchd.kernel.syscalls import check, libc

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000


def unshare(flags: int) -> None:
    """unshare(2)."""
    check(libc.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, flags: int) -> None:
    """setns(2)."""
    check(libc.setns(fd, flags), f"setns {flags:#x}")


def set_hostname(name: str) -> None:
    """sethostname(2) in the caller's uts namespace."""
    encoded = os.fsencode(name)
    check(libc.sethostname(encoded, len(encoded)), f"sethostname {name}")


def set_domainname(name: str) -> None:
    """setdomainname(2) in the caller's uts namespace."""
    encoded = os.fsencode(name)
    check(libc.setdomainname(encoded, len(encoded)), f"setdomainname {name}")
