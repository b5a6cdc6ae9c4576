"""The mounts of a root: each made detached, then moved onto a place found by descriptor.

Source: DESIGN of runc's rootfs_linux.go for the order; mount(8) for the words of the options.
"""

from __future__ import annotations

import errno
import os

from ketchd.kernel import detached, mounts
from ketchd.kernel.namespaces import CLONE_NEWNS, setns
from ketchd.kernel.openat import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, make_directories, open_in_root
from ketchd.kernel.ownroot import take_root
from ketchd.sandbox.failures import LaunchError, reason
from ketchd.sandbox.targets import PROC, PROC_FILES, is_directory, place, without_links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ketch_wire.launch import MountPlan

_SET = {
    "ro": detached.MOUNT_ATTR_RDONLY, "nosuid": detached.MOUNT_ATTR_NOSUID, "nodev": detached.MOUNT_ATTR_NODEV,
    "noexec": detached.MOUNT_ATTR_NOEXEC, "nodiratime": detached.MOUNT_ATTR_NODIRATIME,
}  # fmt: skip
_CLEAR = {
    "rw": detached.MOUNT_ATTR_RDONLY, "suid": detached.MOUNT_ATTR_NOSUID, "dev": detached.MOUNT_ATTR_NODEV,
    "exec": detached.MOUNT_ATTR_NOEXEC, "diratime": detached.MOUNT_ATTR_NODIRATIME,
}  # fmt: skip
_ATIME = {
    "relatime": 0, "noatime": detached.MOUNT_ATTR_NOATIME, "strictatime": detached.MOUNT_ATTR_STRICTATIME,
}  # fmt: skip
_PROPAGATION = {
    "private": detached.MS_PRIVATE, "slave": detached.MS_SLAVE, "shared": detached.MS_SHARED,
    "unbindable": detached.MS_UNBINDABLE,
}  # fmt: skip
_TO_THE_FILESYSTEM = ("sync", "dirsync", "newinstance")
# Over these a link of the image would show something else under a name that programs trust.
_ORDINARY = ("proc", "sysfs")
_PROC_ROOT = 1  # the inode of a procfs' root (linux/proc_ns.h)


class MountOptions:
    """mount(8)'s words, sorted by whom they are for."""

    def __init__(self, options: Sequence[str]) -> None:
        self.add = self.clear = self.propagation = 0
        self.recursive = False
        self.deep_propagation = False
        self.to_filesystem: list[tuple[str, str | None]] = []
        for option in options:
            self._take(option)

    def _take(self, option: str) -> None:
        bare = option.removeprefix("r") if option.startswith("r") else option
        if option in _SET:
            self.add |= _SET[option]
            self.clear &= ~_SET[option]
        elif option in _CLEAR:
            self.clear |= _CLEAR[option]
            self.add &= ~_CLEAR[option]
        elif option in _ATIME:
            self.add = self.add & ~detached.MOUNT_ATTR_ATIME | _ATIME[option]
            self.clear |= detached.MOUNT_ATTR_ATIME
        elif option in ("bind", "rbind"):
            self.recursive = option == "rbind"
        elif option in _PROPAGATION or bare in _PROPAGATION:
            self.propagation = _PROPAGATION[bare]
            self.deep_propagation = option != bare
        elif option in _TO_THE_FILESYSTEM:
            self.to_filesystem.append((option, None))
        elif "=" in option:
            name, _, value = option.partition("=")
            self.to_filesystem.append((name, value))


def open_sources(plans: Sequence[MountPlan]) -> dict[int, int]:
    """Detached copies of every bind's source, by index. Taken before propagation is cut, or `rshared` could not be.

    Raises LaunchError.
    """
    trees: dict[int, int] = {}
    for index, plan in enumerate(plans):
        if plan.type != "bind":
            continue
        try:
            trees[index] = _clone_source(plan.source, MountOptions(plan.options).recursive)
        except OSError as error:
            raise _failure(plan, error) from error
    return trees


