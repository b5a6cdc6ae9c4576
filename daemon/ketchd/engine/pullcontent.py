"""What a pull fetches, once it is clear what: an image's config and layers, an artifact's blobs, the rest of an index."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ketch_wire.faults import EngineFailure, Fault, InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.content.documents import Document
from ketchd.content.leases import Lease
from ketchd.engine.arrivals import Arrivals, ReadyArtifact
from ketchd.engine.platforms import DEPTH
from ketchd.engine.progress import ProgressBoard
from ketchd.engine.rooms import Rooms
from ketchd.engine.transfers import DOWNLOADING, EXTRACTING
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import SIZE_LIMIT, ImageConfig
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.errors import Refused
from ketchd.registry.repository import Fetched, Repository
from ketchd.registry.together import together

tracepoint.declare("pull.config-fetched", "pull.layers-published")

_SMALL = 1024 * 1024
_PARTS_LIMIT = 2000
_Result = TypeVar("_Result")


class Fetching:
    """The content of one name, under one lease. Everything is published here; `arrived` is for the caller to record with the name.

    Failed or cancelled: what arrived is garbage for later, or used by the next pull.
    """

    def __init__(
        self, rooms: Rooms, repository: Repository, reference: Reference, board: ProgressBoard, lease: Lease
    ) -> None:
        self._rooms = rooms
        self.repository = repository
        self.reference = reference
        self.board = board
        self._lease = lease
        self._left = _PARTS_LIMIT
        self.arrived = Arrivals()

    # -- documents

    async def document(self, wanted: str | Digest) -> Fetched:
        """A manifest by tag or digest; by digest it may be here already. Raises NotFound, InvalidInput, EngineFailure.

        A digest that the user gave must be one of this repository: that it is here, from another one, proves nothing.
        """
        if isinstance(wanted, Digest) and self._rooms.blobs.has(wanted) and self._belongs(wanted):
            return Fetched(self._rooms.blobs.read(wanted), "", wanted)
        return await explained(self.reference, self.repository.manifest(wanted))

    def _belongs(self, digest: Digest) -> bool:
        """Whether the registry said so already: it named the digest itself, or gave the image under this name before."""
        given = self.reference.digest == digest
        return not given or self._rooms.images.find_name(self.reference.with_digest(digest)) is not None

    async def entry(self, entry: Descriptor) -> Manifest | Index:
        """What an index' entry refers to, of the size that the index says. Raises as `document` does."""
        fetched = await self.document(entry.digest)
        if len(fetched.content) != entry.size:
            raise EngineFailure(
                f"manifest {entry.digest} has {len(fetched.content)} bytes, the manifest list says {entry.size}"
            )
        return manifests.parse(fetched.content, fetched.media_type or entry.media_type)

    async def index(self, index: Index) -> Document:
        """The index stored, byte for byte; its record is for the caller to keep."""
        return await self._store(index.media_type, index.content, "index", [*index.entries, *index.others])

    async def rest(self, index: Index, depth: int = DEPTH) -> list[Document]:
        """Everything that the index refers to: images of every platform, attestations, artifacts; returns the documents among it.

        What an index says to be elsewhere (layers by URL) is left out, and told.
        """
        if not depth:
            raise InvalidInput("manifest lists are nested too deeply")
        documents: list[Document] = []
        for entry in index.entries:
            self._left -= 1
            if self._left < 0:
                raise InvalidInput(f"manifest list has more than {_PARTS_LIMIT} entries")
            self._lease.add("blob", entry.digest)
            found = await self.entry(entry)
            if isinstance(found, Index):
                documents += [*await self.rest(found, depth - 1), await self.index(found)]
            elif _is_image(entry, found):
                await self.image(found, None)
            elif any(part.is_foreign or part.urls for part in found.layers):
                self.board.say(f"{entry.platform}: its layers are not in the registry: left out")
            else:
                documents.append(await self.artifact(found, listed=False))
        for entry in index.others:
            self._lease.add("blob", entry.digest)
            await self._blob(entry)
        return documents

    async def artifact(self, manifest: Manifest, *, listed: bool = True) -> Document:
        """What is no image: its blobs as they are. listed: to be found among the images. Raises as `image` does.

        Plugins are refused in dockerd's words.
        """
        if manifest.config.media_type == manifests.DOCKER_PLUGIN:
            manifests.check_image(manifest)
        parts = list({part.digest: part for part in (manifest.config, *manifest.layers)}.values())
        for part in parts:
            if part.is_foreign or part.urls:
                raise EngineFailure(
                    f"layer {part.digest} is to be fetched from URLs outside of the registry: refused"
                )
            self._lease.add("blob", part.digest)
        await together(self._blob(part) for part in parts)
        document = await self._store(manifest.media_type, manifest.content, "artifact", parts)
        for part in parts:
            self._rooms.blobs.add_source(part.digest, self.reference.repository)
        if listed:
            self._lease.add("image", document.digest)
            kind = manifests.artifact_type(manifest) or manifest.config.media_type
            size = len(manifest.content) + sum(part.size for part in parts)
            self.arrived.artifacts.append(ReadyArtifact(document, kind, size))
        return document

    async def _store(self, media_type: str, content: bytes, kind: str, parts: list[Descriptor]) -> Document:
        self._lease.add("blob", Digest.of(content))
        digest = await self._rooms.blobs.put(content, media_type)
        return Document(
            digest, "index" if kind == "index" else "artifact", media_type, len(content),
            tuple(dict.fromkeys(part.digest for part in parts)),
        )  # fmt: skip

    async def _blob(self, part: Descriptor) -> None:
        rooms, shown = self._rooms, part.digest.short
        if rooms.blobs.has(part.digest):
            rooms.blobs.touch(part.digest)
            self.board.say("Already exists", shown)
            return
        if part.size <= _SMALL:
            content = await explained(self.reference, self.repository.small_blob(part, _SMALL))
            await rooms.blobs.put(content, part.media_type)
        else:
            await explained(
                self.reference, rooms.transfers.blob(self.repository, part, self._reporter(shown))
            )
        self.board.say("Download complete", shown)

    # -- images

    async def image(self, manifest: Manifest, platform: Platform | None) -> Digest:
        """The image, ready to be recorded; returns its ID. platform: what was asked for, to warn of another.

        Raises NotFound, InvalidInput, EngineFailure.
        """
        rooms, reference, board, lease = self._rooms, self.reference, self.board, self._lease
        manifests.check_image(manifest)
        for digest in (Digest.of(manifest.content), manifest.config.digest):
            lease.add("blob", digest)
        lease.add("image", manifest.config.digest)  # nothing names it before everything is there
        content = await self._config(manifest.config)
        config = ImageConfig.parse(content)
        check_config(config, manifest)
        if platform is not None:
            self._warn_platform(config, platform)
        tracepoint.reach("pull.config-fetched")
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            lease.add("blob", layer.digest)
            lease.add("layer", diff_id)
        missing: dict[Digest, tuple[Descriptor, Digest]] = {}
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            if rooms.layers.has(diff_id) and not await rooms.transfers.is_left_over(layer):
                board.say("Already exists", layer.digest.short)
            else:
                board.say("Pulling fs layer", layer.digest.short)
                missing[layer.digest] = (layer, diff_id)
        await together(self._layer(layer, diff_id) for layer, diff_id in missing.values())
        tracepoint.reach("pull.layers-published")
        for layer in (manifest.config, *manifest.layers):
            rooms.blobs.add_source(layer.digest, reference.repository)
        ready = await rooms.images.prepare(
            content, manifest=manifest.content, manifest_media_type=manifest.media_type,
            config_media_type=manifest.config.media_type,
        )  # fmt: skip
        self.arrived.images.append(ready)
        return ready.id

    async def _config(self, descriptor: Descriptor) -> bytes:
        if self._rooms.blobs.has(descriptor.digest):
            return self._rooms.blobs.read(descriptor.digest)
        asking = self.repository.small_blob(descriptor, SIZE_LIMIT, "image config")
        try:
            return await explained(self.reference, asking)
        except EngineFailure as fault:
            raise EngineFailure(f"error pulling image configuration: {fault.message}") from fault

    def _warn_platform(self, config: ImageConfig, platform: Platform) -> None:
        here = Platform.of(config.os, config.architecture, config.variant)
        if here not in platform.accepts():
            self.board.say(
                f"WARNING: image with reference {self.reference.familiar()} was found but its platform ({here}) does not match "
                f"the specified platform ({platform})"
            )

    async def _layer(self, layer: Descriptor, diff_id: Digest) -> None:
        shown = layer.digest.short
        found = await explained(
            self.reference, self._rooms.transfers.layer(self.repository, layer, self._reporter(shown))
        )
        if found != diff_id:
            raise EngineFailure("layers from manifest don't match image configuration")
        self.board.say("Pull complete", shown)

    def _reporter(self, shown: str) -> Callable[[str, int, int], None]:
        def report(status: str, current: int, total: int) -> None:
            if status in (DOWNLOADING, EXTRACTING):
                self.board.move(status, shown, current, total)
            else:
                self.board.say(status, shown)

        return report


