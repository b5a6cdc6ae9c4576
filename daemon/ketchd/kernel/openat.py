"""openat2(2): path resolution that cannot leave a root."""

from __future__ import annotations

import ctypes
import os

from ketchd.kernel.syscalls import syscall

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x01, 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10
_SYS_OPENAT2 = 437


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(
    root: int, path: str, flags: int, mode: int = 0, resolve: int = RESOLVE_NO_MAGICLINKS
) -> int:
    """An fd of `path` resolved as if the directory fd `root` were `/`: links and `..` stay inside. Always close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve | RESOLVE_IN_ROOT)
    name = os.fsencode(path or ".")
    return syscall(_SYS_OPENAT2, root, name, ctypes.byref(how), ctypes.sizeof(how), what=path)


def make_directories(root: int, path: str, mode: int = 0o755) -> int:
    """mkdir -p inside `root`; an O_PATH fd of the last directory. Links in between are followed inside the root."""
    try:
        return open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        pass
    current = os.dup(root)
    done = ""
    for part in [part for part in path.split("/") if part not in ("", ".")]:
        done = f"{done}/{part}"
        try:
            following = open_in_root(root, done, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            try:
                os.mkdir(part, mode, dir_fd=current)
            except FileExistsError:
                pass  # a dangling link: the next open says so
            following = open_in_root(root, done, os.O_PATH | os.O_DIRECTORY)
        os.close(current)
        current = following
    return current
