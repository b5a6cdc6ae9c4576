"""The push journey: an image here becomes a name at a registry.

tag → per layer: there already? mounted from a repository that has it? else uploaded, in the bytes it was pulled in where they
are known → config → manifest last. Returns when the registry has confirmed every digest. An index of which everything is
here goes as it came, and so does an artifact (`pushwhole`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ketch_wire.faults import EngineFailure, Fault, InvalidInput, NotFound, Unauthorized
from ketchd import tracepoint
from ketchd.content.documents import Document
from ketchd.content.images import ImageRecord
from ketchd.content.leases import Lease
from ketchd.engine.platforms import image_for
from ketchd.engine.progress import ProgressBoard, Send
from ketchd.engine.pushwhole import gather, send_parts
from ketchd.engine.rooms import Rooms
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Manifest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.errors import Refused
from ketchd.registry.filebody import FileBody
from ketchd.registry.repository import Repository
from ketchd.registry.together import together
from ketchd.registry.tokens import Credentials

tracepoint.declare(
    "push.layer-compressed", "push.blob-pushed", "push.config-pushed", "push.manifest-put", "push.recorded"
)


async def push(
    rooms: Rooms,
    reference: Reference,
    credentials: Credentials,
    send: Send,
    *,
    platform: Platform | None = None,
    everything: bool = False,
) -> None:
    """Push the tag of `reference`, or every tag of its repository when it has none.

    platform: that one's image alone. everything: the whole index, or a fault that says what of it is not here; without
    either, the index when all of it is here, else the tag's image.
    send: takes messages of Docker's progress stream; the first one goes out before anything can fail.
    Raises InvalidInput, NotFound, Unauthorized, EngineFailure. Cancelled or failed: uploads under way are given up; what the
    registry has is used by the next push. Source: Engine API, ImagePush.
    """
    board = ProgressBoard(send)
    async with board.pump():
        board.say(f"The push refers to repository [{reference.repository}]")
        await board.flush()
        targets = _targets(rooms, reference)
        tell = lambda text: board.say(text, reference.tag or reference.familiar_name())  # noqa: E731
        try:
            repository = await rooms.registry.repository(reference, credentials, push=True, tell=tell)
            await repository.settle()
            for target, image_id in targets:
                await _push_one(rooms, repository, target, image_id, board, platform, everything)
        except Refused as fault:
            raise push_fault(fault) from fault
        rooms.events.append(
            "image", "push", reference.familiar(), {"name": reference.familiar_name()}
        )  # dockerd's, one for all tags


def _targets(rooms: Rooms, reference: Reference) -> list[tuple[Reference, Digest]]:
    if reference.digest is not None:
        raise InvalidInput("cannot push a digest reference")
    known = rooms.images.tags_of(reference.repository)
    if not known:
        raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name()}")
    if reference.tag is None:
        return known
    image_id = rooms.images.find_name(reference)
    if image_id is None:
        raise NotFound(f"tag does not exist: {reference.familiar()}")
    return [(reference, image_id)]


async def _push_one(
    rooms: Rooms,
    repository: Repository,
    target: Reference,
    image_id: Digest,
    board: ProgressBoard,
    platform: Platform | None,
    everything: bool,
) -> None:
    tag = target.tag or ""
    async with rooms.leases.hold() as lease:
        lease.add("image", image_id)
        image = rooms.images.get(image_id)
        document = rooms.documents.named(target)
        if platform is not None and image.artifact_type is None:
            image, document = image_for(rooms, target.familiar(), platform), None
            lease.add("image", image.id)
        pushing = _Pushing(rooms, repository, target, image, board, lease)
        parts = None if document is None else gather(rooms.blobs, document)
        if parts is not None and (everything or not parts.absent or image.artifact_type is not None):
            for digest in (*parts.blobs, *(known[0] for known in parts.manifests)):
                lease.add("blob", digest)
            await send_parts(repository, parts, rooms.registry.settings.uploads, pushing.blob)
            _, media_type, content = parts.manifests[-1]
            digest = await repository.put_manifest(tag, content, media_type)
            tracepoint.reach("push.manifest-put")
            rooms.images.tag(target.with_digest(digest), image_id)
            for blob in parts.blobs:
                rooms.blobs.add_source(blob, target.repository)
            tracepoint.reach("push.recorded")
        else:
            manifest = await pushing.run()
            content = manifest.content
            digest = await repository.put_manifest(tag, content, manifest.media_type)
            tracepoint.reach("push.manifest-put")
            await _remember(rooms, target, image.id, manifest, digest)
            if document is not None:
                _tell_of_one(board, document, Descriptor(manifest.media_type, digest, len(content)))
    size = len(content)
    board.say(f"{tag}: digest: {digest} size: {size}")
    board.tell({"progressDetail": {}, "aux": {"Tag": tag, "Digest": str(digest), "Size": size}})


def _tell_of_one(board: ProgressBoard, document: Document, pushed: Descriptor) -> None:
    """As dockerd tells its client that one platform went in place of the index."""
    original = Descriptor(document.media_type, document.digest, document.size)
    board.tell(
        {
            "progressDetail": {},
            "aux": {
                "manifestPushedInsteadOfIndex": True,
                "originalIndex": original.to_json(),
                "selectedManifest": pushed.to_json(),
            },
        }
    )


async def _remember(
    rooms: Rooms, target: Reference, image_id: Digest, manifest: Manifest, digest: Digest
) -> None:
    """The image has a digest name now, and its blobs a place to be mounted from."""
    await rooms.images.register(
        rooms.blobs.read(image_id), manifest=manifest.content, manifest_media_type=manifest.media_type,
        config_media_type=manifest.config.media_type,
    )  # fmt: skip
    rooms.images.tag(target.with_digest(digest), image_id)
    for descriptor in (manifest.config, *manifest.layers):
        rooms.blobs.add_source(descriptor.digest, target.repository)
    tracepoint.reach("push.recorded")


@dataclass(slots=True)
class _Pushing:
    """One image on its way: `run` makes the registry have every blob, and says with which manifest."""

    rooms: Rooms
    repository: Repository
    target: Reference
    image: ImageRecord
    board: ProgressBoard
    lease: Lease

    async def run(self) -> Manifest:
        known = self._manifest()
        slots = asyncio.Semaphore(self.rooms.registry.settings.uploads)
        wanted: dict[Digest, list[Descriptor]] = {}
        for position, diff_id in enumerate(self.image.layers):
            first = [known.layers[position]] if known is not None else []
            wanted.setdefault(diff_id, self._candidates(diff_id, first))
        for diff_id in reversed(wanted):
            self.board.say("Preparing", diff_id.short)
        pushed = await together(
            self._layer(diff_id, candidates, slots) for diff_id, candidates in reversed(wanted.items())
        )
        by_layer = dict(zip(reversed(wanted), pushed, strict=True))
        layers = tuple(by_layer[diff_id] for diff_id in self.image.layers)
        config = await self._config(known)
        tracepoint.reach("push.config-pushed")
        if known is not None and tuple(layer.digest for layer in known.layers) == tuple(
            layer.digest for layer in layers
        ):
            return known
        oci = any(manifests.compression_of(layer.media_type) == "zstd" for layer in layers)
        return manifests.compose(
            Descriptor(manifests.OCI_CONFIG if oci else manifests.DOCKER_CONFIG, config.digest, config.size),
            [_typed(layer, oci) for layer in layers],
            oci=oci,
        )

    def _manifest(self) -> Manifest | None:
        """The manifest that the image came with, if it fits the image."""
        found = self.rooms.images.manifest_of(self.image.id)
        if found is None:
            return None
        try:
            known = manifests.parse(self.rooms.blobs.read(found[0]), found[1])
        except Fault:
            return None  # damaged or of another kind: a new one will do
        if not isinstance(known, Manifest) or known.config.digest != self.image.id:
            return None
        return known if len(known.layers) == len(self.image.layers) else None

    def _candidates(self, diff_id: Digest, first: list[Descriptor]) -> list[Descriptor]:
        """The forms of the layer worth trying, the manifest's own first, then those whose bytes are here."""
        blobs = self.rooms.blobs
        others = [
            Descriptor(form.media_type, form.digest, form.size)
            for form in blobs.of_layer(diff_id)
            if all(form.digest != known.digest for known in first)
        ]
        others.sort(key=lambda form: (not blobs.has(form.digest), str(form.digest)))
        return first + others

    async def _layer(
        self, diff_id: Digest, candidates: list[Descriptor], slots: asyncio.Semaphore
    ) -> Descriptor:
        shown = diff_id.short
        if slots.locked():
            self.board.say("Waiting", shown)
        async with slots:
            for candidate in candidates:
                if await self.repository.has_blob(candidate.digest, candidate.size):
                    self.board.say("Layer already exists", shown)
                    return candidate
            for candidate in candidates:
                if await self._give(candidate, shown):
                    return candidate
            made = await self._compress(diff_id)
            if await self.repository.has_blob(made.digest, made.size):
                self.board.say("Layer already exists", shown)
            elif not await self._give(made, shown):
                raise EngineFailure(f"blob {made.digest} of layer {diff_id} is not here")
            return made

    async def blob(self, blob: Descriptor) -> bool:
        """Have the registry hold the blob as it is; False when it is neither there nor here nor to be mounted."""
        shown = blob.digest.short
        if await self.repository.has_blob(blob.digest, blob.size):
            self.board.say("Layer already exists", shown)
            return True
        return await self._give(blob, shown)

    async def _give(self, blob: Descriptor, shown: str) -> bool:
        """Mount the blob from another repository of the registry, or upload it; False when neither is possible."""
        rooms, is_here = self.rooms, self.rooms.blobs.has(blob.digest)
        sources = self._sources(blob.digest)
        for source in sources[:-1] if is_here else sources:
            if await self._mounted(blob, shown, source, only_mount=True):
                return True
            rooms.blobs.drop_source(blob.digest, f"{self.target.domain}/{source}")
        if not is_here:
            return False
        await self._mounted(blob, shown, sources[-1] if sources else "")
        tracepoint.reach("push.blob-pushed")
        return True

    async def _mounted(self, blob: Descriptor, shown: str, source: str, *, only_mount: bool = False) -> bool:
        """Whether the registry took it from `source`. Unless only_mount it has the blob in any case afterwards."""
        if only_mount:
            mounted = await self.repository.upload(
                blob.digest, blob.size, lambda *_: b"", mount_from=source, only_mount=True
            )
        else:
            mounted = await self._upload(
                blob, source, lambda sent: self.board.move("Pushing", shown, sent, blob.size)
            )
        if mounted:
            self.board.say(f"Mounted from {source}", shown)
        elif not only_mount:
            self.board.say("Pushed", shown)
        return mounted

    async def _upload(self, blob: Descriptor, source: str, on_sent: Callable[[int], None]) -> bool:
        path = self.rooms.blobs.path(blob.digest)
        found = path.stat().st_size
        if found != blob.size:
            raise EngineFailure(
                f"blob {blob.digest} is damaged on disk: it has {found} bytes instead of {blob.size}"
            )
        return await self.repository.upload(
            blob.digest,
            blob.size,
            lambda start, stop: FileBody(path, start, stop, on_sent),
            mount_from=source,
        )

    def _sources(self, digest: Digest) -> list[str]:
        """Paths of other repositories of this registry that are known to have the blob."""
        prefix = f"{self.target.domain}/"
        return [
            name.removeprefix(prefix)
            for name in self.rooms.blobs.sources(digest)
            if name.startswith(prefix) and name != self.target.repository
        ][:4]

    async def _compress(self, diff_id: Digest) -> Descriptor:
        """The layer as gzip, stored so that the next push sends the same bytes without making them again."""
        rooms = self.rooms
        staged = rooms.blobs.stage_path()
        digest, size = await rooms.layers.compress(diff_id, staged)
        try:
            media_type = manifests.layer_type("gzip", oci=False)
            self.lease.add("blob", digest)
            rooms.blobs.relate(diff_id, digest, media_type, size)
            await rooms.blobs.publish(staged, digest, size, media_type)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        tracepoint.reach("push.layer-compressed")
        return Descriptor(media_type, digest, size)

    async def _config(self, known: Manifest | None) -> Descriptor:
        """The config, at the registry."""
        image_id, blobs = self.image.id, self.rooms.blobs
        media_type = known.config.media_type if known is not None else manifests.DOCKER_CONFIG
        descriptor = Descriptor(media_type, image_id, blobs.size(image_id))
        if not await self.repository.has_blob(descriptor.digest, descriptor.size):
            content = blobs.read(image_id)
            await self.repository.upload(
                descriptor.digest, descriptor.size, lambda start, stop: content[start:stop]
            )
        return descriptor


def _typed(layer: Descriptor, oci: bool) -> Descriptor:
    """The layer under the media type of the manifest's family: mixed ones confuse some registries."""
    kind = manifests.layer_type(manifests.compression_of(layer.media_type), oci=oci)
    return Descriptor(kind, layer.digest, layer.size)


def push_fault(fault: Refused) -> Fault:
    """A registry's refusal of a push. Its words are dockerd's already; wrong credentials are told apart."""
    if fault.code_name == "UNAUTHORIZED":
        return Unauthorized(fault.message)
    return EngineFailure(fault.message)
