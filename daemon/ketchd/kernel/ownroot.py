"""Making a new mount namespace one's own: what is mounted in it reaches nobody outside, whatever `/` is."""

from __future__ import annotations

import errno
import os

from ketchd.kernel import detached, mounts
from ketchd.kernel.namespaces import CLONE_NEWNS, setns


def take_root(propagation: int) -> None:
    """Set the propagation of every mount (MS_PRIVATE or MS_SLAVE). The caller has just unshared its mount namespace.

    In a chroot `/` is no mount point: nothing can be set on it, and pivot_root(2) refuses it later. Then a copy of the
    caller's tree becomes the root of the namespace, and the tree that lies around the chroot is gone from it: a contained
    process could climb into it otherwise. Raises OSError.
    """
    try:
        mounts.mount(None, "/", None, mounts.MS_REC | propagation)
        return
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    tree = detached.clone_tree("/", True)
    try:
        detached.mount_setattr(tree, propagation=propagation, recursive=True, what="/")
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(namespace, CLONE_NEWNS)  # to the namespace's real root
        finally:
            os.close(namespace)
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
