"""A layer worker's job: what an overlay's upper directory changes against the layers below it.

Only the upper is walked; what it holds is looked up below by fd, without following any link, so the container cannot lead it
astray. What counts as a change is dockerd's (moby pkg/archive changes_linux.go): a directory only by its mode and owner, a
file by size and time too.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from ketch_wire.launch import LayerMount
from ketchd.containers.paths import printable
from ketchd.kernel.openat import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_in_root
from ketchd.layers.mounting import mount_chain
from ketchd.layers.worker import JobPort

MODIFIED, ADDED, DELETED = 0, 1, 2
_OPAQUE = "trusted.overlay.opaque"
_CAPABILITY = "security.capability"


def changes(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: layers (top first), upper. {changes: [[path, kind], …]} sorted by path."""
    target = port.scratch()
    mount_chain([LayerMount(**layer) for layer in arguments["layers"]], target, None, None, True)
    lower = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        walk = _Walk(lower)
        upper = os.open(arguments["upper"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        walk.directory(upper, "", exists_below=True)
    finally:
        os.close(lower)
    return {"changes": [[printable(path), kind] for path, kind in sorted(walk.found.items())]}


class _Walk:
    def __init__(self, lower: int) -> None:
        self._lower = lower
        self.found: dict[str, int] = {}

    def directory(self, top: int, path: str, *, exists_below: bool) -> None:
        """Everything in the directory fd `top`, which is closed. exists_below: it is a directory in the layers too."""
        waiting = [(top, path, exists_below)]
        try:
            while waiting:
                opened, path, below = waiting.pop()
                try:
                    if below and _is_opaque(opened):
                        self._hidden(opened, path)
                    for name in os.listdir(opened):
                        self._entry(opened, path, name, below, waiting)
                finally:
                    os.close(opened)
        finally:
            for opened, _, _ in waiting:
                os.close(opened)

    def _entry(
        self, directory: int, path: str, name: str, below: bool, waiting: list[tuple[int, str, bool]]
    ) -> None:
        try:
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        full = f"{path}/{name}"
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            if below and self._lookup(full) is not None:
                self._note(full, DELETED)
            return
        there = self._lookup(full) if below else None
        if there is None:
            self._note(full, ADDED)
        elif self._differs(directory, name, info, full, there):
            self._note(full, MODIFIED)
        if not stat.S_ISDIR(info.st_mode):
            return
        try:
            inner = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
        except (FileNotFoundError, NotADirectoryError):
            return
        waiting.append((inner, full, there is not None and stat.S_ISDIR(there.st_mode)))

    def _hidden(self, opened: int, path: str) -> None:
        """The children that an opaque directory hides, unless it has them itself."""
        hidden = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        if hidden is None:
            return
        try:
            for name in set(os.listdir(hidden)) - set(os.listdir(opened)):
                self._note(f"{path}/{name}", DELETED)
        finally:
            os.close(hidden)

    def _note(self, path: str, kind: int) -> None:
        self.found[path] = kind
        parent = path.rpartition("/")[0]
        while parent and parent not in self.found:  # a directory in which something changed counts as changed
            self.found[parent] = MODIFIED
            parent = parent.rpartition("/")[0]

    def _open(self, path: str, flags: int) -> int | None:
        try:
            return open_in_root(self._lower, path, flags, resolve=RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
        except OSError:
            return None  # not there, or not as a directory: what lies in the upper is new

    def _lookup(self, path: str) -> os.stat_result | None:
        opened = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        if opened is None:
            return None
        try:
            return os.fstat(opened)
        finally:
            os.close(opened)

    def _differs(
        self, directory: int, name: str, new: os.stat_result, full: str, old: os.stat_result
    ) -> bool:
        for field in ("st_mode", "st_uid", "st_gid"):
            if getattr(new, field) != getattr(old, field):
                return True
        if stat.S_ISDIR(new.st_mode):
            return False
        if new.st_rdev != old.st_rdev or new.st_size != old.st_size or not _same_time(new, old):
            return True
        if not stat.S_ISREG(new.st_mode):
            return False
        return _capability(directory, name) != self._capability_below(full)

    def _capability_below(self, path: str) -> bytes:
        opened = self._open(path, os.O_RDONLY)
        if opened is None:
            return b""
        try:
            return os.getxattr(opened, _CAPABILITY)
        except OSError:
            return b""
        finally:
            os.close(opened)


def _same_time(new: os.stat_result, old: os.stat_result) -> bool:
    """To the nanosecond where both have them."""
    a, b = divmod(new.st_mtime_ns, 1_000_000_000), divmod(old.st_mtime_ns, 1_000_000_000)
    return a[0] == b[0] and (a[1] == b[1] or not a[1] or not b[1])


def _capability(directory: int, name: str) -> bytes:
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    try:
        return os.getxattr(opened, _CAPABILITY)
    except OSError:
        return b""
    finally:
        os.close(opened)


def _is_opaque(opened: int) -> bool:
    try:
        return os.getxattr(opened, _OPAQUE) == b"y"
    except OSError:
        return False
