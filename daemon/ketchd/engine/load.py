"""The load journey: images out of an archive of `docker save` (before and since version 25) or an OCI layout, compressed or not.

Received whole, looked through, then the layers that are not here are made, in parallel, straight from where they lie in it.
An image is registered after its layers and named last, so each is there as a whole or not at all.
Source: Engine API 1.50, ImageLoad; moby's image/tarexport/load.go; image-spec image-layout.md.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.content.archives import Contents, Piece, look_through
from ketchd.content.marking import Node
from ketchd.engine.bodies import staged_plain, to_the_end
from ketchd.engine.images import announce
from ketchd.engine.rooms import Rooms
from ketchd.engine.save import NAME_ANNOTATION, REF_ANNOTATION
from ketchd.layers.placing import remove_staged
from ketchd.layers.store import LayerMismatch
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import ImageConfig
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.model.platform import Platform, choose
from ketchd.model.reference import DEFAULT_TAG, Reference

tracepoint.declare("load.received", "load.layers-made", "load.registered")

Send = Callable[[dict[str, Any]], Awaitable[None]]
_NESTING_LIMIT = 4


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer to take. descriptor: as an OCI manifest names it; None in a docker archive, where only the diff ID counts."""

    diff_id: Digest
    piece: Piece
    descriptor: Descriptor | None = None


async def load(
    rooms: Rooms, body: AsyncIterable[bytes], *, quiet: bool, platform: Mapping[str, Any], send: Send
) -> None:
    """Load every image of the archive; `send` gets progress and what was loaded.

    Raises InvalidInput, NotFound (no image of `platform`), EngineFailure. Failed or cancelled: the images before are
    there, of the one under way nothing is.
    """
    async with staged_plain(rooms.blobs, body) as path:
        contents = await to_the_end(look_through, path)
        tracepoint.reach("load.received")
        loader = _Loader(rooms, contents, quiet, platform, send)
        try:
            async with rooms.leases.hold() as lease:
                loader.keep = lease.add
                if "manifest.json" in contents:
                    await loader.docker_archive()
                elif "index.json" in contents:
                    await loader.layout()
                else:
                    raise InvalidInput("invalid archive: it has neither manifest.json nor index.json")
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(rooms.garbage.sweep(loader.made)))
            raise


