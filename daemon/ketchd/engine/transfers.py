"""Layers on their way in: one download per blob however many pulls wait for it, unpacked while it arrives.

registry ──ranges──▶ partial/HEX ──sendfile──▶ layer worker ──▶ layers/sha256/DIFFID
                          └────────── at the end ──────────▶ blobs/sha256/HEX
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from ketch_wire.faults import EngineFailure, Fault, InvalidInput
from ketchd import tracepoint
from ketchd.content.blobs import BlobStore
from ketchd.engine.slots import Slots
from ketchd.layers.endings import in_thread
from ketchd.layers.ingestion import Ingestion, IngestResult, LayerMismatch
from ketchd.layers.store import LayerStore
from ketchd.layers.trash import Trash
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor
from ketchd.registry.download import Download
from ketchd.registry.partial import Leftover, Partial, leftovers
from ketchd.registry.repository import Repository
from ketchd.registry.together import together

tracepoint.declare("pull.blob-downloaded", "pull.layer-published", "pull.blob-published", "pull.blob-related")

# What is told of a transfer: a status of Docker's progress stream, and bytes (0, 0 where there is no bar).
Report = Callable[[str, int, int], None]
DOWNLOADING, EXTRACTING, WAITING = "Downloading", "Extracting", "Waiting"
VERIFYING, DOWNLOADED = "Verifying Checksum", "Download complete"


class _File:
    """A descriptor as the file that sendfile wants; closing it is the partial's business."""

    mode = "rb"

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class _Shared:
    """One transfer under way and those who wait for it. The last to leave ends it. unpacks: whether it ends in a layer."""

    def __init__(self, unpacks: bool) -> None:
        self.unpacks = unpacks
        self.task: asyncio.Task[Digest] | None = None
        self.listeners: list[Report] = []
        self.last: tuple[str, int, int] | None = None
        self.ending = False
        self.arrived = asyncio.Event()

    def report(self, status: str, current: int = 0, total: int = 0) -> None:
        self.last = (status, current, total)
        for listener in self.listeners:
            listener(status, current, total)

    def tell(self, text: str) -> None:
        self.report(text)


