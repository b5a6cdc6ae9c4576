"""mount(2) and its younger relatives."""

from __future__ import annotations

import os

from ketchd.kernel.syscalls import check, libc, syscall

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 0x20, 0x1000, 0x2000, 0x4000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x20000, 0x40000, 0x80000, 0x100000
MS_RELATIME, MS_STRICTATIME, MS_NOATIME = 0x200000, 0x1000000, 0x400
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


def mount(source: str | None, target: str, fstype: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    check(
        libc.mount(
            None if source is None else os.fsencode(source),
            os.fsencode(target),
            None if fstype is None else fstype.encode(),
            flags,
            None if data is None else os.fsencode(data),
        ),
        f"mount {fstype or 'bind'} {target}",
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    check(libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    syscall(155, os.fsencode(new_root), os.fsencode(put_old), what=f"pivot_root {new_root}")
