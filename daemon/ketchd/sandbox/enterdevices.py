"""/dev: nodes, links and the console, all relative to descriptors. Source: runtime-spec config-linux.md, "Default Devices"."""

from __future__ import annotations

import os
import stat

from ketchd.kernel import detached, pty
from ketchd.kernel.openat import make_directories, open_in_root
from ketchd.sandbox.failures import LaunchError
from ketchd.sandbox.targets import is_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ketch_wire.launch import DevicePlan

_LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"), ("core", "/proc/kcore"),
)  # fmt: skip
_KINDS = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "u": stat.S_IFCHR, "p": stat.S_IFIFO}


def make_devices(root: int, plans: Sequence[DevicePlan], *, bind: bool = False) -> None:
    """The nodes, and the usual links. What is there already stays. bind: in a user namespace nobody may make a node, so
    the host's is shown instead. Raises OSError."""
    before = os.umask(0)
    parents: dict[str, int] = {}
    try:
        for plan in plans:
            parent_path, _, name = plan.path.rpartition("/")
            if parent_path not in parents:
                parents[parent_path] = make_directories(root, parent_path)
            parent = parents[parent_path]
            if bind:
                _bind_node(plan, parent, name)
                continue
            try:
                os.mknod(
                    name,
                    _KINDS[plan.kind] | plan.mode & 0o7777,
                    os.makedev(plan.major, plan.minor),
                    dir_fd=parent,
                )
            except FileExistsError:
                continue
            if plan.uid or plan.gid:
                os.chown(name, plan.uid, plan.gid, dir_fd=parent, follow_symlinks=False)
        dev = parents.get("/dev") or make_directories(root, "/dev")
        parents["/dev"] = dev
        for name, target in _LINKS:
            if name == "core" and not os.path.exists(target):
                continue  # a kernel without it, as runc does
            try:
                os.symlink(target, name, dir_fd=dev)
            except FileExistsError:
                continue
    finally:
        os.umask(before)
        for fd in parents.values():
            os.close(fd)


def _bind_node(plan: DevicePlan, parent: int, name: str) -> None:
    tree = detached.clone_tree(plan.source or plan.path, recursive=False)
    try:
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=parent))
        except FileExistsError:
            return
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            detached.move_mount(tree, target, plan.path)
        finally:
            os.close(target)
    finally:
        os.close(tree)


def with_null(root: int, stdio: tuple[int, int, int]) -> tuple[int, int, int]:
    """`stdio` with the container's /dev/null for every -1."""
    if min(stdio) >= 0:
        return stdio
    null = _open_null(root)
    first, second, third = (fd if fd >= 0 else null for fd in stdio)
    return first, second, third


def _open_null(root: int) -> int:
    """A verified /dev/null of the container, or a pipe at its end when it has none."""
    try:
        fd = open_in_root(root, "/dev/null", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        fd = -1
    if fd >= 0:
        if is_device(fd, 1, 3):
            os.set_blocking(fd, True)
            return fd
        os.close(fd)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.close(writer)
    return reader


def open_terminal(devpts: int, size: Sequence[int]) -> tuple[int, int]:
    """(master, slave) of a new terminal. devpts: fd of the container's devpts mount, or -1 for the host's. size: height, width; zeroes
    where none is known."""
    if devpts >= 0:
        ptmx = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=devpts)
    else:
        ptmx = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return _pair(ptmx, size)


def open_terminal_inside(root: int, size: Sequence[int]) -> tuple[int, int]:
    """The same in a container that runs, whose /dev may be anything by now. Raises LaunchError, OSError."""
    ptmx = open_in_root(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    if not is_device(ptmx, 5, 2):
        os.close(ptmx)
        raise LaunchError("open /dev/pts/ptmx: not a terminal multiplexer")
    os.set_blocking(ptmx, True)
    return _pair(ptmx, size)


def _pair(ptmx: int, size: Sequence[int]) -> tuple[int, int]:
    """The program must not look at the size before it is set."""
    if any(size):
        pty.set_size(ptmx, *size)
    return pty.open_pair(ptmx)


def bind_console(root: int, slave: int) -> None:
    """/dev/console is the container's terminal, bound by descriptor (CVE-2025-52565). Raises OSError."""
    dev = make_directories(root, "/dev")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open("console", flags, 0o600, dir_fd=dev))
        except FileExistsError:
            pass
        target = os.open("console", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev)
        try:
            mode = os.fstat(target).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
                raise LaunchError("/dev/console is neither a file nor a device")
            tree = detached.clone_tree_of(slave, False, "/dev/console")
            try:
                detached.move_mount(tree, target, "/dev/console")
            finally:
                os.close(tree)
        finally:
            os.close(target)
    finally:
        os.close(dev)
