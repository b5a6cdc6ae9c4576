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
    try:
        _copy_directory(source, destination)
    finally:
        os.close(source)
    return True


def _copy_directory(source: int, destination: str) -> None:
    with os.scandir(source) as entries:
        for entry in list(entries):
            info = os.stat(entry.name, dir_fd=source, follow_symlinks=False)
            target = os.path.join(destination, entry.name)
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(target)
                inner = os.open(
                    entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source
                )
                try:
                    _copy_directory(inner, target)
                finally:
                    os.close(inner)
                continue
            _copy_leaf(source, entry.name, info, target)
    _own(source, destination)


def _copy_leaf(source: int, name: str, info: os.stat_result, target: str) -> None:
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), target)
        os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
        return
    if stat.S_ISREG(info.st_mode):
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        with open(reader, "rb") as content, open(target, "xb") as copy:
            shutil.copyfileobj(content, copy, 1024 * 1024)
            _own(content.fileno(), target)
        return
    if not stat.S_ISSOCK(info.st_mode):
        os.mknod(target, info.st_mode, info.st_rdev)
        os.chown(target, info.st_uid, info.st_gid)
        os.chmod(target, stat.S_IMODE(info.st_mode))


def _own(source: int, target: str) -> None:
    """Owner, then mode (chown drops set-id bits), extended attributes, times."""
    info = os.fstat(source)
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
