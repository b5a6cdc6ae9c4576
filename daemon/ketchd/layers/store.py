"""LayerStore: layers by diff ID, each one file (a tar with an EROFS index) or one directory, and chains of them for overlays."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure, NotFound
from ketch_wire.launch import LayerMount
from ketchd import tracepoint
from ketchd.catalogue.database import Catalogue
from ketchd.layers.chains import Chains
from ketchd.layers.endings import to_the_end
from ketchd.layers.erofs import HEAD
from ketchd.layers.ingestion import Ingestion, IngestResult, LayerMismatch
from ketchd.layers.placing import place, remove_staged
from ketchd.layers.records import LayerRecord, LayerRecords
from ketchd.layers.remade import RemadeTars
from ketchd.layers.trash import Trash
from ketchd.layers.verify import OLD_INDEX, SOUND, State
from ketchd.layers.workers import WorkerPool
from ketchd.model.compression import Compression
from ketchd.model.digest import Digest
from ketchd.sandbox import heldlayers

tracepoint.declare(
    "layer.staged",
    "layer.placed",
    "layer.recorded",
    "layer.forgotten",
    "layer.removed",
    "fsck.layer-replaced",
)
__all__ = [
    "IngestResult",
    "Ingestion",
    "LayerMismatch",
    "LayerRecord",
    "LayerStore",
    "wire_mounts",
]
FILE, DIRECTORY = "erofs", "directory"
Keep = Callable[[Digest], None]


def _keep_nothing(diff_id: Digest) -> None:
    """Nobody needs the layer for more than a moment, or its diff ID was known and leased before."""


class LayerStore:
    """`layers/sha256/HEX` below the data root, each recorded in the catalogue's `layers`.

    A layer is made below `stage/` by a worker, synced, renamed into place, recorded: published last, never changed, removed
    record first. It is named by the sha256 of its tar (diff ID), so any number of images share it, whatever lies below it.
    kind: what new layers become and how files are mounted, as `probe` found it: `erofs` (file-backed), `erofs-loop`,
    `directory`. Layers of the other kind stay readable where the kernel can mount them.
    let_go: told of files that have left their places, which somebody may hold for containers to come, by their `heldlayers.names`;
    returns a descriptor that comes to its end when nobody does any more.
    """

    def __init__(
        self,
        root: Path,
        catalogue: Catalogue,
        workers: WorkerPool,
        kind: str,
        trash: Trash | None = None,
        let_go: Callable[[Sequence[str]], int] | None = None,
    ) -> None:
        self._let_go = let_go
        self._root = root
        self._trash = trash or Trash(root, workers)
        self._records = LayerRecords(catalogue)
        self._workers = workers
        self.kind = kind
        self._directory = root / "layers" / "sha256"
        self._stage = root / "stage"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o710)
        self._stage.mkdir(exist_ok=True, mode=0o710)
        self._chains = Chains(root / "init", self._stage, workers, self._trash)
        self._locks: weakref.WeakValueDictionary[Digest, asyncio.Lock] = weakref.WeakValueDictionary()
        self._remade = RemadeTars(self._stage, workers)

    # -- asking

    def path(self, diff_id: Digest) -> Path:
        """Where the layer lies or would lie."""
        return self._directory / diff_id.hex

    def has(self, diff_id: Digest) -> bool:
        """Whether the layer is recorded and there."""
        return self._records.has(diff_id) and self.path(diff_id).exists()

    def record(self, diff_id: Digest) -> LayerRecord:
        """What is known of the layer. Raises NotFound."""
        return self._records.get(diff_id)

    def mounts(self, diff_ids: Sequence[Digest]) -> tuple[LayerMount, ...]:
        """How to mount the chain: base first in, TOP FIRST out, as overlayfs lists them. Raises NotFound.

        A layer that comes twice is mounted once, where it lies on top: what it says there is all that is seen of it below, and
        overlayfs wants no directory twice (ELOOP).
        """
        kinds = self._records.kinds(diff_ids)
        return tuple(self._mount(diff_id, kinds.get(diff_id)) for diff_id in _top_first(diff_ids))

    def _mount(self, diff_id: Digest, kind: str | None) -> LayerMount:
        if kind is None:
            raise NotFound(f"no layer {diff_id}")
        if kind == DIRECTORY:
            return LayerMount(DIRECTORY, str(self.path(diff_id) / "root"))
        if self.kind == DIRECTORY:
            raise EngineFailure(
                f"layer {diff_id} is an EROFS file, which this kernel cannot mount: pull or build it again"
            )
        return LayerMount(self.kind, str(self.path(diff_id)))

    # -- taking in

    def ingest(
        self, compression: str | None = None, *, keep_blob: Path | None = None, keep: Keep = _keep_nothing
    ) -> Ingestion:
        """A layer that arrives piece by piece: `async with` it, `feed`, `finish`.

        compression: a media type or name; it is a hint only, the bytes themselves decide ("none": never decompress).
        keep_blob: a free path on the same filesystem, for the bytes as they came; it is the caller's after `finish`.
        keep: see `publish`.
        """
        return Ingestion(
            partial(self.publish, keep=keep), self._workers, self._arguments(compression, keep_blob)
        )

    async def ingest_file(
        self,
        path: Path,
        compression: str | None = None,
        *,
        expected_diff_id: Digest | None = None,
        keep_blob: Path | None = None,
    ) -> IngestResult:
        """The same for a file that is there. Raises as Ingestion.finish does; `path` is only read."""
        arguments = self._arguments(compression, keep_blob) | {"source": str(path)}
        return await self.adopt(await self._run("ketchd.layers.ingest:ingest", arguments), expected_diff_id)

    async def adopt_tar(self, path: Path, expected_diff_id: Digest | None = None) -> IngestResult:
        """Make the plain tar at `path` a layer; the file is gone afterwards, also when it fails."""
        try:
            return await self.ingest_file(path, "none", expected_diff_id=expected_diff_id)
        finally:
            path.unlink(missing_ok=True)

    async def from_upper(
        self,
        upper: Path,
        lower: Sequence[Digest],
        *,
        keep: Keep = _keep_nothing,
    ) -> Digest | None:
        """The layer that makes `lower` (base first) look like an overlay of it and the writable directory `upper`.

        None when nothing changed. Nothing may write to `upper` meanwhile, or the layer holds some of both. keep: see `publish`.
        """
        arguments = {
            "place": self.new_place(),
            "upper": str(upper),
            "lower": wire_mounts(self.mounts(lower)),
        }
        facts = await self._run("ketchd.layers.diff:from_upper", arguments)
        if facts.get("empty"):
            return None
        return (await self.adopt(facts, keep=keep)).diff_id

    async def clamped(self, diff_id: Digest, seconds: int, *, keep: Keep = _keep_nothing) -> Digest:
        """The layer with nothing in it that is younger than `seconds` since the epoch; itself if it is so. Raises NotFound.

        keep: see `publish`.
        """
        path, offset, size = await self.tar_range(diff_id)
        arguments = {
            "place": self.new_place(), "path": str(path), "offset": offset, "size": size, "seconds": seconds
        }  # fmt: skip
        facts = await self._run("ketchd.layers.clamp:clamp", arguments)
        return diff_id if facts.get("same") else (await self.adopt(facts, keep=keep)).diff_id

    def new_place(self) -> dict[str, Any]:
        """Where and what a worker's job is to make: the argument of `LayerFile`. Give what its `seal` returns to `adopt`."""
        return {
            "path": str(self._stage / uuid.uuid4().hex),
            "kind": DIRECTORY if self.kind == DIRECTORY else FILE,
        }

    async def adopt(
        self, facts: dict[str, Any], expected_diff_id: Digest | None = None, *, keep: Keep = _keep_nothing
    ) -> IngestResult:
        """Publish a layer that a job has sealed. Raises as Ingestion.finish does; then the staged layer is gone."""
        try:
            return await self.publish(facts, expected_diff_id, keep=keep)
        except BaseException:
            await asyncio.to_thread(remove_staged, facts["path"])
            raise

    def _arguments(self, compression: str | None, keep_blob: Path | None) -> dict[str, Any]:
        blob = None if keep_blob is None else str(keep_blob)
        return {"place": self.new_place(), "compression": compression, "blob": blob}

    async def _run(self, job: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A job that fills `arguments["place"]`, and nothing left of it when it fails or is cancelled."""
        try:
            return await self._workers.run(job, arguments)
        except BaseException:
            await asyncio.to_thread(remove_staged, arguments["place"]["path"])
            if arguments.get("blob"):
                await asyncio.to_thread(remove_staged, arguments["blob"])
            raise

    async def publish(
        self,
        facts: dict[str, Any],
        expected_diff_id: Digest | None = None,
        expected_blob: Digest | None = None,
        *,
        keep: Keep = _keep_nothing,
    ) -> IngestResult:
        """Give a sealed layer its name and record it, if it is what was expected. Of two equal ones the second is dropped.

        keep: told of the diff ID before that, for who does not know it sooner to lease it: afterwards a removal may come between.
        """
        diff_id = Digest(facts["diff_id"])
        blob = Digest(facts.get("blob_digest", facts["diff_id"]))
        tracepoint.reach("layer.staged")
        for what, expected, found in (
            ("digest", expected_blob, blob),
            ("diff ID", expected_diff_id, diff_id),
        ):
            if expected is not None and expected != found:
                raise LayerMismatch(what, expected, found)
        keep(diff_id)
        await to_the_end(self._publish(diff_id, facts))
        return IngestResult(diff_id, blob, facts.get("blob_size", facts["tar_size"]), facts["tar_size"])

    async def _publish(self, diff_id: Digest, facts: dict[str, Any]) -> None:
        async with self._lock(diff_id):
            if self.has(diff_id):
                self.touch([diff_id])
                await asyncio.to_thread(remove_staged, facts["path"])
                return
            await asyncio.to_thread(place, facts["path"], self.path(diff_id), f"layer {diff_id}")
            tracepoint.reach("layer.placed")
            self._records.add(diff_id, facts)
            tracepoint.reach("layer.recorded")

    def touch(self, diff_ids: Sequence[Digest]) -> None:
        """Remember that the layers were used now."""
        self._records.touch(diff_ids)

    # -- using

    async def compose(self, diff_ids: Sequence[Digest]) -> Path:
        """The init layer of the chain (base first), made at the first call: the top lower directory of every container.

        It holds what Docker promises in every root (/dev/pts, /etc/hosts, /.dockerenv, …) and gives directories that a tar
        of the chain omits the metadata they have below. Raises NotFound, EngineFailure. Cancelled: nothing stays.
        """
        ready = self._chains.find(diff_ids)
        if ready is not None:
            return ready
        implied = [list(self.record(diff_id).implied) for diff_id in _top_first(diff_ids)]
        return await self._chains.make(diff_ids, wire_mounts(self.mounts(diff_ids)), implied)

    async def tar_range(self, diff_id: Digest) -> tuple[Path, int, int]:
        """(file, offset, size) of the layer's tar, byte for byte. Open it within a minute: a directory's tar is remade into
        the stage and goes again. Raises NotFound; EngineFailure when a directory no longer gives the layer's bytes."""
        record = self.record(diff_id)
        if record.kind != DIRECTORY:
            return self.path(diff_id), HEAD, record.tar_size
        async with self._lock(diff_id):
            path = await self._remade.get(diff_id, self.path(diff_id))
        return path, 0, record.tar_size

    async def compress(self, diff_id: Digest, into: Path, how: Compression) -> tuple[Digest, int]:
        """The layer compressed at the free path `into`, the same bytes for the same layer always: (digest, size).

        Not synced: BlobStore.publish does. Raises NotFound, EngineFailure. Cancelled: the file is gone.
        """
        path, offset, size = await self.tar_range(diff_id)
        return await self._compress(
            "compress", {"path": str(path), "offset": offset, "size": size}, into, how
        )

    async def recompress(
        self, blob: Path, diff_id: Digest, into: Path, how: Compression
    ) -> tuple[Digest, int]:
        """What `compress` makes, of a layer that is not here but as the file `blob`, in any form that inflates to it.

        Raises EngineFailure (the blob is another layer), InvalidInput (it is damaged).
        """
        return await self._compress("recompress", {"blob": str(blob), "diff_id": str(diff_id)}, into, how)

    async def _compress(
        self, job: str, source: dict[str, Any], into: Path, how: Compression
    ) -> tuple[Digest, int]:
        arguments = {**source, "into": str(into), "format": how.format, "level": how.level}
        try:
            result = await self._workers.run(f"ketchd.layers.compress:{job}", arguments)
        except BaseException:
            into.unlink(missing_ok=True)
            raise
        return Digest(result["digest"]), result["size"]

    async def verify(self, diff_id: Digest) -> bool:
        """Whether the layer on the disk still is what its name says, whoever indexed it. Raises NotFound."""
        return await self.state(diff_id) in (SOUND, OLD_INDEX)

    async def state(self, diff_id: Digest) -> State:
        """What the layer on the disk is, read whole. Raises NotFound."""
        record = self.record(diff_id)
        arguments = {
            "path": str(self.path(diff_id)), "kind": record.kind, "tar_size": record.tar_size, "diff_id": str(diff_id)
        }  # fmt: skip
        state: State = (await self._workers.run("ketchd.layers.verify:verify", arguments))["state"]
        return state

    async def reindex(self, diff_id: Digest) -> None:
        """Make the layer file's index again from the tar in it, at once and whole: the new file takes the old one's place.

        Containers keep the old one until they end. Raises NotFound, EngineFailure, LayerMismatch (the tar is damaged too).
        """
        path, offset, size = await self.tar_range(diff_id)
        arguments = {"place": self.new_place(), "path": str(path), "offset": offset, "size": size}
        facts = await self._run("ketchd.layers.reindex:reindex", arguments)
        try:
            if facts["diff_id"] != diff_id.text:
                raise LayerMismatch("diff ID", diff_id, Digest(facts["diff_id"]))
            await to_the_end(self._replace(diff_id, facts))
        finally:
            await asyncio.to_thread(remove_staged, facts["path"])

    async def _replace(self, diff_id: Digest, facts: dict[str, Any]) -> None:
        async with self._lock(diff_id):
            if not self.has(diff_id):
                return  # removed meanwhile
            held = heldlayers.names([str(self.path(diff_id))])
            await asyncio.to_thread(place, facts["path"], self.path(diff_id), f"layer {diff_id}")
            tracepoint.reach("fsck.layer-replaced")
            self._records.note_replaced(diff_id, facts)
            self._let_go_of(held)

    @contextlib.asynccontextmanager
    async def holding(self, diff_ids: Iterable[Digest]) -> AsyncIterator[None]:
        """Nobody publishes these layers or makes their tars again meanwhile. Waits for who does."""
        async with contextlib.AsyncExitStack() as held:
            for diff_id in sorted(set(diff_ids), key=str):  # in one order, or two could wait for each other
                await held.enter_async_context(self._lock(diff_id))
            yield

    def forget(self, connection: sqlite3.Connection, diff_ids: Sequence[Digest]) -> None:
        """Delete the records, in the caller's transaction. Who needs the layers is the caller's question, who is `holding` them;
        `discard` them after the commit, before anything is awaited."""
        self._records.forget(connection, diff_ids)

    def discard(self, diff_ids: Sequence[Digest]) -> None:
        """Move the layers that were forgotten, and what was composed of them, to the trash. Raises EngineFailure."""
        tracepoint.reach("layer.forgotten")
        held = heldlayers.names(str(self.path(diff_id)) for diff_id in diff_ids)
        try:
            for diff_id in diff_ids:
                self._remade.drop(diff_id)
                self._chains.forget(diff_id)
                self._trash.take(self.path(diff_id))
        finally:
            # not before they are gone: a container that starts this moment would find them, and hold them again
            self._let_go_of(held)
        tracepoint.reach("layer.removed")

    def _let_go_of(self, held: Sequence[str]) -> None:
        if held and self._let_go is not None:
            # Where no descriptor is left, they are held until they are among too many.
            with contextlib.suppress(OSError):
                self._trash.await_end(self._let_go(held))

    async def remove(self, diff_id: Digest) -> None:
        """Forget the layer, then remove it and what was composed of it; its compressed forms stay known. May be called twice; who
        needs it is the caller's question. Containers that have a file mounted keep it until they end."""
        async with self.holding([diff_id]):
            self._records.remove(diff_id)
            self.discard([diff_id])

    async def close(self) -> None:
        """Remove what was only made for the moment."""
        self._remade.drop_all()

    def _lock(self, diff_id: Digest) -> asyncio.Lock:
        lock = self._locks.get(diff_id)
        if lock is None:
            lock = self._locks[diff_id] = asyncio.Lock()
        return lock


def _top_first(diff_ids: Sequence[Digest]) -> list[Digest]:
    return list(dict.fromkeys(reversed(diff_ids)))


def wire_mounts(mounts: Sequence[LayerMount]) -> list[dict[str, str]]:
    """As a job's arguments carry them; `LayerMount(**one)` on the other side."""
    return [{"kind": mount.kind, "path": mount.path} for mount in mounts]
