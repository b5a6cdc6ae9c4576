"""Layer worker job: a writable layer's directory (overlayfs' upper) as a reproducible tar, written once into its layer file.

Depth first, names sorted bytewise, hard links to their first name, whiteouts and opaque directories in the tar's form, times in
whole seconds as dockerd writes them. Source: image-spec layer.md; kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import InvalidInput
from ketch_wire.launch import LayerMount
from ketchd.layers.descent import Descent, open_directory
from ketchd.layers.layerfile import LayerFile
from ketchd.layers.mounting import mount_chain
from ketchd.layers.tarheaders import BLOCKDEV, CHARACTER, DIRECTORY, FIFO, HARDLINK, REGULAR, SYMLINK, Entry
from ketchd.layers.tarwrite import TarWriter
from ketchd.layers.tree import OPAQUE_NAME, PATH_LIMIT, WHITEOUT_PREFIX
from ketchd.layers.worker import JobPort

_SECOND = 1_000_000_000
_TYPES = {
    stat.S_IFREG: REGULAR, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHARACTER, stat.S_IFBLK: BLOCKDEV,
    stat.S_IFDIR: DIRECTORY, stat.S_IFIFO: FIFO,
}  # fmt: skip
_OPAQUE = "trusted.overlay.opaque"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The host's own labels and measurements mean nothing elsewhere; overlayfs' notes mean nothing in a tar.
_LEFT_OUT = (
    "trusted.overlay.",
    "security.selinux",
    "security.ima",
    "security.evm",
    "security.SMACK",
    "security.apparmor",
)


def from_upper(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: place (see LayerFile), upper, lower (mounts, top first).

    Returns what LayerFile.seal does, or {"empty": True}.
    """
    root = os.open(arguments["upper"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    below = -1
    try:
        if not os.listdir(root):
            return {"empty": True}
        layers = [LayerMount(**layer) for layer in arguments["lower"]]
        if layers:
            merged = port.scratch(outlives=True)
            mount_chain(layers, merged, None, None, True)
            below = os.open(merged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with LayerFile(arguments["place"]) as layer:
            writer = TarWriter(layer)
            walk = _Walk(writer)
            try:
                walk.run(root, below)
            finally:
                walk.close()
            if not writer.members:
                return {"empty": True}
            writer.finish()
            return layer.seal()
    finally:
        os.close(root)
        if below >= 0:
            os.close(below)


@dataclass(slots=True)
class _Place:
    """A directory under way. prefix: its path, empty or with a slash at its end. names: what is left of it, the next one last.
    entry: its own, None of the root. in_lower: it is a directory there too."""

    prefix: bytes
    names: list[bytes]
    entry: Entry | None
    in_lower: bool


class _Walk:
    """The upper directory's members, in order. What goes meanwhile, since the container runs on, is left out.

    An unchanged directory waits until something below it changed: overlayfs copies a directory up also when a file in it was only
    opened for writing and removed again.
    """

    def __init__(self, writer: TarWriter) -> None:
        self._writer = writer
        self._upper, self._below = Descent(), Descent()
        self._places: list[_Place] = []
        self._first: dict[tuple[int, int], bytes] = {}
        self._waiting: list[Entry] = []

    def run(self, root: int, below: int) -> None:
        """Everything in `root`; below: what the lower layers look like, -1 for none. Both stay the caller's."""
        if below >= 0:
            self._below.enter(os.dup(below))
        self._enter(os.dup(root), b"", None, below >= 0)
        while self._places:
            place = self._places[-1]
            if place.names:
                name = place.names.pop()
                try:
                    self._member(place, name)
                except FileNotFoundError:
                    if _is_there(name, self._upper.here):
                        raise
                except NotADirectoryError:
                    pass  # it was one
                continue
            self._places.pop()
            self._upper.leave()
            if place.in_lower:
                self._below.leave()
            if self._waiting and self._waiting[-1] is place.entry:
                self._waiting.pop()

    def close(self) -> None:
        """Let go of the directories that are open. May be called twice."""
        self._upper.close()
        self._below.close()

    def _enter(self, directory: int, prefix: bytes, entry: Entry | None, in_lower: bool) -> None:
        self._upper.enter(directory)
        names = sorted((os.fsencode(name) for name in os.listdir(directory)), reverse=True)
        self._places.append(_Place(prefix, names, entry, in_lower))

    def _member(self, place: _Place, name: bytes) -> None:
        directory, path = self._upper.here, place.prefix + name
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = stat.S_IFMT(info.st_mode)
        if len(path) > PATH_LIMIT:
            raise InvalidInput(
                f"/{os.fsdecode(path[:80])}… is nested too deep: a path in a layer has at most {PATH_LIMIT} bytes"
            )
        if name.startswith(WHITEOUT_PREFIX):
            raise InvalidInput(
                f"/{os.fsdecode(path)} cannot be in a layer: names that begin with .wh. mean whiteouts there"
            )
        if kind == stat.S_IFCHR and info.st_rdev == 0:
            self._emit(Entry(place.prefix + WHITEOUT_PREFIX + name, REGULAR, 0o600))
        elif kind == stat.S_IFDIR:
            self._directory(place, name)
        elif kind != stat.S_IFSOCK:  # a socket means nothing without its process
            self._leaf(directory, name, place.prefix, info)

    def _directory(self, place: _Place, name: bytes) -> None:
        path = place.prefix + name
        opened = open_directory(name, self._upper.here)
        try:
            info = os.fstat(opened)
            entry = self._entry(path, info, DIRECTORY)
            entry.xattrs = _xattrs(opened)
            opaque = _is_opaque(opened)
            lower = self._lower(name) if place.in_lower else -1
        except BaseException:
            os.close(opened)
            raise
        goes_on = lower >= 0 and not opaque
        is_same = lower >= 0 and _is_same(lower, info, entry.xattrs)
        if goes_on:
            self._below.enter(lower)
        elif lower >= 0:
            os.close(lower)
        self._enter(opened, path + b"/", entry, goes_on)
        if goes_on and is_same:
            self._waiting.append(entry)
        else:
            self._emit(entry)
        if opaque:
            self._emit(Entry(path + b"/" + OPAQUE_NAME, REGULAR, 0o600))

    def _lower(self, name: bytes) -> int:
        """The directory of the lower layers that is called the same, the caller's; -1 where they have none."""
        try:
            return open_directory(name, self._below.here)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            if error.errno == errno.ELOOP:
                return -1
            raise

    def _leaf(self, directory: int, name: bytes, prefix: bytes, info: os.stat_result) -> None:
        path = prefix + name
        identity = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and identity in self._first:
            entry = self._entry(path, info, HARDLINK)
            entry.link = self._first[identity]
            self._emit(entry)
            return
        entry = self._entry(path, info, _TYPES[stat.S_IFMT(info.st_mode)])
        entry.xattrs = _xattrs(os.path.join(b"/proc/self/fd/%d" % directory, name))
        if entry.type == SYMLINK:
            entry.link = os.fsencode(os.readlink(name, dir_fd=directory))
        elif entry.type in (CHARACTER, BLOCKDEV):
            entry.major, entry.minor = os.major(info.st_rdev), os.minor(info.st_rdev)
        if entry.type == REGULAR and info.st_size:
            source = os.open(name, _OPEN, dir_fd=directory)
            try:
                entry.size = entry.stored = os.fstat(source).st_size
                self._emit(entry, source)
            finally:
                os.close(source)
        else:
            self._emit(entry)
        self._first[identity] = path

    def _entry(self, path: bytes, info: os.stat_result, kind: bytes) -> Entry:
        seconds = info.st_mtime_ns // _SECOND
        return Entry(
            path, kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, mtime_ns=seconds * _SECOND
        )

    def _emit(self, entry: Entry, source: int = -1) -> None:
        waiting, self._waiting = self._waiting, []
        for directory in waiting:
            self._writer.add(directory)
        self._writer.add(entry, source=source)


def _is_there(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_same(lower: int, info: os.stat_result, xattrs: dict[bytes, bytes]) -> bool:
    there = os.fstat(lower)
    wanted = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns)
    found = (there.st_mode, there.st_uid, there.st_gid, there.st_mtime_ns)
    return found == wanted and _xattrs(lower) == xattrs


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False


def _xattrs(path: int | bytes) -> dict[bytes, bytes]:
    follow = isinstance(path, int)
    return {
        os.fsencode(name): os.getxattr(path, name, follow_symlinks=follow)
        for name in os.listxattr(path, follow_symlinks=follow)
        if not name.startswith(_LEFT_OUT)
    }
