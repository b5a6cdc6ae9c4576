"""Making a new mount namespace one's own: what is mounted in it reaches nobody outside, whatever `/` is."""

from __future__ import annotations

import os

from ketchd.kernel import detached, mounts
from ketchd.kernel.namespaces import CLONE_NEWNS, setns

_answers: list[bool] = []  # of in_chroot, once it is known; a forked process inherits it


def in_chroot() -> bool:
    """Whether the caller's `/` is not the root of its mount namespace: the kernel makes no user namespace then (EPERM).

    The first call passes through the namespace's root and comes back, so the caller has one thread. False for a caller who
    may not look. Raises OSError when it cannot come back. Source: setns(2), user_namespaces(7).
    """
    if not _answers:
        _answers.append(_look())
    return _answers[0]


def _look() -> bool:
    directory = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    top, here, about = (os.open(path, directory) for path in ("/", ".", "/proc/self/fdinfo"))
    try:
        mine = _mount_and_inode(about)
        try:
            _go_to_the_namespaces_root()
        except PermissionError:
            return False
        root = _mount_and_inode(about)
        os.fchdir(top)
        os.chroot(".")
        os.fchdir(here)
        return mine != root
    finally:
        for fd in (top, here, about):
            os.close(fd)


def _mount_and_inode(about: int) -> tuple[bytes, int]:
    """Which mount and which inode the caller's `/` is. about: /proc/self/fdinfo."""
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        described = os.open(str(top), os.O_RDONLY | os.O_CLOEXEC, dir_fd=about)
        try:
            lines = os.read(described, 4096).splitlines()
        finally:
            os.close(described)
        return next(line for line in lines if line.startswith(b"mnt_id:")), os.fstat(top).st_ino
    finally:
        os.close(top)


def _go_to_the_namespaces_root() -> None:
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNS)
    finally:
        os.close(namespace)


def take_root(propagation: int) -> None:
    """Set the propagation of every mount (MS_PRIVATE or MS_SLAVE). The caller has just unshared its mount namespace.

    In a chroot a copy of the caller's tree becomes the root of the namespace first: pivot_root(2) needs a mount point there,
    a user namespace needs it to be the root, and what lies around the chroot is gone from the namespace: a contained process
    could climb into it otherwise. Raises OSError.
    """
    if not in_chroot():
        mounts.mount(None, "/", None, mounts.MS_REC | propagation)
        return
    tree = detached.clone_tree("/", True)
    try:
        detached.mount_setattr(tree, propagation=propagation, recursive=True, what="/")
        _go_to_the_namespaces_root()
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            detached.move_mount(tree, top, "/")
            os.fchdir(tree)
            mounts.pivot_root(".", ".")
            os.fchdir(top)
            mounts.umount(".", mounts.MNT_DETACH)
        finally:
            os.close(top)
    finally:
        os.close(tree)
    os.chdir("/")
    _answers[:] = [False]