def _clone_source(source: str, recursive: bool) -> int:
    parts = source.split("/", 4)
    if len(parts) == 5 and parts[1] == "proc" and parts[2].isdigit() and parts[3] == "root":
        return _clone_of_process(parts[2], "/" + parts[4], recursive)
    return detached.clone_tree(source, recursive)


def _clone_of_process(pid: str, path: str, recursive: bool) -> int:
    """A tree of another container: a mount can be copied only by somebody inside its namespace."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    ours = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        other = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(other, CLONE_NEWNS)
        finally:
            os.close(other)
        try:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            place_fd = open_in_root(root, path, os.O_PATH, resolve=RESOLVE_NO_MAGICLINKS)
            os.close(root)
            try:
                return detached.clone_tree_of(place_fd, recursive, path)
            finally:
                os.close(place_fd)
        finally:
            setns(own, CLONE_NEWNS)
            os.fchdir(ours)  # in a chroot the root of the namespace is another
            os.chroot(".")
    finally:
        os.close(own)
        os.close(ours)


def cut_propagation() -> None:
    """Nothing mounted from now on is seen outside."""
    take_root(mounts.MS_PRIVATE)


def mount_one(root: int, plan: MountPlan, tree: int) -> int:
    """Carry out one plan inside `root`. tree: a bind's detached copy, else -1. Returns the mount's fd. Raises LaunchError."""
    try:
        return _mount(root, plan, tree)
    except OSError as error:
        raise _failure(plan, error) from error


def _mount(root: int, plan: MountPlan, tree: int) -> int:
    if plan.type == "symlink":
        return _link(root, plan)
    options = MountOptions(plan.options)
    if plan.type == "remount":
        there = open_in_root(root, plan.target, os.O_PATH | os.O_DIRECTORY)
        detached.mount_setattr(there, add=options.add, clear=options.clear, recursive=False, what=plan.target)
        return there
    if plan.type == "bind":
        mounted = tree
        _set_up_bind(plan, options, mounted)
        if plan.target == PROC:
            _check_procfs(plan, mounted)
            target = _directory(root, plan, ordinary=True)
        else:
            target = place(root, plan.target, directory=is_directory(mounted))
        if is_directory(target) != is_directory(mounted):
            os.close(target)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), plan.target)
    else:
        if plan.type == "tmpfs" and not any(name == "mode" for name, _ in options.to_filesystem):
            options.to_filesystem += _mode_of(root, plan.target)
        mounted = _filesystem(plan, options)
        if options.propagation:
            detached.mount_setattr(
                mounted, propagation=options.propagation, recursive=False, what=plan.target
            )
        target = _directory(root, plan, ordinary=plan.type in _ORDINARY)
    try:
        _keep_out_of_proc(root, plan, target)
        detached.move_mount(mounted, target, plan.target)
    finally:
        os.close(target)
    return mounted


def _set_up_bind(plan: MountPlan, options: MountOptions, mounted: int) -> None:
    """Attributes as deep as the bind, propagation as deep as its word says; in one call when that is the same."""
    propagation = options.propagation or detached.MS_PRIVATE
    deep = options.deep_propagation or not options.propagation
    if deep == options.recursive or not options.recursive:
        detached.mount_setattr(
            mounted, add=options.add, clear=options.clear, propagation=propagation, recursive=options.recursive,
            what=plan.target,
        )  # fmt: skip
        return
    detached.mount_setattr(mounted, add=options.add, clear=options.clear, recursive=True, what=plan.target)
    detached.mount_setattr(mounted, propagation=propagation, recursive=False, what=plan.target)


def _filesystem(plan: MountPlan, options: MountOptions) -> int:
    fstype = plan.type
    if fstype == "cgroup":
        fstype = "cgroup2"
    settings = list(options.to_filesystem)
    if fstype == "tmpfs":
        settings.insert(0, ("source", plan.source or "tmpfs"))
    elif fstype != "cgroup2":
        settings.insert(0, ("source", plan.source or fstype))
    return detached.fsmount(fstype, settings, options.add)


def _mode_of(root: int, path: str) -> list[tuple[str, str | None]]:
    """A tmpfs has the mode of the directory that it covers, as runc's has; over nothing it has its own default."""
    try:
        covered = open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        return [("mode", f"{os.fstat(covered).st_mode & 0o7777:o}")]
    finally:
        os.close(covered)


