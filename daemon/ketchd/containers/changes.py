"""A layer worker's job: what an overlay's upper directory changes against the layers below it.

Only the upper is walked; what it holds is looked up below in the directory of the same path, entered in step, without following any
link, so the container cannot lead it astray. What counts as a change is dockerd's (moby pkg/archive changes_linux.go): a directory only by its mode and owner, a
file by size and time too.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import InvalidInput
from ketch_wire.launch import LayerMount
from ketchd.containers.paths import printable
from ketchd.layers.descent import Descent, open_directory
from ketchd.layers.mounting import mount_chain
from ketchd.layers.tarheaders import NAME_LIMIT
from ketchd.layers.worker import JobPort

MODIFIED, ADDED, DELETED = 0, 1, 2
_OPAQUE = "trusted.overlay.opaque"
_CAPABILITY = "security.capability"


def changes(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: layers (top first), upper. {changes: [[path, kind], …]} sorted by path."""
    target = port.scratch()
    mount_chain([LayerMount(**layer) for layer in arguments["layers"]], target, None, None, True)
    walk = _Walk()
    try:
        walk.run(arguments["upper"], target)
    finally:
        walk.close()
    return {"changes": [[printable(path), kind] for path, kind in sorted(walk.found.items())]}


@dataclass(slots=True)
class _Place:
    """A directory under way: its path, what is left of it, whether it is a directory in the layers too."""

    path: str
    names: list[str]
    below: bool


class _Walk:
    """found: path -> kind."""

    def __init__(self) -> None:
        self._upper, self._lower = Descent(), Descent()
        self._places: list[_Place] = []
        self.found: dict[str, int] = {}

    def run(self, upper: str, lower: str) -> None:
        """Everything in the directory `upper` against the directory `lower`. Raises OSError; InvalidInput where a path is too long."""
        self._lower.enter(os.open(lower, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._enter(os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "", below=True)
        while self._places:
            place = self._places[-1]
            if place.names:
                self._entry(place, place.names.pop())
                continue
            self._places.pop()
            self._upper.leave()
            if place.below:
                self._lower.leave()

    def close(self) -> None:
        """Let go of the directories that are open. May be called twice."""
        self._upper.close()
        self._lower.close()

    def _enter(self, directory: int, path: str, *, below: bool) -> None:
        self._upper.enter(directory)
        names = os.listdir(directory)
        self._places.append(_Place(path, names, below))
        if below and _is_opaque(directory):
            for name in set(os.listdir(self._lower.here)) - set(names):
                self._note(f"{path}/{name}", DELETED)

    def _entry(self, place: _Place, name: str) -> None:
        directory, full = self._upper.here, f"{place.path}/{name}"
        try:
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        there = self._lookup(name) if place.below else None
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            if there is not None:
                self._note(full, DELETED)
            return
        if there is None:
            self._note(full, ADDED)
        elif self._differs(directory, name, info, there):
            self._note(full, MODIFIED)
        if not stat.S_ISDIR(info.st_mode):
            return
        try:
            inner = open_directory(name, directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        below = there is not None and stat.S_ISDIR(there.st_mode)
        if below:
            try:
                self._lower.enter(open_directory(name, self._lower.here))
            except BaseException:
                os.close(inner)
                raise
        self._enter(inner, full, below=below)

    def _note(self, path: str, kind: int) -> None:
        if len(path) > NAME_LIMIT:
            raise InvalidInput(
                f"{printable(path[:80])}… is nested too deep: its path is longer than {NAME_LIMIT} bytes"
            )
        self.found[path] = kind
        parent = path.rpartition("/")[0]
        while parent and parent not in self.found:  # a directory in which something changed counts as changed
            self.found[parent] = MODIFIED
            parent = parent.rpartition("/")[0]

    def _lookup(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._lower.here, follow_symlinks=False)
        except OSError:
            return None

    def _differs(self, directory: int, name: str, new: os.stat_result, old: os.stat_result) -> bool:
        for field in ("st_mode", "st_uid", "st_gid"):
            if getattr(new, field) != getattr(old, field):
                return True
        if stat.S_ISDIR(new.st_mode):
            return False
        if new.st_rdev != old.st_rdev or new.st_size != old.st_size or not _same_time(new, old):
            return True
        if not stat.S_ISREG(new.st_mode):
            return False
        return _capability(directory, name) != _capability(self._lower.here, name)


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
