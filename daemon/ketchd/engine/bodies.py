"""Request bodies that are archives: received into the stage, decompressed there, gone afterwards."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ketch_wire.faults import EngineFailure
from ketchd.content.blobs import BlobStore
from ketchd.layers.endings import in_thread
from ketchd.layers.inflate import inflate, is_compressed

_CHUNK = 1 << 20


@asynccontextmanager
async def staged(blobs: BlobStore, chunks: AsyncIterable[bytes]) -> AsyncIterator[Path]:
    """A file of all of `chunks` for the body's time. Raises EngineFailure (disk full)."""
    path = blobs.stage_path()
    try:
        with path.open("xb", buffering=0) as file:
            waiting = bytearray()
            async for chunk in chunks:
                waiting += chunk
                if len(waiting) >= _CHUNK:
                    await in_thread(_write, file.fileno(), bytes(waiting))
                    waiting.clear()
            await in_thread(_write, file.fileno(), bytes(waiting))
        yield path
    finally:
        path.unlink(missing_ok=True)


@asynccontextmanager
async def staged_plain(blobs: BlobStore, chunks: AsyncIterable[bytes]) -> AsyncIterator[Path]:
    """The same, decompressed if it is gzip, zstd, bzip2 or xz. Raises EngineFailure, InvalidInput (damaged)."""
    async with staged(blobs, chunks) as received:
        if not await asyncio.to_thread(_is_compressed, received):
            yield received
            return
        plain, stop = blobs.stage_path(), threading.Event()
        try:
            job = asyncio.ensure_future(asyncio.to_thread(_decompress, received, plain, stop))
            try:
                await asyncio.shield(job)
            except asyncio.CancelledError:
                stop.set()
                await asyncio.wait([job])
                raise
            yield plain
        finally:
            plain.unlink(missing_ok=True)


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError as error:
        raise _disk_fault(error) from error


def _is_compressed(path: Path) -> bool:
    with path.open("rb", buffering=0) as file:
        return is_compressed(file.read(16))


def _decompress(source: Path, target: Path, stop: threading.Event) -> None:
    with source.open("rb", buffering=0) as file, target.open("xb", buffering=0) as plain:
        for piece in inflate(file.read):
            if stop.is_set():
                return
            _write(plain.fileno(), piece)


def _disk_fault(error: OSError) -> EngineFailure:
    return EngineFailure(f"cannot receive the archive: {(error.strerror or str(error)).lower()}")
