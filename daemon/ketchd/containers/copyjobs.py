"""Layer worker jobs behind the archive endpoints: stat, pack and extract inside a container's root. See `roots` for how it is held.

Archives arrive here decompressed and are read whole before the root is opened.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import Any

from ketch_wire.faults import EngineFailure, InvalidInput, NotFound
from ketchd.containers.paths import base_name, clean, describe, follow, open_itself, printable
from ketchd.containers.roots import open_root
from ketchd.containers.treeextract import TreeExtract
from ketchd.containers.treetar import TreeTar
from ketchd.kernel.openat import open_in_root
from ketchd.layers.tarheaders import Entry, entries
from ketchd.layers.worker import JobPort
from ketchd.sandbox.failures import LaunchError
from ketchd.sandbox.users import resolve

_ACCOUNTS_LIMIT = 4 * 1024 * 1024


def stat_path(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: root, path (bytes), container (for messages). The path's stat object. Raises NotFound."""
    path = clean(os.fsdecode(arguments["path"]))
    with open_root(arguments["root"], port) as root:
        opened = _open(root, path, arguments)
        try:
            return describe(root, path, opened)
        finally:
            os.close(opened)


def pack_path(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: as `stat_path`, and volumes (the mount points to go into). Sends {stat}; the tar goes into the job's fd.

    Raises NotFound."""
    path = clean(os.fsdecode(arguments["path"]))
    with open_root(arguments["root"], port) as root:
        opened = _open(root, path, arguments)
        try:
            port.send({"stat": describe(root, path, opened)})
            with open(port.take_fd(), "wb", buffering=0) as reader:
                tar = TreeTar(lambda content: write_all(reader.fileno(), content))
                entered = {os.fsencode(target) for target in arguments["volumes"]}
                tar.add(opened, os.fsencode(base_name(path)), os.fsencode(follow(root, path)), entered)
                tar.end()
        finally:
            os.close(opened)
    return {}


def pack_root(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: root. Sends {} when it is open; a tar of everything in it goes into the job's fd, names without a leading slash."""
    with open_root(arguments["root"], port) as root, open(port.take_fd(), "wb", buffering=0) as reader:
        port.send({})
        tar = TreeTar(lambda content: write_all(reader.fileno(), content))
        for name in sorted(os.listdir(f"/proc/self/fd/{root}")):
            opened = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                tar.add(opened, os.fsencode(name), b"/" + os.fsencode(name))
            finally:
                os.close(opened)
        tar.end()
    return {}


def _open(root: int, path: str, arguments: dict[str, Any]) -> int:
    try:
        return open_itself(root, path)
    except FileNotFoundError:
        raise _not_found(arguments) from None
    except OSError as error:
        raise EngineFailure(f"lstat {printable(path)}: {(error.strerror or '').lower()}") from error


def _not_found(arguments: dict[str, Any]) -> NotFound:
    path = printable(os.fsdecode(arguments["path"]))
    return NotFound(f"Could not find the file {path} in container {arguments['container']}")


def extract(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: as `stat_path`, and tar (path of the plain tar), no_overwrite, user (whose everything becomes; None: as
    the tar says), volumes (mount points, for messages). Raises NotFound, InvalidInput, EngineFailure."""
    path = clean(os.fsdecode(arguments["path"]))
    with open(arguments["tar"], "rb") as tar:
        found = _read(tar.fileno())
        with open_root(arguments["root"], port) as root:
            target = _open_target(root, path, arguments)
            try:
                owner = None if arguments["user"] is None else find_user(root, arguments["user"])
                _check_writable(root, target, path, arguments["volumes"])
                work = TreeExtract(root, target, path, no_overwrite=arguments["no_overwrite"], owner=owner)
                work.run(found, tar.fileno())
            finally:
                os.close(target)
    return {}


def _read(tar: int) -> list[Entry]:
    size = os.fstat(tar).st_size
    if not size:
        return []
    try:
        return list(entries(memoryview(mmap.mmap(tar, size, prot=mmap.PROT_READ)), size))
    except InvalidInput as fault:
        raise EngineFailure(f"Error processing tar file: {fault.message}") from fault


def _open_target(root: int, path: str, arguments: dict[str, Any]) -> int:
    try:
        target = open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        raise _not_found(arguments) from None
    except NotADirectoryError:
        raise InvalidInput("extraction point is not a directory") from None
    if not stat.S_ISDIR(os.fstat(target).st_mode):
        os.close(target)
        raise InvalidInput("extraction point is not a directory")
    return target


def _check_writable(root: int, target: int, path: str, volumes: list[str]) -> None:
    if not os.fstatvfs(target).f_flag & os.ST_RDONLY:
        return
    real = follow(root, path)
    inside = any(real == volume or real.startswith(volume.rstrip("/") + "/") for volume in volumes)
    raise InvalidInput(
        "mounted volume is marked read-only" if inside else "container rootfs is marked read-only"
    )


def find_user(root: int, text: str) -> tuple[int, int]:
    """(uid, gid) of `user[:group]` by the container's own files. Raises EngineFailure."""
    try:
        found = resolve(text, (), _read_small(root, "etc/passwd"), _read_small(root, "etc/group"))
    except LaunchError as error:
        raise EngineFailure(str(error)) from error
    return found.uid, found.gid


def _read_small(root: int, path: str) -> bytes:
    """A file of the container; b"" when there is none."""
    try:
        file = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return b""
        raise
    with open(file, "rb") as opened:
        return opened.read(_ACCOUNTS_LIMIT) if stat.S_ISREG(os.fstat(file).st_mode) else b""


def write_all(file: int, content: bytes) -> None:
    """All of it, to a pipe or socket."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
