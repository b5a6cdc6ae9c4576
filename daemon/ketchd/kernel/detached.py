"""Mounts held by an fd before they are attached anywhere: fsopen(2), open_tree(2), mount_setattr(2), move_mount(2)."""

from __future__ import annotations

import ctypes
import os

from ketchd.kernel.syscalls import check, libc, syscall

PROC_SUPER_MAGIC = 0x9FA0
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME = 0x70, 0x10, 0x20, 0x80
MOUNT_ATTR_IDMAP = 0x100000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x20000, 0x40000, 0x80000, 0x100000

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 428, 429, 430, 431, 432
_SYS_MOUNT_SETATTR = 442
_CLOEXEC_FIRST, _SET_FLAG, _SET_STRING, _CREATE = 1, 0, 1, 6
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_EMPTY_PATH, _AT_FDCWD = 1, 0x8000, 0x1000, -100
_F_EMPTY_PATH, _T_EMPTY_PATH = 0x4, 0x40


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def fsmount(fstype: str, options: list[tuple[str, str | None]], attributes: int = 0) -> int:
    """A new filesystem as a detached mount: its fd. options: (name, value), value None for a flag. attributes: MOUNT_ATTR_*."""
    context = syscall(_SYS_FSOPEN, fstype.encode(), _CLOEXEC_FIRST, what=f"fsopen {fstype}")
    try:
        for name, value in options:
            command, encoded = (_SET_FLAG, None) if value is None else (_SET_STRING, os.fsencode(value))
            shown = name if value is None else f"{name}={value}"
            syscall(_SYS_FSCONFIG, context, command, os.fsencode(name), encoded, 0, what=f"{fstype} {shown}")
        syscall(_SYS_FSCONFIG, context, _CREATE, None, None, 0, what=f"fsconfig {fstype}")
        return syscall(_SYS_FSMOUNT, context, _CLOEXEC_FIRST, attributes, what=f"fsmount {fstype}")
    finally:
        os.close(context)


def clone_tree(path: str, recursive: bool) -> int:
    """A detached copy of the mount at `path` (links followed), and with `recursive` of everything below."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags, what=path)


def clone_tree_of(fd: int, recursive: bool, what: str) -> int:
    """`clone_tree` of what `fd` names. what: for the error."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return syscall(_SYS_OPEN_TREE, fd, b"", flags, what=what)


def mount_setattr(
    mounted: int, *, add: int = 0, clear: int = 0, propagation: int = 0, recursive: bool, what: str
) -> None:
    """Change the mount fd's attributes (MOUNT_ATTR_*) and propagation (MS_PRIVATE, MS_SLAVE, MS_SHARED)."""
    wanted = _MountAttr(add, clear, propagation, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    syscall(
        _SYS_MOUNT_SETATTR, mounted, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted),
        what=f"mount_setattr {what}",
    )  # fmt: skip


def idmap(mounted: int, user: int, what: str) -> None:
    """Show the ids of the detached mount as the user namespace `user` (fd) has them outside. EINVAL: the filesystem cannot."""
    wanted = _MountAttr(MOUNT_ATTR_IDMAP, 0, 0, user)
    syscall(
        _SYS_MOUNT_SETATTR, mounted, b"", _AT_EMPTY_PATH, ctypes.byref(wanted), ctypes.sizeof(wanted),
        what=f"idmap {what}",
    )  # fmt: skip


def filesystem_of(fd: int) -> int:
    """Which kind of filesystem the fd, O_PATH or a mount's, is on: statfs(2)'s f_type (PROC_SUPER_MAGIC and others, linux/magic.h)."""
    found = (ctypes.c_long * 32)()  # struct statfs, whose first member it is, and room to spare
    check(libc.fstatfs(fd, found), "fstatfs")
    return int(found[0])


def move_mount(mounted: int, target: int, what: str) -> None:
    """Attach the detached mount `mounted` on what the O_PATH fd `target` names: no path is looked up."""
    syscall(
        _SYS_MOVE_MOUNT, mounted, b"", target, b"", _F_EMPTY_PATH | _T_EMPTY_PATH, what=f"move_mount {what}"
    )
