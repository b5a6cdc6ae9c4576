"""A layer file being written, once, by a job: head space, then the tar while it comes, hashed beside; sealed by its index.

    [4 KiB head][tar, byte for byte][sparse files' data][inodes][directories]          for kind "erofs"
    [4 KiB head][tar, byte for byte], unpacked into a directory beside it, then gone   for kind "directory"

Nothing here names the layer: the store does, with what `seal` returns, and last.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import mmap
import os
import queue
import threading
from collections.abc import Iterator
from typing import Any

from ketch_wire.faults import EngineFailure
from ketchd.kernel.files import SYNC_FILE_RANGE_WRITE, sync_file_range
from ketchd.kernel.memory import give_back
from ketchd.layers import erofs
from ketchd.layers.erofs import HEAD
from ketchd.layers.placing import remove_staged
from ketchd.layers.tarheaders import Entry, entries
from ketchd.layers.tree import Tree, build

PIECE = 1 << 18  # a few of them wait at each end of a layer on its way, in each worker
_WRITEBACK = (
    8 << 20
)  # begin to write to the disk while more comes, or the sync at the end waits for all of it
_MANY = 1000  # entries
_TRIM = 32 << 20  # how often free memory is given back
Buffer = bytes | bytearray | memoryview


class Hasher:
    """sha256 on a thread of its own, at most a few pieces behind. What is fed may not change any more."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pieces: queue.Queue[Buffer | None] = queue.Queue(4)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self._ended = False

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._hash.update(piece)

    def feed(self, piece: Buffer) -> None:
        """Hash this next."""
        self._pieces.put(piece)

    def digest(self) -> str:
        """`sha256:HEX` of everything; ends the thread."""
        self.close()
        return "sha256:" + self._hash.hexdigest()

    def close(self) -> None:
        """End the thread. May be called twice."""
        if not self._ended:
            self._ended = True
            self._pieces.put(None)
            self._thread.join()


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """pwrite(2) until all of `data` is there."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


class LayerFile:
    """A sink for a tar's bytes: `write` and `copy` in order, then `seal` once, or `abandon`. Use it as a context manager:
    what is not sealed is removed.

    place: what `LayerStore.new_layer` gives, {"path": a free path below the stage, "kind": "erofs" or "directory"}.
    Raises OSError (no space) from every method.
    """

    def __init__(self, place: dict[str, Any]) -> None:
        self.path: str = place["path"]
        self.kind: str = place["kind"]
        self.tar_size = 0
        self._sealed = False
        self._waiting = bytearray()
        self._written = HEAD
        self._behind = 0
        self._trimmed = 0
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hasher = Hasher()

    def __enter__(self) -> LayerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def write(self, data: bytes) -> None:
        """The tar's next bytes."""
        self.tar_size += len(data)
        if len(data) < PIECE // 4:
            self._waiting += data
            if len(self._waiting) >= PIECE:
                self._flush()
            return
        self._flush()
        self._emit(data)

    def copy(self, source: int, offset: int, length: int) -> None:
        """`length` bytes of the file `source`; zeros for what it no longer has, since the header has promised them."""
        end = offset + length
        while offset < end:
            piece = os.pread(source, min(PIECE, end - offset), offset)
            if not piece:
                piece = bytes(min(PIECE, end - offset))
            offset += len(piece)
            self.write(piece)

    def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, bytearray()
            self._emit(waiting)

    def _emit(self, data: Buffer) -> None:
        self._hasher.feed(data)
        write_all(self._fd, data, self._written)
        self._written += len(data)
        if self._written - self._trimmed >= _TRIM:
            self._trimmed = self._written
            give_back()
        if self.kind == "erofs" and self._written - self._behind >= _WRITEBACK:
            sync_file_range(
                self._fd, self._behind, self._written - self._behind, SYNC_FILE_RANGE_WRITE, self.path
            )
            self._behind = self._written

    def seal(self) -> dict[str, Any]:
        """Index or unpack the tar, sync, and say what it is: {path, kind, diff_id, tar_size, disk_size, entries, implied}.

        Raises InvalidInput when the bytes are no tar that can be a layer.
        """
        self._flush()
        tree, index = self._read()
        if self.kind == "erofs":
            self._write_index(index)
            os.fsync(self._fd)
            disk_size = os.fstat(self._fd).st_blocks * 512
        else:
            from ketchd.layers.directories import unpack

            disk_size = unpack(self._fd, self.tar_size, tree, self.path)
        self._sealed = True
        facts = {
            "path": self.path,
            "kind": self.kind,
            "diff_id": self._hasher.digest(),
            "tar_size": self.tar_size,
            "disk_size": disk_size,
            "entries": tree.entries,
            "implied": tree.implied,
        }
        if tree.entries > _MANY:  # a tree is full of cycles, and the worker is kept for other jobs
            del tree, index
            gc.collect()
            give_back()
        return facts

    def _read(self) -> tuple[Tree, erofs.Index]:
        os.ftruncate(self._fd, max(self._written, HEAD))
        # The mapping goes with the last view of it: a fault about the tar, on its way, still holds some.
        mapped = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        tree = build(
            _released(mapped, entries(memoryview(mapped)[HEAD : HEAD + self.tar_size], self.tar_size))
        )
        del mapped
        return tree, erofs.index(tree.root, self.tar_size) if self.kind == "erofs" else erofs.Index()

    def _write_index(self, index: erofs.Index) -> None:
        os.ftruncate(self._fd, index.size)
        for source, length, target in index.copies:
            copy_range(self._fd, self._fd, HEAD + source, target, length)
        for offset, part in index.parts:
            write_all(self._fd, part, offset)

    def abandon(self) -> None:
        """Close, and remove what was not sealed. May be called twice."""
        self._hasher.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if not self._sealed:
            remove_staged(self.path)


def _released(mapped: mmap.mmap, found: Iterator[Entry]) -> Iterator[Entry]:
    """The entries of the mapped tar. What lies behind them is let go of now and then: the kernel maps sixteen pages around each header,
    so that a whole layer would be counted as this process's memory."""
    behind = 0
    for entry in found:
        yield entry
        here = (HEAD + entry.offset) // _WRITEBACK * _WRITEBACK
        if here > behind:
            mapped.madvise(mmap.MADV_DONTNEED, behind, here - behind)
            behind = here


def copy_range(source_fd: int, target_fd: int, source: int, target: int, length: int) -> None:
    """Copy a range of a file to a place in another, or in the same where the two do not overlap."""
    while length:
        try:
            copied = os.copy_file_range(source_fd, target_fd, length, source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            copied = os.pwrite(target_fd, os.pread(source_fd, min(PIECE, length), source), target)
        if not copied:
            raise EngineFailure("a layer file ended too early")
        source, target, length = source + copied, target + copied, length - copied
