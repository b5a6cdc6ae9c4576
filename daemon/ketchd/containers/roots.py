"""A container's root as one directory fd, in a layer worker: what cp, export, diff and commit act on.

A running container's root is fetched by a forked child that joins its mount namespace, opens `/` and sends the fd home:
three system calls, nothing imported, nothing executed. The worker itself never enters: its own `/` stays the host's, so no
code, no locale, no decompressor of the container can ever be loaded (CVE-2019-14271, CVE-2026-41567). A stopped
container's root is mounted in the worker's private namespace, every mount by fd (CVE-2026-42306).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ketch_wire.faults import Conflict, EngineFailure
from ketch_wire.launch import LayerMount
from ketchd.kernel import detached, rights
from ketchd.kernel.namespaces import CLONE_NEWNS, CLONE_NEWUSER, setns
from ketchd.kernel.openat import make_directories, open_in_root
from ketchd.kernel.process import start_time
from ketchd.layers.mounting import mount_chain
from ketchd.layers.worker import JobPort
from ketchd.sandbox import remapped

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ERROR = struct.Struct("i")


@contextmanager
def open_root(wanted: dict[str, Any], port: JobPort) -> Iterator[int]:
    """The root that `wanted` describes, as an O_PATH fd for the body's time.

    Running: {pid, start_time, bare, user}; user: it is in a user namespace, which the caller then enters for good, as its
    root: ids are the container's own from there on. bare leaves out what is mounted inside (volumes, /proc). Stopped: {layers (top first),
    upper, work, readonly, mounts: [{source, subpath, target, readonly}]}; without work the upper is only looked at, and
    what the body writes is thrown away. Raises Conflict (it does not run any more), EngineFailure, OSError.
    """
    if "pid" in wanted:
        root = _root_of_process(wanted["pid"], wanted["start_time"], bare=bool(wanted.get("bare")))
        if wanted.get("user"):
            _enter_user_namespace(wanted["pid"])
    else:
        root = _mount_stopped(wanted, port.scratch())
    try:
        yield root
    finally:
        os.close(root)


def _enter_user_namespace(pid: int) -> None:
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWUSER)
    finally:
        os.close(namespace)
    remapped.become_root()


def _root_of_process(pid: int, started: int, *, bare: bool) -> int:
    ended = Conflict(f"container process {pid} is not running any more")
    try:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ended from None
    try:
        try:
            if start_time(pid) != started:  # the pid was given to another process
                raise ended
        except FileNotFoundError:
            raise ended from None
        return _fetch(namespace, bare)
    finally:
        os.close(namespace)


def _fetch(namespace: int, bare: bool) -> int:
    """The root of a mount namespace, by way of a child that joins it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _send_root(namespace, theirs, bare)
        theirs.close()
        try:
            message, ancillary, _, _ = ours.recvmsg(4, rights.room_for(1), socket.MSG_CMSG_CLOEXEC)
        finally:
            os.waitpid(child, 0)
    if fds := rights.taken(ancillary):
        return fds[0]
    number = _ERROR.unpack(message)[0] if len(message) == _ERROR.size else errno.EIO
    raise EngineFailure(f"cannot enter the container's mount namespace: {os.strerror(number).lower()}")


def _send_root(namespace: int, channel: socket.socket, bare: bool) -> None:
    """In the child. Nothing may be imported and no file opened by name after setns: names are the container's there."""
    try:
        setns(namespace, CLONE_NEWNS)
        root = os.open("/", _DIRECTORY)
        if bare:
            root = detached.clone_tree_of(root, False, "/")
        channel.sendmsg([b"root"], rights.packed([root]))
    except OSError as error:
        channel.send(_ERROR.pack(error.errno or errno.EIO))
    finally:
        os._exit(0)


def _mount_stopped(wanted: dict[str, Any], place: str) -> int:
    """Everything is mounted in `place`, which goes with the job."""
    layers = [LayerMount(**layer) for layer in wanted["layers"]]
    target, upper, work = (os.path.join(place, name) for name in ("root", "upper", "work"))
    for directory in (target, upper, work):
        os.mkdir(directory, 0o755)
    if wanted.get("work"):
        mount_chain(layers, target, wanted["upper"], wanted["work"], bool(wanted.get("readonly")))
    else:
        mount_chain([LayerMount("directory", wanted["upper"]), *layers], target, upper, work, False)
    root = os.open(target, _DIRECTORY)
    try:
        for point in wanted.get("mounts", ()):
            _place(root, point)
    except BaseException:
        os.close(root)
        raise
    return root


def _place(root: int, point: dict[str, Any]) -> None:
    """One bind inside the root: source and target are held by fd from the moment they are looked at."""
    try:
        source = os.open(point["source"], os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise EngineFailure(f"source of mount {point['target']} is missing: {point['source']}") from None
    try:
        if point.get("subpath"):
            inner = open_in_root(source, point["subpath"], os.O_PATH)
            os.close(source)
            source = inner
        is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
        target = _mount_point(root, point["target"], is_directory)
        try:
            tree = detached.clone_tree_of(source, True, point["source"])
            try:
                if point.get("readonly"):
                    detached.mount_setattr(
                        tree, add=detached.MOUNT_ATTR_RDONLY, recursive=True, what=point["target"]
                    )
                detached.move_mount(tree, target, point["target"])
            finally:
                os.close(tree)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _mount_point(root: int, path: str, is_directory: bool) -> int:
    try:
        return open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        pass
    if is_directory:
        return make_directories(root, path)
    head, _, name = path.rstrip("/").rpartition("/")
    parent = make_directories(root, head)
    try:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))
    except FileExistsError:
        pass
    finally:
        os.close(parent)
    return open_in_root(root, path, os.O_PATH)
