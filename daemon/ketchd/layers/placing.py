"""Renaming a synced file or directory into place, durably; removing what was staged or thrown away; what a disk's failure is called."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ketch_wire.faults import EngineFailure

if TYPE_CHECKING:
    from ketchd.layers.worker import JobPort


def disk_fault(error: OSError, what: str) -> EngineFailure:
    """`error` as the fault of `what`, which comes second when the disk is full: that is all a user can do something about."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineFailure(f"no space left on device: {what}")
    return EngineFailure(f"{what}: {(error.strerror or str(error)).lower()}")


def place(staged: str, final: Path, what: str, *, durable: bool = True) -> None:
    """Rename `staged` to `final`; durable: and sync the directory. What lies there already belongs to nobody: it goes.

    Raises EngineFailure, naming `what`.
    """
    try:
        if final.is_dir():
            remove_staged(str(final))
        os.rename(staged, final)
        if not durable:
            return
        descriptor = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_fault(error, f"cannot store {what}") from error


def remove_staged(path: str) -> None:
    """Remove a staged file or directory, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        remove_some(path)


def remove_some(path: str, limit: int | None = None) -> bool:
    """Remove the file or directory at `path`; False when it has more than `limit` entries: then as many are gone.

    Nothing else may be at work in it. Raises OSError.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except (IsADirectoryError, PermissionError):
        return _Emptying(path, limit).run()
    return True


def stats_below(path: Path) -> Iterator[os.stat_result]:
    """What lstat(2) says of everything below `path` that is no directory, however deep. What cannot be looked at is left out:
    gone meanwhile, or deeper than a path can name."""
    waiting = [os.fspath(path)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        yield entry.stat(follow_symlinks=False)


class _Enough(Exception):
    """The limit is reached."""


class _Emptying:
    """A directory on its way out. A container may nest directories deeper than a path can name or a stack can hold: so what is
    found in a directory's directory is moved up, and nothing is ever deeper than that."""

    def __init__(self, top: str, limit: int | None) -> None:
        self._top = top
        self._left = limit
        self._name = uuid.uuid4().hex
        self._moved = 0

    def run(self) -> bool:
        """Whether it is gone."""
        try:
            while directories := self._leaves(self._top):
                for directory in directories:
                    for inner in self._leaves(directory):
                        self._moved += 1
                        os.rename(inner, f"{self._top}/{self._name}-{self._moved}")
                    os.rmdir(directory)
            os.rmdir(self._top)
        except _Enough:
            return False
        return True

    def _leaves(self, path: str) -> list[str]:
        """Unlink what is no directory in `path`; the directories."""
        try:
            entries = list(os.scandir(path))
        except PermissionError:  # overlayfs leaves a `work/work` of mode 000, which not every root may enter
            os.chmod(path, 0o700)
            entries = list(os.scandir(path))
        directories = []
        for entry in entries:
            if self._left is not None:
                if not self._left:
                    raise _Enough
                self._left -= 1
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.path)
            else:
                os.unlink(entry.path)
        return directories


def remove(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """Layer worker job. arguments: path. Removes a directory: thousands of files would keep ketchd's own threads from running."""
    remove_some(arguments["path"], None)
    return {}