def _directory(root: int, plan: MountPlan, *, ordinary: bool) -> int:
    """The target, made when it is not there. ordinary: by no link."""
    resolve = RESOLVE_NO_SYMLINKS if ordinary else 0
    try:
        target = place(root, plan.target, directory=True, resolve=resolve)
    except OSError as error:
        if resolve and error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _not_ordinary(plan) from error
        raise
    if not is_directory(target):
        os.close(target)
        if resolve:
            raise _not_ordinary(plan)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), plan.target)
    return target


def _link(root: int, plan: MountPlan) -> int:
    parent_path, _, name = plan.target.rpartition("/")
    parent = make_directories(root, parent_path)
    try:
        os.symlink(plan.source, name, dir_fd=parent)
    except FileExistsError:
        pass
    return parent


def _check_procfs(plan: MountPlan, mounted: int) -> None:
    """Only a whole procfs may be bound as /proc: the masks are for what lies in one, and programs trust its words (CVE-2019-16884).

    Source: runc's rootfs_linux.go, checkProcMount, which still takes a part of one, with a warning.
    """
    if detached.filesystem_of(mounted) != detached.PROC_SUPER_MAGIC:
        raise _refused(plan, plan.target, "not of type proc")
    if os.fstat(mounted).st_ino != _PROC_ROOT:
        raise _refused(plan, plan.target, "not the root of a procfs")


def check_hidden(plans: Sequence[MountPlan], hidden: Sequence[str]) -> None:
    """Refuse binds that are shared with the host where `hidden` paths lie: what covers those in the container would cover the host's own.

    Raises LaunchError.
    """
    for plan in plans:
        if plan.type == "bind" and not {"shared", "rshared"}.isdisjoint(plan.options):
            below = plan.target.rstrip("/") + "/"
            if any(f"{path}/".startswith(below) for path in hidden):
                raise _refused(plan, plan.target, "shared with the host")


def _keep_out_of_proc(root: int, plan: MountPlan, target: int) -> None:
    """Refuse a target in what /proc shows, or on it, by whatever link it was reached (CVE-2019-16884); but for the few files that may be."""
    if plan.target in PROC_FILES or detached.filesystem_of(target) != detached.PROC_SUPER_MAGIC:
        return
    try:
        proc = open_in_root(root, PROC, os.O_PATH)
    except FileNotFoundError:
        return
    try:
        if os.fstat(proc).st_dev == os.fstat(target).st_dev:
            raise _refused(plan, without_links(root, plan.target), "inside /proc")
    finally:
        os.close(proc)


def _refused(plan: MountPlan, place: str, why: str) -> LaunchError:
    return LaunchError(
        f'error mounting "{plan.source or plan.type}" to rootfs at "{plan.target}": "{place}" cannot be mounted because it is {why}'
    )


def _not_ordinary(plan: MountPlan) -> LaunchError:
    kind = "proc" if plan.type == "bind" else plan.type
    return LaunchError(
        f'error mounting "{plan.source or plan.type}" to rootfs at "{plan.target}": filesystem "{kind}" must be mounted '
        "on ordinary directory"
    )


def _failure(plan: MountPlan, error: OSError) -> LaunchError:
    text = f'error mounting "{plan.source or plan.type}" to rootfs at "{plan.target}": {reason(error)}'
    if error.errno == errno.ENOTDIR:
        return LaunchError(text, code=127, status=400)
    return LaunchError(text)
