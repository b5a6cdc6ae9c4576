"""A directory tree as a tar, read by fds only: for a layer worker. Where a name leads is decided once, by the fd that is then read.

Entries sorted, times in whole seconds, `security.capability` and `user.*` attributes kept, sockets left out, as dockerd's are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container
from dataclasses import dataclass

from ketch_wire.faults import EngineFailure
from ketchd.containers.paths import printable
from ketchd.layers.descent import Descent
from ketchd.layers.tarheaders import (
    BLOCK,
    BLOCKDEV,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARDLINK,
    REGULAR,
    SYMLINK,
    Entry,
    header,
)

Sink = Callable[[bytes], None]
_CHUNK, _SHOWN = 1 << 20, 4096
_HERE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {stat.S_IFCHR: CHARACTER, stat.S_IFBLK: BLOCKDEV, stat.S_IFIFO: FIFO}


class _SinkFailed(Exception):
    """Whoever reads the tar is gone: no fault of what is read."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class _Open:
    """A directory under way: what is left of it (the next one last), its children's prefix, its device."""

    children: list[bytes]
    prefix: bytes
    device: int


class TreeTar:
    """Writes trees into one tar that `sink` gets in pieces of about 1 MiB. Call `end` last."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._waiting = bytearray()
        self._links: dict[tuple[int, int], bytes] = {}

    def add(self, opened: int, name: bytes, path: bytes = b"/", entered: Container[bytes] = ()) -> None:
        """What the O_PATH fd `opened` is, with everything below it, under `name`.

        Raises EngineFailure naming what cannot be read; InvalidInput where a path is too long; OSError of the sink.

        path: where it lies; entered: the mount points below which are gone into. Others (/proc, /sys) are empty directories.
        """
        waiting: list[_Open] = []
        descent = Descent()
        skip = len(name.rstrip(b"/"))
        full = name
        try:
            self._add_one(opened, name, None, waiting, descent)
            while waiting:
                top = waiting[-1]
                if not top.children:
                    waiting.pop()
                    descent.leave()
                    continue
                child = top.children.pop()
                full = top.prefix + child
                try:
                    inner = os.open(child, _HERE, dir_fd=descent.here)
                except FileNotFoundError:
                    continue  # gone meanwhile
                try:
                    device = None if path.rstrip(b"/") + full[skip:] in entered else top.device
                    self._add_one(inner, full, device, waiting, descent)
                finally:
                    os.close(inner)
        except _SinkFailed as failed:
            raise failed.error from None
        except OSError as error:
            shown = printable((path.rstrip(b"/") + full[skip:]).decode(errors="surrogateescape"))
            raise EngineFailure(
                f"cannot read {shown[:_SHOWN]}: {(error.strerror or str(error)).lower()}"
            ) from error
        finally:
            descent.close()

    def end(self) -> None:
        """Two blocks of zeros, and the rest to the sink."""
        try:
            self._write(bytes(2 * BLOCK))
            self._flush()
        except _SinkFailed as failed:
            raise failed.error from None

    def _add_one(
        self, opened: int, name: bytes, device: int | None, waiting: list[_Open], descent: Descent
    ) -> None:
        """device: of the directory it lies in, when a mount on it is not to be gone into."""
        info = os.fstat(opened)
        if not stat.S_ISDIR(info.st_mode):
            self._add_leaf(opened, name, info)
            return
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened)
        descent.enter(directory)
        place = _Open([], name if name.endswith(b"/") else name + b"/", info.st_dev)
        waiting.append(place)
        entry = _entry(name, DIRECTORY, info)
        entry.xattrs = _xattrs(directory)
        self._write(header(entry))
        if device is None or device == info.st_dev:
            place.children += sorted((os.fsencode(child) for child in os.listdir(directory)), reverse=True)

    def _add_leaf(self, opened: int, name: bytes, info: os.stat_result) -> None:
        kind = stat.S_IFMT(info.st_mode)
        key = (info.st_dev, info.st_ino)
        if kind == stat.S_IFSOCK:
            return
        if info.st_nlink > 1 and key in self._links:
            entry = _entry(name, HARDLINK, info)
            entry.link = self._links[key]
            self._write(header(entry))
            return
        if kind == stat.S_IFREG:
            self._add_file(opened, name, info)
        elif kind == stat.S_IFLNK:
            entry = _entry(name, SYMLINK, info)
            entry.link = os.fsencode(os.readlink("", dir_fd=opened))
            self._write(header(entry))
        elif kind in _KINDS:
            entry = _entry(name, _KINDS[kind], info)
            entry.major, entry.minor = os.major(info.st_rdev), os.minor(info.st_rdev)
            self._write(header(entry))
        if info.st_nlink > 1:
            self._links[key] = name

    def _add_file(self, opened: int, name: bytes, info: os.stat_result) -> None:
        """The size in the header is kept, whatever happens to the file meanwhile: what is missing is zeros."""
        file = os.open(f"/proc/self/fd/{opened}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entry = _entry(name, REGULAR, info)
            entry.size = entry.stored = left = info.st_size
            entry.xattrs = _xattrs(file)
            self._write(header(entry))
            while left:
                chunk = os.read(file, min(_CHUNK, left)) or bytes(min(_CHUNK, left))
                self._write(chunk)
                left -= len(chunk)
            self._write(bytes(-info.st_size % BLOCK))
        finally:
            os.close(file)

    def _write(self, content: bytes) -> None:
        self._waiting += content
        if len(self._waiting) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        try:
            self._sink(bytes(self._waiting))
        except OSError as error:
            raise _SinkFailed(error) from error
        self._waiting.clear()


def _entry(name: bytes, kind: bytes, info: os.stat_result) -> Entry:
    seconds = info.st_mtime_ns // 1_000_000_000
    return Entry(
        name=name, type=kind, mode=stat.S_IMODE(info.st_mode), uid=info.st_uid, gid=info.st_gid,
        mtime_ns=seconds * 1_000_000_000,
    )  # fmt: skip


def _xattrs(file: int) -> dict[bytes, bytes]:
    try:
        names = [
            name for name in os.listxattr(file) if name == "security.capability" or name.startswith("user.")
        ]
        return {os.fsencode(name): os.getxattr(file, name) for name in names}
    except OSError:
        return {}  # a filesystem without them
