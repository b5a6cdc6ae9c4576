"""Places inside a root, found or made by descriptor only: no link of an image leads out of it.

Source: openat2(2), RESOLVE_IN_ROOT; CVE-2021-30465 and CVE-2026-41579 are what joined strings led to.
"""

from __future__ import annotations

import errno
import os
import stat

from ketchd.kernel.openat import RESOLVE_NO_MAGICLINKS, make_directories, open_in_root

PROC = "/proc"
# What may be mounted in /proc, as lxcfs does. Source: runc's rootfs_linux.go, checkProcMount.
PROC_FILES = frozenset(
    f"{PROC}/{name}"
    for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    )
)  # fmt: skip
_LINKS_LIMIT = 40


def place(root: int, path: str, *, directory: bool, resolve: int = 0) -> int:
    """An O_PATH fd of `path` inside `root`, made when it is not there: a directory (0755) or an empty file.

    resolve: more RESOLVE_* bits. Raises OSError.
    """
    try:
        return open_in_root(root, path, os.O_PATH, resolve=RESOLVE_NO_MAGICLINKS | resolve)
    except FileNotFoundError:
        pass
    parent_path, _, name = path.rstrip("/").rpartition("/")
    try:
        parent = open_in_root(
            root, parent_path, os.O_PATH | os.O_DIRECTORY, resolve=RESOLVE_NO_MAGICLINKS | resolve
        )
        try:
            return _make(parent, name, directory)
        finally:
            os.close(parent)
    except (FileNotFoundError, FileExistsError):
        pass  # more than the last part is missing, or the last is a link to nothing
    real = without_links(root, path)
    parent_path, _, name = real.rpartition("/")
    parent = make_directories(root, parent_path)
    try:
        return _make(parent, name, directory)
    finally:
        os.close(parent)


def _make(parent: int, name: str, directory: bool) -> int:
    """A new entry of the directory fd `parent`, opened. Raises FileExistsError."""
    if directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o755, dir_fd=parent))
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def without_links(root: int, path: str) -> str:
    """`path` with every link that exists resolved inside `root`, and what is missing kept. Raises OSError(ELOOP)."""
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if done:
                done.pop()
            continue
        link = _link_at(root, "/".join([*done, part]))
        if link is None:
            done.append(part)
            continue
        links += 1
        if links > _LINKS_LIMIT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if link.startswith("/"):
            done = []
        waiting += reversed(link.split("/"))
    return "/" + "/".join(done)


def _link_at(root: int, path: str) -> str | None:
    try:
        fd = open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return None
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def read_regular(root: int, path: str, limit: int) -> bytes:
    """At most `limit` bytes of the regular file `path`; nothing when there is none or it is something else."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        parts, left = [], limit
        while left > 0 and (part := os.read(fd, min(left, 65536))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def is_directory(fd: int) -> bool:
    """Whether the O_PATH fd names a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def is_device(fd: int, major: int, minor: int) -> bool:
    """Whether the fd names that character device."""
    info = os.fstat(fd)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(major, minor)
