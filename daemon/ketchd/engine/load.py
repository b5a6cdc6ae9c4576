"""The load journey: images out of an archive of `docker save` (before and since version 25) or an OCI layout, compressed or not.

Received whole, looked through, then the layers that are not here are made, in parallel, straight from where they lie in it.
Of an index every platform that the archive holds is taken, and the index is kept as it came; artifacts are kept unpacked.
An image is recorded with its names, after its layers, so each is there as a whole or not at all.
Source: Engine API 1.50, ImageLoad; moby's image/tarexport/load.go; image-spec image-layout.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.content.archives import Contents, Piece, copy_piece, look_through
from ketchd.content.documents import Document, Kind
from ketchd.content.marking import Node
from ketchd.engine.arrivals import Arrivals, ReadyArtifact
from ketchd.engine.bodies import staged_plain
from ketchd.engine.images import announce
from ketchd.engine.loadlayout import blob_name, blob_of, is_for_layouts, read_layout
from ketchd.engine.platforms import host_platform
from ketchd.engine.rooms import Rooms
from ketchd.layers.endings import in_thread
from ketchd.layers.placing import remove_staged
from ketchd.layers.store import LayerMismatch
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import ImageConfig
from ketchd.model.manifest import Descriptor, Manifest
from ketchd.model.platform import Platform, choose
from ketchd.model.reference import Reference

tracepoint.declare("load.received", "load.layers-made", "load.registered", "load.tagged")

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer to take. descriptor: as an OCI manifest names it; None in a docker archive, where only the diff ID counts."""

    diff_id: Digest
    piece: Piece
    descriptor: Descriptor | None = None


async def load(
    rooms: Rooms, body: AsyncIterable[bytes], *, quiet: bool, platform: Platform | None, send: Send
) -> None:
    """Load every image of the archive; `send` gets progress and what was loaded. platform: that one alone of each.

    Raises InvalidInput, NotFound (no image of `platform`), EngineFailure. Failed or cancelled: the images before are
    there, of the one under way nothing is.
    """
    async with staged_plain(rooms.blobs, body) as path:
        contents = await in_thread(look_through, path)
        tracepoint.reach("load.received")
        loader = _Loader(rooms, contents, quiet, platform, send)
        try:
            async with rooms.leases.hold() as lease:
                loader.keep = lease.add
                if is_for_layouts(contents):
                    await loader.layout()
                elif "manifest.json" in contents:
                    await loader.docker_archive()
                elif "repositories" in contents:
                    raise InvalidInput(
                        "invalid archive: it was saved by a Docker before 1.10, whose images are no longer loaded"
                    )
                else:
                    raise InvalidInput("invalid archive: it has neither manifest.json nor index.json")
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(rooms.garbage.sweep(loader.made)))
            raise


