"""mount(2) and its younger relatives."""

from __future__ import annotations

import os

from ketchd.kernel.syscalls import check, libc, syscall

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 0x20, 0x1000, 0x2000, 0x4000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x20000, 0x40000, 0x80000, 0x100000
MS_RELATIME, MS_STRICTATIME, MS_NOATIME = 0x200000, 0x1000000, 0x400
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


def mount(
    source: str | None, target: str, fstype: str | None, flags: int = 0, data: str | None = None
) -> None:
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
    check(libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), f"pivot_root {new_root}")


FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, 1, 4
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432
_AT_FDCWD = -100


def mount_new(fstype: str, target: str, options: list[tuple[str, str | None]], attributes: int = 0) -> None:
    """A mount by fsopen(2), fsconfig(2), fsmount(2) and move_mount(2): options are not limited to one page.

    options: (name, value), value None for a flag, in order; `source` among them. attributes: MOUNT_ATTR_* bits.
    """
    context = syscall(_SYS_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC, what=f"fsopen {fstype}")
    try:
        for name, value in options:
            command = _SET_FLAG if value is None else _SET_STRING
            encoded = None if value is None else os.fsencode(value)
            syscall(
                _SYS_FSCONFIG, context, command, name.encode(), encoded, 0, what=f"{fstype} {name}={value}"
            )
        syscall(_SYS_FSCONFIG, context, _CREATE, None, None, 0, what=f"{fstype} {target}")
        mounted = syscall(
            _SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes, what=f"fsmount {fstype} {target}"
        )
    finally:
        os.close(context)
    try:
        syscall(
            _SYS_MOVE_MOUNT, mounted, b"", _AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH,
            what=f"move_mount {target}",
        )  # fmt: skip
    finally:
        os.close(mounted)