def _is_image(entry: Descriptor, manifest: Manifest) -> bool:
    """Whether it is to be unpacked: a Linux image. Others are kept as they are."""
    if manifests.is_aside(entry) or manifests.artifact_type(manifest) is not None:
        return False
    return entry.platform is None or entry.platform.os in ("", "linux")


def check_config(config: ImageConfig, manifest: Manifest) -> None:
    """Raises EngineFailure: not for Linux, not of this manifest, or with layers that lie elsewhere."""
    if config.os != "linux":
        raise EngineFailure(f"cannot pull: image is for {config.os[:40]!r}, this engine runs linux images")
    if len(config.diff_ids) != len(manifest.layers):
        raise EngineFailure("layers from manifest don't match image configuration")
    pairs: dict[Digest, Digest] = {}
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if layer.is_foreign or layer.urls:
            raise EngineFailure(
                f"layer {layer.digest} is to be fetched from URLs outside of the registry: refused"
            )
        if pairs.setdefault(layer.digest, diff_id) != diff_id:
            raise EngineFailure("layers from manifest don't match image configuration")


# -- refusals


async def explained(reference: Reference, asking: Awaitable[_Result]) -> _Result:
    """What `asking` gives. Raises a registry's refusal in dockerd's words."""
    try:
        return await asking
    except Refused as fault:
        raise pull_fault(reference, fault) from fault


def pull_fault(reference: Reference, fault: Refused) -> Fault:
    """A registry's refusal as dockerd words it, with dockerd's status. Source: moby's distribution/errors.go."""
    if fault.code_name == "DENIED" or (fault.http_status == 403 and not fault.code_name):
        return NotFound(
            f"pull access denied for {reference.familiar_name()}, repository does not exist or may require "
            f"'docker login': {fault.message}"
        )
    if fault.code_name == "MANIFEST_UNKNOWN":
        return NotFound(f"manifest for {reference.familiar()} not found: {fault.message}")
    if fault.code_name == "NAME_UNKNOWN":
        return NotFound(f"repository {reference.familiar_name()} not found: {fault.message}")
    return EngineFailure(fault.message)
