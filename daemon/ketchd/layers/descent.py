"""Ways down a directory tree and up again by fd: as deep as a container may nest directories, with few of them open."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque

_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_AT_ONCE = 64


class Descent:
    """The directories from a top to where a walk is. `close` it, wherever it ended.

    Only the last ones are open. One further up is opened again from its child when the walk comes back to it, and must then be the
    directory that it was: a container may move its directories about meanwhile.
    """

    def __init__(self) -> None:
        self._identities: list[tuple[int, int]] = []
        self._open: deque[int] = deque()

    @property
    def here(self) -> int:
        """The fd of the directory where the walk is; ours."""
        return self._open[-1]

    def enter(self, directory: int) -> None:
        """Go on in `directory`, an fd of a directory in `here`, ours from now on."""
        self._open.append(directory)
        info = os.fstat(directory)
        self._identities.append((info.st_dev, info.st_ino))
        if len(self._open) > _OPEN_AT_ONCE:
            os.close(self._open.popleft())

    def leave(self) -> None:
        """Go back to where `enter` was called. Raises OSError; ESTALE when that is not where it was any more."""
        left = self._open.pop()
        self._identities.pop()
        try:
            if self._identities and not self._open:
                self._open.append(os.open("..", _READ & ~os.O_NOFOLLOW, dir_fd=left))
                info = os.fstat(self.here)
                if (info.st_dev, info.st_ino) != self._identities[-1]:
                    raise OSError(errno.ESTALE, "a directory was moved while the walk was in it")
        finally:
            os.close(left)

    def close(self) -> None:
        """Let go of everything. May be called twice."""
        self._identities.clear()
        while self._open:
            os.close(self._open.pop())


def open_directory(name: str | bytes, parent: int) -> int:
    """The directory `name` in `parent`, no link followed, for reading. Raises OSError."""
    return os.open(name, _READ, dir_fd=parent)


def remove_at(name: str, parent: int) -> None:
    """Remove the directory `name` in `parent` with everything in it. Somebody may be at work there: what goes meanwhile is gone.

    Raises OSError.
    """
    descent = Descent()
    # of each directory on the way its name, and those in it that are left
    waiting: list[tuple[str, list[str]]] = []
    try:
        descent.enter(open_directory(name, parent))
        waiting.append((name, _unlink_all(descent.here)))
        while waiting:
            called, inner = waiting[-1]
            if inner:
                following = inner.pop()
                with contextlib.suppress(FileNotFoundError):
                    descent.enter(open_directory(following, descent.here))
                    waiting.append((following, _unlink_all(descent.here)))
                continue
            waiting.pop()
            descent.leave()
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(called, dir_fd=descent.here if waiting else parent)
    finally:
        descent.close()


def _unlink_all(directory: int) -> list[str]:
    """Unlink what is no directory; the directories."""
    inner = []
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                inner.append(name)
            else:
                os.unlink(name, dir_fd=directory)
    return inner