class _Loader:
    def __init__(
        self, rooms: Rooms, contents: Contents, quiet: bool, platform: Platform | None, send: Send
    ) -> None:
        self._rooms = rooms
        self._contents = contents
        self._quiet = quiet
        self._send = send
        self._wanted = platform
        self._is_whole = False
        self.keep: Callable[[Any, object], None] = lambda kind, key: None
        self.made: list[Node] = []
        self._arrived = Arrivals()

    async def docker_archive(self) -> None:
        """Every entry of manifest.json."""
        for row in _rows(self._contents.read("manifest.json")):
            config = self._contents.read(row["Config"])
            parsed = ImageConfig.parse(config)
            self._check(parsed, Digest.of(config))
            if len(row["Layers"]) != len(parsed.diff_ids):
                raise _length_mismatch(len(parsed.diff_ids), len(row["Layers"]))
            layers = [
                _Layer(diff_id, self._contents.piece(name))
                for diff_id, name in zip(parsed.diff_ids, row["Layers"], strict=True)
            ]
            names = [_tag(text) for text in row["RepoTags"]]
            image_id = await self._take(config, layers)
            await self._name(image_id, names)

    async def layout(self) -> None:
        """Every entry of index.json. Of an index: all that is there, or what is for the wanted platform."""
        for whole in read_layout(self._contents, self._wanted):
            own = whole.own(self._wanted)
            if own is None:
                raise NotFound(f"the archive has no image for platform {self._wanted or host_platform()}")
            self._is_whole = bool(whole.indexes)
            documents: list[Document] = []
            image_id: Digest | None = None
            for leaf in whole.leaves:
                if leaf.is_image and (leaf is own or self._wanted is None):
                    taken = await self._take_manifest(leaf.manifest)
                    image_id = taken if leaf is own else image_id
                elif not leaf.is_image:
                    documents.append(await self._take_artifact(leaf.manifest, listed=leaf is own))
                    image_id = documents[-1].digest if leaf is own else image_id
            for index in whole.indexes:
                for part in index.others:
                    if self._wanted is None and blob_name(part) in self._contents:
                        await self._take_blob(part)
                entries = [*index.entries, *index.others]
                documents.append(await self._document(index.content, index.media_type, "index", entries))
            assert image_id is not None
            await self._name(image_id, whole.names, documents, whole.top if whole.indexes else None)

    async def _take_artifact(self, manifest: Manifest, *, listed: bool) -> Document:
        parts = list({part.digest: part for part in (manifest.config, *manifest.layers)}.values())
        for part in parts:
            await self._take_blob(part)
        document = await self._document(manifest.content, manifest.media_type, "artifact", parts)
        if listed:
            self.keep("image", document.digest)
            kind = manifests.artifact_type(manifest) or manifest.config.media_type
            size = len(manifest.content) + sum(part.size for part in parts)
            self._arrived.artifacts.append(ReadyArtifact(document, kind, size))
        return document

    async def _document(
        self, content: bytes, media_type: str, kind: Kind, parts: Sequence[Descriptor]
    ) -> Document:
        self.keep("blob", Digest.of(content))
        self.made.append(("blob", Digest.of(content).text))
        digest = await self._rooms.blobs.put(content, media_type)
        return Document(
            digest, kind, media_type, len(content), tuple(dict.fromkeys(part.digest for part in parts))
        )

    async def _take_blob(self, part: Descriptor) -> None:
        blobs, piece = self._rooms.blobs, self._contents.piece(blob_name(part))
        self.keep("blob", part.digest)
        if blobs.has(part.digest):
            return
        self.made.append(("blob", part.digest.text))
        staged = blobs.stage_path()
        try:
            found = await in_thread(copy_piece, self._contents.path, piece, staged)
            if found != part.digest or piece.size != part.size:
                raise InvalidInput(f"blob {part.digest} of the archive is not what its name says")
            await blobs.publish(staged, part.digest, part.size, part.media_type)
        finally:
            staged.unlink(missing_ok=True)

    async def _take_manifest(self, manifest: Manifest) -> Digest:
        manifests.check_image(manifest)
        config = blob_of(self._contents, manifest.config)
        parsed = ImageConfig.parse(config)
        self._check(parsed, manifest.config.digest)
        if len(manifest.layers) != len(parsed.diff_ids):
            raise _length_mismatch(len(parsed.diff_ids), len(manifest.layers))
        layers = [
            _Layer(diff_id, self._contents.piece(blob_name(descriptor)), descriptor)
            for diff_id, descriptor in zip(parsed.diff_ids, manifest.layers, strict=True)
        ]
        return await self._take(config, layers, manifest)

    def _check(self, parsed: ImageConfig, image_id: Digest) -> None:
        if parsed.os != "linux":
            raise InvalidInput(f"cannot load {parsed.os} image on linux")
        if self._wanted is not None:
            own = Platform.of(parsed.os, parsed.architecture, parsed.variant)
            if choose([own], self._wanted) is None:
                raise NotFound(f"image {image_id.short} of the archive is for {own}, not for {self._wanted}")

    async def _take(
        self,
        config: bytes,
        layers: Sequence[_Layer],
        manifest: Manifest | None = None,
    ) -> Digest:
        """One image whole but for its records and names."""
        rooms = self._rooms
        self.keep("blob", Digest.of(config))
        self.keep("image", Digest.of(config))  # nothing names it before everything is there
        if manifest is not None:
            self.keep("blob", Digest.of(manifest.content))
            self.made += [("blob", Digest.of(manifest.content).text)]
        self.made += [("layer", layer.diff_id.text) for layer in layers]
        self.made += [("blob", Digest.of(config).text)]
        unique: dict[tuple[Digest, Digest | None], tuple[int, _Layer]] = {}
        for position, layer in enumerate(layers):
            self.keep("layer", layer.diff_id)
            # One that comes twice in two forms is taken in both: the manifest names both.
            unique[layer.diff_id, self._form(layer)] = (position, layer)
        missing = [
            (position, layer)
            for position, layer in unique.values()
            if not rooms.layers.has(layer.diff_id) or not self._has_bytes(layer)
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for position, layer in missing:
                    group.create_task(self._make(position, layer))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        tracepoint.reach("load.layers-made")
        ready = await rooms.images.prepare(
            config,
            manifest=None if manifest is None else manifest.content,
            manifest_media_type="" if manifest is None else manifest.media_type,
        )
        self._arrived.images.append(ready)
        return ready.id

    async def _name(
        self,
        image_id: Digest,
        names: Sequence[Reference],
        documents: Sequence[Document] = (),
        document: Digest | None = None,
    ) -> None:
        """Records with names, and announcements. document: the index that the names mean."""
        rooms = self._rooms
        with rooms.catalogue.transaction(durable=True):
            self._arrived.record(rooms)
            for one in documents:
                rooms.documents.keep(one)
            tracepoint.reach("load.registered")
            if document is not None and not names:
                # Nothing names the index: its images stay as single ones.
                rooms.documents.release()
            moved = [(name, rooms.images.tag(name, image_id, document=document)) for name in names]
        tracepoint.reach("load.tagged")
        for name, previous in moved:
            if previous is not None and previous != image_id:
                note = f"The image {name.familiar()} already exists, renaming the old one with ID {previous} to empty string\n"
                await self._send({"stream": note})
            await self._send({"stream": f"Loaded image: {name.familiar()}\n"})
        if not names:
            await self._send({"stream": f"Loaded image ID: {image_id}\n"})
        announce(rooms, image_id, "load")

    def _keeps(self, layer: _Layer) -> bool:
        """Whether the bytes are kept as they came, for a push to send again: where they differ from the layer's own, and of a whole
        index in any case."""
        described = layer.descriptor
        return described is not None and (described.digest != layer.diff_id or self._is_whole)

    def _form(self, layer: _Layer) -> Digest | None:
        """The blob that is kept of it."""
        return layer.descriptor.digest if layer.descriptor is not None and self._keeps(layer) else None

    def _has_bytes(self, layer: _Layer) -> bool:
        form = self._form(layer)
        return form is None or self._rooms.blobs.has(form)

    async def _make(self, position: int, layer: _Layer) -> None:
        rooms, described = self._rooms, layer.descriptor
        keeps = self._keeps(layer)
        blob = rooms.blobs.stage_path() if keeps else None
        arguments = {
            "place": rooms.layers.new_place(), "archive": str(self._contents.path), "offset": layer.piece.offset,
            "size": layer.piece.size, "blob": None if blob is None else str(blob),
        }  # fmt: skip
        try:
            facts = await self._run(arguments, layer)
            if described is not None and keeps and facts["blob_digest"] != described.digest.text:
                await in_thread(remove_staged, facts["path"])
                raise InvalidInput(f"blob {described.digest} of the archive is not what its name says")
            try:
                await rooms.layers.adopt(facts, layer.diff_id)
            except LayerMismatch as fault:
                raise InvalidInput(
                    f'invalid diffID for layer {position}: expected "{fault.expected}", got "{fault.found}"'
                ) from fault
            if described is not None and blob is not None:
                self.keep("blob", described.digest)
                await rooms.blobs.publish(blob, described.digest, described.size, described.media_type)
                rooms.blobs.relate(layer.diff_id, described.digest, described.media_type, described.size)
        finally:
            if blob is not None:
                blob.unlink(missing_ok=True)

    async def _run(self, arguments: dict[str, Any], layer: _Layer) -> dict[str, Any]:
        """The job, its progress told. Failed or cancelled: nothing of it stays."""
        job = await self._rooms.workers.begin("ketchd.content.loadjobs:take_layer", arguments)
        is_over = False
        try:
            await self._tell(layer, 0)
            while "done" in (message := await job.receive()):
                await self._tell(layer, message["done"])
            is_over = True
            facts = await job.result()
        except BaseException:
            if not is_over:
                await asyncio.shield(asyncio.ensure_future(job.cancel()))
            await in_thread(remove_staged, arguments["place"]["path"])
            raise
        await self._tell(layer, layer.piece.size)
        return facts

    async def _tell(self, layer: _Layer, done: int) -> None:
        if not self._quiet:
            detail = {"current": done, "total": layer.piece.size} if done else {}
            await self._send({"status": "Loading layer", "progressDetail": detail, "id": layer.diff_id.short})


def _rows(content: bytes) -> list[dict[str, Any]]:
    """manifest.json, its shapes checked. Raises InvalidInput."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("invalid manifest: it is not JSON") from error
    if document is None:
        raise InvalidInput("invalid manifest, manifest cannot be null (but can be [])")
    if not isinstance(document, list):
        raise InvalidInput("invalid manifest: it is not a list")
    rows = []
    for row in document:
        found = (
            {key: row.get(key) for key in ("Config", "RepoTags", "Layers")} if isinstance(row, dict) else {}
        )
        lists = [found[key] or [] for key in ("RepoTags", "Layers")] if found else []
        if (
            not isinstance(found.get("Config"), str)
            or not all(isinstance(item, list) for item in lists)
            or not all(isinstance(text, str) for item in lists for text in item)
        ):
            raise InvalidInput("invalid manifest: an entry has no Config or Layers of the right type")
        rows.append({"Config": found["Config"], "RepoTags": lists[0], "Layers": lists[1]})
    return rows


def _tag(text: str) -> Reference:
    reference = Reference.parse(text)
    if reference.tag is None or reference.digest is not None:
        raise InvalidInput(f'invalid tag "{text[:200]}"')
    return reference


def _length_mismatch(expected: int, found: int) -> InvalidInput:
    return InvalidInput(f"invalid manifest, layers length mismatch: expected {expected}, got {found}")