class Transfers:
    """The daemon's downloads of layers. `data_root` holds `partial/`; `limit`: downloads at once."""

    def __init__(
        self, data_root: Path, blobs: BlobStore, layers: LayerStore, limit: int, trash: Trash
    ) -> None:
        self._directory = data_root / "partial"
        self._blobs = blobs
        self._layers = layers
        self._trash = trash
        self._slots = Slots(limit)
        self._shared: dict[Digest, _Shared] = {}

    def resize(self, limit: int) -> None:
        """Another number of downloads at once. Those under way go on."""
        self._slots.resize(limit)

    async def layer(self, repository: Repository, descriptor: Descriptor, report: Report) -> Digest:
        """Fetch a layer's blob and make it a layer; returns its diff ID. Blob and layer are published and related.

        The caller holds a lease on the blob and on the layer that it expects. Raises EngineFailure (false bytes, disk),
        InvalidInput (no layer), Refused, Unreachable. Cancelled: another waiter's download goes on; the last one's ends, and
        what arrived is kept for the next.
        """
        return await self._shared_with_others(repository, descriptor, report, unpacks=True)

    async def blob(self, repository: Repository, descriptor: Descriptor, report: Report) -> None:
        """Fetch a blob that is no layer to be unpacked, or not here: it is published as it came.

        The caller holds a lease on it. Raises and leaves as `layer` does.
        """
        if self._blobs.has(descriptor.digest):
            self._blobs.touch(descriptor.digest)
            return
        await self._shared_with_others(repository, descriptor, report, unpacks=False)

    async def _shared_with_others(
        self, repository: Repository, descriptor: Descriptor, report: Report, *, unpacks: bool
    ) -> Digest:
        while True:
            shared = self._shared.get(descriptor.digest)
            if shared is not None and (shared.ending or shared.unpacks is not unpacks):
                assert shared.task is not None
                await asyncio.wait([shared.task])  # its files are free when it has ended
                continue
            joined = shared is not None
            if shared is None:
                shared = self._begin(repository, descriptor, unpacks)
            elif shared.last is not None:
                report(*shared.last)
            try:
                return await self._wait(shared, report)
            except Fault:
                # What stopped another journey (its credentials, its mirror) need not stop this one.
                if not joined:
                    raise

    async def is_left_over(self, descriptor: Descriptor) -> bool:
        """Whether the whole blob of a layer that is here lies in a partial file: a crash between the two publishings
        leaves it so, and `layer` will find it. Part of one is of no use any more: it goes."""
        if descriptor.digest in self._shared or not (self._directory / descriptor.digest.hex).exists():
            return False
        partial = await Partial.open(self._directory, descriptor.digest, descriptor.size)
        if partial.extents.missing(descriptor.size):
            partial.discard()
            return False
        partial.release()
        return True

    def left_over(self) -> list[Leftover]:
        """What lies in `partial/` and is not under way: downloads that ended early."""
        return [one for one in leftovers(self._directory) if one.digest not in self._shared]

    def forget(self, digest: Digest) -> bool:
        """Remove what has arrived of a blob; says whether something did, and nobody is going on with it."""
        if digest in self._shared:
            return False
        path = self._directory / digest.hex
        self._trash.take(path.with_name(f"{digest.hex}.map"))
        return self._trash.take(path)

    def _begin(self, repository: Repository, descriptor: Descriptor, unpacks: bool) -> _Shared:
        shared = self._shared[descriptor.digest] = _Shared(unpacks)
        run = self._run if unpacks else self._run_raw
        shared.task = asyncio.create_task(run(shared, repository, descriptor))

        def ended(_: asyncio.Task[Digest]) -> None:
            if self._shared.get(descriptor.digest) is shared:
                del self._shared[descriptor.digest]

        shared.task.add_done_callback(ended)
        return shared

    async def _wait(self, shared: _Shared, report: Report) -> Digest:
        assert shared.task is not None
        shared.listeners.append(report)
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.listeners.remove(report)
            if not shared.listeners and not shared.task.done():
                shared.ending = True
                shared.task.cancel()
                await asyncio.gather(shared.task, return_exceptions=True)

    # -- one transfer

    async def _run(self, shared: _Shared, repository: Repository, descriptor: Descriptor) -> Digest:
        if self._blobs.has(descriptor.digest):
            diff_id = await self._from_blob(shared, descriptor)
            if diff_id is not None:
                return diff_id
        again = True
        while True:
            partial = await Partial.open(self._directory, descriptor.digest, descriptor.size)
            resumed = partial.extents.total > 0
            shared.arrived.clear()
            try:
                result = await self._fetch(shared, repository, descriptor, partial)
            except LayerMismatch as fault:
                partial.discard()
                # Bytes of a mirror, or of an earlier download, may have been false: again, from the beginning.
                if repository.blame(descriptor.digest):
                    continue
                if again and resumed:
                    again = False
                    continue
                raise EngineFailure(
                    f"filesystem layer verification failed for digest {descriptor.digest}"
                ) from fault
            except InvalidInput:
                partial.discard()  # the bytes are the right ones, and no layer
                raise
            finally:
                partial.release()
            return await self._publish(descriptor, partial, result)

    async def _run_raw(self, shared: _Shared, repository: Repository, descriptor: Descriptor) -> Digest:
        if self._blobs.has(descriptor.digest):
            return descriptor.digest  # fetched as a layer meanwhile
        again = True
        while True:
            partial = await Partial.open(self._directory, descriptor.digest, descriptor.size)
            resumed = partial.extents.total > 0
            shared.arrived.clear()
            try:
                download = Download(
                    repository, descriptor, partial,
                    on_progress=lambda here: shared.report(DOWNLOADING, here, descriptor.size), tell=shared.tell,
                )  # fmt: skip
                await self._download(shared, download, partial)
                if await in_thread(_hash, partial.path) == descriptor.digest:
                    await self._blobs.publish(
                        partial.path, descriptor.digest, descriptor.size, descriptor.media_type
                    )
                    partial.forget_record()
                    return descriptor.digest
                partial.discard()
            finally:
                partial.release()
            if not repository.blame(descriptor.digest):
                if not (again and resumed):
                    raise EngineFailure(
                        f"filesystem layer verification failed for digest {descriptor.digest}"
                    )
                again = False

    async def _from_blob(self, shared: _Shared, descriptor: Descriptor) -> Digest | None:
        """The layer made of a blob that is still here; None when the blob turns out to be damaged."""
        shared.report(EXTRACTING, 0, descriptor.size)
        path = self._blobs.path(descriptor.digest)
        try:
            result = await self._layers.ingest_file(path, descriptor.media_type)
        except InvalidInput:
            if await asyncio.to_thread(_hash, path) == descriptor.digest:
                raise
            result = None
        if result is None or result.blob_digest != descriptor.digest:
            self._blobs.remove(descriptor.digest)
            return None
        self._blobs.relate(result.diff_id, descriptor.digest, descriptor.media_type, descriptor.size)
        shared.report(EXTRACTING, descriptor.size, descriptor.size)
        return result.diff_id

    async def _fetch(
        self, shared: _Shared, repository: Repository, descriptor: Descriptor, partial: Partial
    ) -> IngestResult:
        """Download and unpack at once. Raises LayerMismatch when the bytes are not the blob's."""
        download = Download(
            repository, descriptor, partial,
            on_progress=lambda here: shared.report(DOWNLOADING, here, descriptor.size), tell=shared.tell,
        )  # fmt: skip
        _, result = await together(
            [self._download(shared, download, partial), self._unpack(shared, descriptor, download, partial)]
        )
        assert result is not None
        return result

    async def _download(self, shared: _Shared, download: Download, partial: Partial) -> None:
        if self._slots.are_taken:
            shared.report(WAITING)
        async with self._slots:
            await download.run()
        shared.report(VERIFYING)
        shared.report(DOWNLOADED)
        shared.arrived.set()
        tracepoint.reach("pull.blob-downloaded")
        await partial.sync()

    async def _unpack(
        self, shared: _Shared, descriptor: Descriptor, download: Download, partial: Partial
    ) -> IngestResult:
        size = descriptor.size
        if size:
            await download.reached(0)
        try:
            async with self._layers.ingest(descriptor.media_type) as ingestion:
                await self._feed(shared, ingestion, size, download, partial)
                result = await ingestion.finish(expected_blob=descriptor.digest)
        except LayerMismatch:
            raise
        except InvalidInput:
            # The worker gave up in the middle: is the layer bad, or only what has arrived of it?
            while download.frontier < size:
                await download.reached(download.frontier)
            if (found := await asyncio.to_thread(_hash, partial.path)) != descriptor.digest:
                raise LayerMismatch("digest", descriptor.digest, found) from None
            raise
        tracepoint.reach("pull.layer-published")
        return result

    async def _feed(
        self, shared: _Shared, ingestion: Ingestion, size: int, download: Download, partial: Partial
    ) -> None:
        fed, file = 0, cast(IO[bytes], _File(partial.fd))
        while fed < size:
            frontier = await download.reached(fed)
            await ingestion.feed_file(file, fed, frontier - fed)
            fed = frontier
            if shared.arrived.is_set():
                shared.report(EXTRACTING, fed, size)
        await shared.arrived.wait()
        shared.report(EXTRACTING, size, size)

    async def _publish(self, descriptor: Descriptor, partial: Partial, result: IngestResult) -> Digest:
        # Related first: a blob that is on record belongs to its layer at every moment.
        self._blobs.relate(result.diff_id, descriptor.digest, descriptor.media_type, descriptor.size)
        tracepoint.reach("pull.blob-related")
        await self._blobs.publish(partial.path, descriptor.digest, descriptor.size, descriptor.media_type)
        tracepoint.reach("pull.blob-published")
        partial.forget_record()
        return result.diff_id


def _hash(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
