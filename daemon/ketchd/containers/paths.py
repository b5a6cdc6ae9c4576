"""A path inside a container's root: Docker's cleaning of it, what lies there, and where a link leads. Acts on fds only.

Source: Engine API 1.50, ContainerArchiveInfo; Go's path/filepath and io/fs.FileMode.
"""

from __future__ import annotations

import os
import posixpath
import stat
from typing import Any

from ketchd.kernel.openat import open_in_root
from ketchd.model.times import rfc3339

_LINK_LIMIT = 255
_KIND_BITS = {
    stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27, stat.S_IFBLK: 1 << 26, stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24, stat.S_IFCHR: (1 << 26) | (1 << 21),
}  # fmt: skip


def clean(path: str) -> str:
    """Absolute and without `..`, but a trailing `/` or `/.` stays: it says that a link is to be followed."""
    cleaned = posixpath.normpath("/" + path).replace("//", "/")
    if posixpath.basename(path) == "." and posixpath.basename(cleaned) != ".":
        return cleaned.rstrip("/") + "/."
    return cleaned if cleaned.endswith("/") or not path.endswith("/") else cleaned + "/"


def base_name(path: str) -> str:
    """Go's filepath.Base: the last part; `/` for the root, `.` for `x/.`."""
    return posixpath.basename(path.rstrip("/")) or "/"


def go_mode(mode: int) -> int:
    """st_mode as Go's FileMode."""
    bits = stat.S_IMODE(mode) & 0o777 | _KIND_BITS.get(stat.S_IFMT(mode), 0)
    for unix, go in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        bits |= go if mode & unix else 0
    return bits


def open_itself(root: int, path: str) -> int:
    """An O_PATH fd of what lies at a cleaned path: a link itself, unless the path ends with a slash. Raises OSError."""
    follows = path.endswith(("/", "/."))
    flags = os.O_PATH | (os.O_DIRECTORY if follows else os.O_NOFOLLOW)
    return open_in_root(root, path, flags)


def describe(root: int, path: str, opened: int) -> dict[str, Any]:
    """The X-Docker-Container-Path-Stat object of what `open_itself` gave."""
    info = os.fstat(opened)
    target = follow(root, path) if stat.S_ISLNK(info.st_mode) else ""
    return {
        "name": printable(base_name(path)),
        "size": info.st_size,
        "mode": go_mode(info.st_mode),
        "mtime": rfc3339(info.st_mtime_ns),
        "linkTarget": printable(target),
    }


def printable(name: str) -> str:
    """A file name that may hold bytes which are no UTF-8, as JSON shows it."""
    return os.fsencode(name).decode("utf-8", "replace")


def follow(root: int, path: str) -> str:
    """The absolute path that `path` comes to when every link is followed inside the root, as far as it exists.

    For showing and comparing only: what is acted on is opened in one step by the kernel.
    """
    done: list[str] = []
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done[:-1]
            continue
        try:
            opened = open_in_root(root, "/".join([*done, part]), os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return "/" + "/".join([*done, part, *reversed(todo)])
        try:
            is_link = stat.S_ISLNK(os.fstat(opened).st_mode)
            target = os.readlink("", dir_fd=opened) if is_link else ""
        finally:
            os.close(opened)
        if not is_link:
            done.append(part)
            continue
        links += 1
        if links > _LINK_LIMIT:
            return "/" + "/".join([*done, part, *reversed(todo)])
        if target.startswith("/"):
            done = []
        todo += [step for step in reversed(target.split("/")) if step not in ("", ".")]
    return "/" + "/".join(done)
