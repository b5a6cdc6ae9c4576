"""A layer worker's job: fill an empty volume with what the image has at its mount point.

Runs in a worker's own mount namespace; the image is resolved inside its root only, and nothing of it is executed.
Source: Docker documentation, "Populate a volume using a container".
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import Any

from ketch_wire.launch import LayerMount
from ketchd.kernel.openat import open_in_root
from ketchd.layers.descent import Descent, open_directory
from ketchd.layers.mounting import mount_chain
from ketchd.layers.worker import JobPort


def copy_up(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: layers (top first), path in the image, destination (an empty host directory). Returns {copied: bool}."""
    layers = [LayerMount(layer["kind"], layer["path"]) for layer in arguments["layers"]]
    target = port.scratch()
    mount_chain(layers, target, None, None, True)
    root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return {"copied": _copy(root, arguments["path"], arguments["destination"])}
    finally:
        os.close(root)


def _copy(root: int, path: str, destination: str) -> bool:
    try:
        source = open_in_root(root, path.lstrip("/"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    descent = _Copy(source, os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        descent.run()
    finally:
        descent.close()
    return True


class _Copy:
    """A directory's copy, both sides entered in step. source, destination: fds, ours from now on."""

    def __init__(self, source: int, destination: int) -> None:
        self._source, self._destination = Descent(), Descent()
        self._source.enter(source)
        self._destination.enter(destination)

    def run(self) -> None:
        """All of it, each directory's own metadata last. Raises OSError."""
        waiting = [os.listdir(self._source.here)]
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                _own(self._source.here, self._destination.here)
                self._source.leave()
                self._destination.leave()
                continue
            name = waiting[-1].pop()
            info = os.stat(name, dir_fd=self._source.here, follow_symlinks=False)
            if not stat.S_ISDIR(info.st_mode):
                _copy_leaf(self._source.here, self._destination.here, name, info)
                continue
            os.mkdir(name, dir_fd=self._destination.here)
            self._source.enter(open_directory(name, self._source.here))
            self._destination.enter(open_directory(name, self._destination.here))
            waiting.append(os.listdir(self._source.here))

    def close(self) -> None:
        """Let go of what is open. May be called twice."""
        self._source.close()
        self._destination.close()


def _copy_leaf(source: int, destination: int, name: str, info: os.stat_result) -> None:
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=destination, follow_symlinks=False)
        return
    if stat.S_ISREG(info.st_mode):
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        with open(reader, "rb") as content:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(name, flags, 0o600, dir_fd=destination), "wb") as copy:
                shutil.copyfileobj(content, copy, 1024 * 1024)
                copy.flush()  # what is written later would be newer than its time
                _own(content.fileno(), copy.fileno())
        return
    if not stat.S_ISSOCK(info.st_mode):
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=destination)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=destination)
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=destination)


def _own(source: int, target: int) -> None:
    """Owner, then mode (chown drops set-id bits), extended attributes, times."""
    info = os.fstat(source)
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
