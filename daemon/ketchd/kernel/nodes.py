"""Device nodes below a path: what stat(2) says of them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """A device. below: its path relative to the one asked for, "" for that itself. kind: `c` or `b`."""

    below: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


def device_nodes(path: str) -> list[Node]:
    """The device at `path` (links followed), or every device below that directory; nothing for another file.

    Raises OSError, and ValueError for a path with a NUL byte.
    """
    return _below(os.path.realpath(path, strict=True), "")


def _below(path: str, shown: str) -> list[Node]:
    info = os.lstat(path)
    if stat.S_ISDIR(info.st_mode):
        found: list[Node] = []
        for entry in sorted(os.listdir(path)):
            try:
                found += _below(f"{path}/{entry}", f"{shown}/{entry}")
            except OSError:
                continue  # gone, or not ours to see
        return found
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b" if stat.S_ISBLK(info.st_mode) else ""
    if not kind:
        return []
    major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return [Node(shown, kind, major, minor, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)]
