"""A blob that is not whole yet: `partial/HEX` and beside it `HEX.map`, the record of the ranges that arrived.

Both stay when a download ends early, however it ends, and the next one goes on from there. The record is written after the
bytes, piece by piece: a killed daemon loses the piece under way. What a power cut tears shows when the digest is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure
from ketchd.kernel.files import SYNC_FILE_RANGE_WRITE, sync_file_range
from ketchd.model.digest import Digest
from ketchd.registry import ranges

PIECE = 512 * 1024
_WRITEBACK = 8 * PIECE  # begin to write to the disk early, or the sync at the end waits for all of it
_RECORD_LIMIT = 16 * 1024 * 1024
_VECTORS = 256
_HEX = re.compile("[0-9a-f]{64}")


class Partial:
    """One download's file. `open` it, `write` what arrives, then `release` it or `discard` it. Used by one task group at a
    time: whoever downloads a digest holds it alone."""

    def __init__(self, path: Path, record: Path, fd: int, size: int, extents: ranges.Extents) -> None:
        self.path = path
        self.fd = fd
        self.extents = extents
        self.size = size
        self._record_path = record
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._behind = 0

    @staticmethod
    async def open(directory: Path, digest: Digest, size: int) -> Partial:
        """What is there of the blob, or an empty beginning. Raises EngineFailure."""
        try:
            return await asyncio.to_thread(_open, directory, digest, size)
        except OSError as error:
            raise _disk_fault(digest.short, error) from error

    async def write(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Store bytes that arrived; when it returns they are on record. Raises EngineFailure.

        Cancelled: they are stored or not, never half recorded.
        """
        length = sum(len(piece) for piece in pieces)
        await self._in_thread(self._write, offset, list(pieces), length)
        self.extents.add(offset, offset + length)

    async def sync(self) -> None:
        """Bring what is there to the disk, so that publishing finds nothing left to do. Raises EngineFailure."""
        await self._in_thread(os.fdatasync, self.fd)

    async def _in_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            # It uses our descriptors: they may be closed only after it.
            await asyncio.gather(running, return_exceptions=True)
            raise
        except OSError as error:
            raise _disk_fault(self.path.name[:12], error) from error

    def restart(self) -> None:
        """Forget what is there: it turned out to be false."""
        self.extents.clear()
        os.ftruncate(self._record, 0)

    def release(self) -> None:
        """Close the files; they stay. May be called twice."""
        for descriptor in (self.fd, self._record):
            if descriptor >= 0:
                os.close(descriptor)
        self.fd = self._record = -1

    def forget_record(self) -> None:
        """The blob is whole and has moved to its place."""
        self.release()
        self._record_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Close and remove."""
        self.forget_record()
        self.path.unlink(missing_ok=True)

    def _write(self, offset: int, pieces: list[bytes | memoryview], length: int) -> None:
        at = offset
        while pieces:
            batch, pieces = pieces[:_VECTORS], pieces[_VECTORS:]
            left = sum(len(piece) for piece in batch)
            written = os.pwritev(self.fd, batch, at)
            at += written
            if written < left:
                rest = b"".join(batch)[written:]
                pieces = [rest, *pieces]
        os.write(self._record, ranges.line(offset, offset + length))
        if at - self._behind >= _WRITEBACK:
            sync_file_range(self.fd, self._behind, at - self._behind, SYNC_FILE_RANGE_WRITE, str(self.path))
            self._behind = at


@dataclass(frozen=True, slots=True)
class Leftover:
    """What has arrived of a blob: its digest, bytes on the disk, and when somebody last went on with it, ns since the epoch."""

    digest: Digest
    size: int
    last_used_ns: int


def leftovers(directory: Path) -> list[Leftover]:
    """Everything in the directory of partial files, downloads under way too."""
    found: dict[str, list[os.stat_result]] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name.removesuffix(".map")
            if _HEX.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    found.setdefault(name, []).append(entry.stat(follow_symlinks=False))
    return [
        Leftover(
            Digest(f"sha256:{name}"), sum(one.st_blocks for one in files) * 512, max(one.st_mtime_ns for one in files)
        )
        for name, files in sorted(found.items())
    ]  # fmt: skip


def _open(directory: Path, digest: Digest, size: int) -> Partial:
    directory.mkdir(exist_ok=True, mode=0o700)
    path, record = directory / digest.hex, directory / f"{digest.hex}.map"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        extents = _read_record(record, min(size, os.fstat(fd).st_size))
        if not extents.total:
            os.ftruncate(fd, 0)
            record.unlink(missing_ok=True)
        return Partial(path, record, fd, size, extents)
    except BaseException:
        os.close(fd)
        raise


def _read_record(record: Path, size: int) -> ranges.Extents:
    try:
        if record.stat().st_size > _RECORD_LIMIT:
            return ranges.Extents()
        return ranges.read_lines(record.read_bytes(), size)
    except FileNotFoundError:
        return ranges.Extents()


def _disk_fault(name: str, error: OSError) -> EngineFailure:
    return EngineFailure(f"cannot store blob {name}: {(error.strerror or str(error)).lower()}")