class _Loader:
    def __init__(
        self, rooms: Rooms, contents: Contents, quiet: bool, platform: Mapping[str, Any], send: Send
    ) -> None:
        self._rooms = rooms
        self._contents = contents
        self._quiet = quiet
        self._send = send
        self._wanted: Platform | None = None
        if platform:
            words = [str(platform.get(key) or "") for key in ("os", "architecture", "variant")]
            if not words[0] or not words[1]:
                raise InvalidInput("both OS and Architecture must be provided")
            self._wanted = Platform.of(*words)
        self.keep: Callable[[Any, object], None] = lambda kind, key: None
        self.made: list[Node] = []

    async def docker_archive(self) -> None:
        """Every entry of manifest.json."""
        for row in _rows(self._contents.read("manifest.json")):
            config = self._contents.read(row["Config"])
            parsed = ImageConfig.parse(config)
            self._check(parsed, row["Config"])
            if len(row["Layers"]) != len(parsed.diff_ids):
                raise _length_mismatch(len(parsed.diff_ids), len(row["Layers"]))
            layers = [
                _Layer(diff_id, self._contents.piece(name))
                for diff_id, name in zip(parsed.diff_ids, row["Layers"], strict=True)
            ]
            names = [_tag(text) for text in row["RepoTags"]]
            await self._take(config, layers, names)

    async def layout(self) -> None:
        """Every image that index.json names; of one for several platforms, the fitting one."""
        index = manifests.parse(self._contents.read("index.json"), manifests.OCI_INDEX)
        assert isinstance(index, Index)
        groups: dict[Reference | None, list[Descriptor]] = {}
        for entry in manifests.candidates(index):
            groups.setdefault(_name_of(entry), []).append(entry)
        if not groups:
            raise InvalidInput("the archive's index.json names no image")
        images: dict[Digest, tuple[Manifest, list[Reference]]] = {}
        for name, entries in groups.items():
            for entry in self._fitting(entries):
                manifest = self._manifest(entry, 0)
                names = images.setdefault(Digest.of(manifest.content), (manifest, []))[1]
                names += [name] if name is not None else []
        for manifest, names in images.values():
            await self._take_manifest(manifest, names)

    def _fitting(self, entries: Sequence[Descriptor]) -> list[Descriptor]:
        platforms = [entry.platform for entry in entries]
        if len(entries) == 1 or None in platforms or len(set(platforms)) == 1:
            return list(entries)
        return [entries[self._choose(platforms)]]

    def _choose(self, offers: Sequence[Platform | None]) -> int:
        wanted = self._wanted or Platform.host(os.uname().machine)
        best = choose(offers, wanted)
        if best is None:
            raise NotFound(f"the archive has no image for platform {wanted}")
        return best

    def _manifest(self, entry: Descriptor, depth: int) -> Manifest:
        content = self._blob(entry)
        found = manifests.parse(content, entry.media_type)
        if isinstance(found, Manifest):
            manifests.check_image(found)
            return found
        if depth == _NESTING_LIMIT:
            raise InvalidInput("the archive's indexes are nested too deeply")
        inner = manifests.candidates(found)
        return self._manifest(inner[self._choose([one.platform for one in inner])], depth + 1)

    def _blob(self, descriptor: Descriptor) -> bytes:
        content = self._contents.read(f"blobs/sha256/{descriptor.digest.hex}")
        if len(content) != descriptor.size or Digest.of(content) != descriptor.digest:
            raise InvalidInput(f"blob {descriptor.digest} of the archive is not what its name says")
        return content

    async def _take_manifest(self, manifest: Manifest, names: Sequence[Reference]) -> None:
        config = self._blob(manifest.config)
        parsed = ImageConfig.parse(config)
        self._check(parsed, manifest.config.digest.text)
        if len(manifest.layers) != len(parsed.diff_ids):
            raise _length_mismatch(len(parsed.diff_ids), len(manifest.layers))
        layers = [
            _Layer(diff_id, self._contents.piece(f"blobs/sha256/{descriptor.digest.hex}"), descriptor)
            for diff_id, descriptor in zip(parsed.diff_ids, manifest.layers, strict=True)
        ]
        await self._take(config, layers, names, manifest)

    def _check(self, parsed: ImageConfig, name: str) -> None:
        if parsed.os != "linux":
            raise InvalidInput(f"cannot load {parsed.os} image on linux")
        if self._wanted is not None:
            own = Platform.of(parsed.os, parsed.architecture, parsed.variant)
            if choose([own], self._wanted) is None:
                raise NotFound(f"image {name[-64:][:12]} of the archive is for {own}, not for {self._wanted}")

    async def _take(
        self,
        config: bytes,
        layers: Sequence[_Layer],
        names: Sequence[Reference],
        manifest: Manifest | None = None,
    ) -> None:
        """One image whole: layers, record, names, announcements."""
        rooms = self._rooms
        self.keep("blob", Digest.of(config))
        if manifest is not None:
            self.keep("blob", Digest.of(manifest.content))
        self.made += [("layer", layer.diff_id.text) for layer in layers]
        self.made += [("blob", Digest.of(config).text)]
        unique = {layer.diff_id: (position, layer) for position, layer in enumerate(layers)}
        for diff_id in unique:
            self.keep("layer", diff_id)
        missing = [pair for diff_id, pair in unique.items() if not rooms.layers.has(diff_id)]
        try:
            async with asyncio.TaskGroup() as group:
                for position, layer in missing:
                    group.create_task(self._make(position, layer))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        tracepoint.reach("load.layers-made")
        image_id = await rooms.images.register(
            config,
            manifest=None if manifest is None else manifest.content,
            manifest_media_type="" if manifest is None else manifest.media_type,
            durable=True,
        )
        tracepoint.reach("load.registered")
        for name in names:
            previous = rooms.images.tag(name, image_id)
            if previous is not None and previous != image_id:
                note = f"The image {name.familiar()} already exists, renaming the old one with ID {previous} to empty string\n"
                await self._send({"stream": note})
            await self._send({"stream": f"Loaded image: {name.familiar()}\n"})
        if not names:
            await self._send({"stream": f"Loaded image ID: {image_id}\n"})
        announce(rooms, image_id, "load")

    async def _make(self, position: int, layer: _Layer) -> None:
        rooms, described = self._rooms, layer.descriptor
        # The bytes as they came are kept where they differ from the layer's own: a push sends them again.
        keeps = described is not None and described.digest != layer.diff_id
        blob = rooms.blobs.stage_path() if keeps else None
        arguments = {
            "place": rooms.layers.new_place(), "archive": str(self._contents.path), "offset": layer.piece.offset,
            "size": layer.piece.size, "blob": None if blob is None else str(blob),
        }  # fmt: skip
        try:
            facts = await self._run(arguments, layer)
            if described is not None and keeps and facts["blob_digest"] != described.digest.text:
                await to_the_end(remove_staged, facts["path"])
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
            await to_the_end(remove_staged, arguments["place"]["path"])
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


def _name_of(entry: Descriptor) -> Reference | None:
    """The name that a layout gives an image: containerd's annotation, or a whole name in OCI's, where a bare tag is none."""
    for text in (entry.annotations.get(NAME_ANNOTATION), entry.annotations.get(REF_ANNOTATION)):
        if text and (":" in text or "/" in text):
            try:
                found = Reference.parse(text)
                return found.with_tag(found.tag or DEFAULT_TAG)
            except InvalidInput:
                continue
    return None
