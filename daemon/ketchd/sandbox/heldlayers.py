"""Layers that stay mounted between containers, so that all of them share one page cache.

A mount of an EROFS file is a filesystem of its own: its pages are filled from the file's at the first read, and go with it. A
container that mounted its layers for itself would read everything once more, and keep it in memory once more. So the launcher
holds a mount namespace with one mount of each layer that was used of late, and a shim's child takes copies (open_tree(2)),
which are further mounts of the same filesystem. No process is in that namespace for longer than that takes: it lasts as
long as the launcher, and nothing of it is seen outside.

In it, `/NAME/layer` is one layer; `/NAME` was changed when it was used last. NAME is the file's device and inode: a layer that was
repaired is another file, and the inode of a removed one is not given away while it is mounted here.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from ketchd.kernel import detached, mounts, rights
from ketchd.kernel.namespaces import CLONE_NEWNS, setns, unshare
from ketchd.kernel.ownroot import take_root
from ketchd.sandbox.layermounts import mount_detached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ketch_wire.launch import LayerMount

PACKET = 16384  # bytes of names that one packet to the launcher has at most
LIMIT = 256  # layers; loop devices are behind them where the kernel cannot do without
_PLACES = ("/tmp", "/run", "/var", "/mnt")
_OWN = "/proc/self/ns/mnt"
_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def hold() -> int:
    """A namespace for layers: its fd, which alone keeps it. -1 where there can be none; then nothing is shared, and that is all.

    Another process makes it, goes home and comes back: where the way home is closed, it is not the caller who is lost.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _make_namespace(theirs)
    theirs.close()
    try:
        _, ancillary, _, _ = ours.recvmsg(1, rights.room_for(1), _socket.MSG_CMSG_CLOEXEC)
        return next(iter(rights.taken(ancillary)), -1)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _make_namespace(told: _socket.socket) -> None:
    """In a process of its own: a namespace of which a small tmpfs is the root. Never returns.

    It is asked for as one's own: /proc may be of another pid namespace, and show somebody else by this process's number.
    """
    try:
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        unshare(CLONE_NEWNS)
        made = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        take_root(mounts.MS_PRIVATE)
        place = next(path for path in _PLACES if os.path.isdir(path))
        tree = detached.fsmount("tmpfs", [("source", "layers"), ("mode", "0700"), ("size", "1m")])
        target = os.open(place, _OPEN)
        detached.move_mount(tree, target, place)
        top = os.open("/", _OPEN)
        os.fchdir(tree)
        mounts.pivot_root(".", ".")
        os.fchdir(top)
        mounts.umount(".", mounts.MNT_DETACH)
        for namespace in (home, made):
            setns(namespace, CLONE_NEWNS)
        told.sendmsg([b"1"], rights.packed([made]))
    finally:
        os._exit(0)


class _Visit:
    """`with` it, the caller (one thread) is in the namespace, at its root; then where it was. Raises OSError."""

    __slots__ = ("_home", "_namespace", "_top", "_was")

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace
        self._home = self._top = self._was = -1

    def __enter__(self) -> None:
        try:
            self._home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            self._top, self._was = os.open("/", _OPEN), os.open(".", _OPEN)
            setns(self._namespace, CLONE_NEWNS)
        except OSError:
            self._close()
            raise

    def __exit__(self, *failure: object) -> None:
        try:
            setns(self._home, CLONE_NEWNS)
            os.fchdir(self._top)
            os.chroot(".")  # the caller's root need not be its namespace's
            os.fchdir(self._was)
        finally:
            self._close()

    def _close(self) -> None:
        for fd in (self._home, self._top, self._was):
            if fd >= 0:
                os.close(fd)


def name(path: str) -> str:
    """What the layer file at `path` is called here. Raises OSError."""
    facts = os.stat(path)
    return f"{facts.st_dev:x}-{facts.st_ino:x}"


def names(paths: Iterable[str]) -> list[str]:
    """What the files among `paths` are called that are there."""
    found = []
    for path in paths:
        try:
            found.append(name(path))
        except OSError:
            pass
    return found


class Layers:
    """How a container comes to its layers. `open` is for the process that mounts them: what it learns for it, it takes along when it ends.

    opened: place in the chain -> detached mount, for layers that this process could not open. held: what `hold` gave.
    """

    __slots__ = ("held", "opened")

    def __init__(self, held: int) -> None:
        self.held = held
        self.opened: dict[int, int] = {}

    def open(self, layers: Sequence[LayerMount]) -> None:
        """Open all of them that are files. Called twice, it does nothing. The caller has one thread. Raises OSError."""
        if not self.opened:
            self.opened = open_layers(layers, self.held)
        self.let_go()

    def fds(self) -> set[int]:
        """Every descriptor."""
        return {self.held, *self.opened.values()}

    def let_go(self) -> None:
        """Of the namespace, which lasts as long as anybody has it open, and is none of a container's business. May be called twice."""
        if self.held >= 0:
            os.close(self.held)
            self.held = -1

    def close(self) -> None:
        """Everything. May be called twice."""
        self.let_go()
        for fd in self.opened.values():
            os.close(fd)
        self.opened = {}


def open_layers(layers: Sequence[LayerMount], namespace: int) -> dict[int, int]:
    """Every layer that is a file as a detached mount: place in `layers` -> mount fd, to be closed by the caller.

    namespace: what `hold` gave. The caller has one thread. Raises OSError.
    """
    files = {index: layer for index, layer in enumerate(layers) if layer.kind != "directory"}
    opened: dict[int, int] = {}
    try:
        if files and namespace >= 0:
            _share(files, opened, namespace)
        for index, layer in files.items():
            # None is held; or it was let go of this moment, and this container has its own.
            if index not in opened:
                opened[index] = mount_detached(layer)
        return opened
    except BaseException:
        for mounted in opened.values():
            os.close(mounted)
        raise


def _share(files: dict[int, LayerMount], opened: dict[int, int], namespace: int) -> None:
    """Copies of what is held, and of what is from now on. Another shim, or `forget`, may be at work there at the same time."""
    called = {index: name(layer.path) for index, layer in files.items()}
    with _Visit(namespace):
        _copy_all(called, opened)
    made = {index: called[index] for index in files if index not in opened}
    if not made:
        return
    for index in made:
        opened[index] = mount_detached(files[index])
    with _Visit(namespace):
        for index in made:
            _keep(made[index], opened[index])
            os.close(opened.pop(index))
        _copy_all(made, opened)
        _make_room(set(called.values()))
    gone = [made[index] for index in made if names([files[index].path]) != [made[index]]]
    if gone:
        forget(gone, namespace)  # it was removed meanwhile, and who removed it may have been here before us


def forget(forgotten: Iterable[str], namespace: int) -> None:
    """Let go of layers, whose files have left their places; containers keep what they have. The caller has one thread. Raises OSError."""
    with _Visit(namespace):
        for called in forgotten:
            _unmount(called)


# in the namespace


def _copy_all(called: dict[int, str], opened: dict[int, int]) -> None:
    for index, one in called.items():
        copy = _copy(one)
        if copy >= 0:
            opened[index] = copy


def _copy(called: str) -> int:
    """A layer that is held, as a further mount of it; -1 for one that is not."""
    path = f"/{called}/layer"
    try:
        now = time.time_ns()  # the kernel's own stamp is as coarse as its clock's tick
        os.utime(f"/{called}", ns=(now, now))
        mounted = detached.clone_tree(path, recursive=False)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        return -1  # EINVAL: it was found, and unmounted before it was copied
    if os.fstat(mounted).st_dev == os.stat("/").st_dev:  # whoever mounts it is not there yet
        os.close(mounted)
        return -1
    return mounted


def _keep(called: str, mounted: int) -> None:
    """Of two shims that do so at once, both mount it, and both mounts go in the end. Nothing is kept when the place is removed
    at the same time."""
    path = f"/{called}/layer"
    try:
        for directory in (f"/{called}", path):
            try:
                os.mkdir(directory)
            except FileExistsError:  # os.makedirs looks again then, and fails when it has just been removed
                pass
        target = os.open(path, _OPEN)
        try:
            detached.move_mount(mounted, target, path)
        finally:
            os.close(target)
    except FileNotFoundError:
        pass


def _make_room(used: set[str]) -> None:
    """Let go of what was used longest ago, when there are more than LIMIT."""
    held = os.listdir("/")
    surplus = len(held) - LIMIT
    if surplus <= 0:
        return
    ages = []
    for called in held:
        try:
            age = os.stat(f"/{called}").st_mtime_ns
        except FileNotFoundError:
            surplus -= 1  # another makes room too
        else:
            if called not in used:
                ages.append((age, called))
    for _, called in sorted(ages)[: max(surplus, 0)]:
        _unmount(called)


def _unmount(called: str) -> None:
    path = f"/{called}/layer"
    try:
        while True:
            mounts.umount(path, mounts.MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    for directory in (path, f"/{called}"):
        try:
            os.rmdir(directory)
        except OSError:
            return  # never held; or somebody mounts it again this moment
