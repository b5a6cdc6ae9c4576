"""What a push sends of one image: its layers, in forms that are known or made for it, its config, and which manifest says so."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from ketch_wire.faults import EngineFailure, Fault
from ketchd import tracepoint
from ketchd.content.leases import Lease
from ketchd.engine.progress import ProgressBoard
from ketchd.engine.pushwhole import absent_fault
from ketchd.engine.rooms import Rooms
from ketchd.model import manifest as manifests
from ketchd.model.compression import ZSTD, Compression
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Manifest
from ketchd.model.reference import Reference
from ketchd.registry.filebody import BytesBody, FileBody
from ketchd.registry.repository import Repository
from ketchd.registry.together import together

tracepoint.declare("push.layer-compressed", "push.blob-pushed", "push.config-pushed")


@dataclass(slots=True)
class ImagePush:
    """One image on its way: `run` makes the registry have every blob, and says with which manifest.

    layers: diff IDs, base first. how: which forms of its layers will do, and how those are made that do not exist.
    Of one in an index: came_with, the manifest that counts as its own, not the one stored last; platform, to tell it by; and what
    all of them share (`dataclasses.replace` hands it on): slots for transfers, turns at a layer, and what was made.
    """

    rooms: Rooms
    repository: Repository
    target: Reference
    image_id: Digest
    layers: tuple[Digest, ...]
    board: ProgressBoard
    lease: Lease
    how: Compression
    came_with: Manifest | None = None
    platform: str = ""
    slots: asyncio.Semaphore | None = None
    turns: defaultdict[Digest, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    made: dict[Digest, Descriptor] = field(default_factory=dict)

    async def run(self) -> Manifest:
        """The manifest, everything of which is at the registry then. Raises Refused, Unreachable, EngineFailure."""
        known = self.came_with or self._manifest()
        slots = self.slots or asyncio.Semaphore(self.rooms.registry.settings.uploads)
        # A layer may have come twice, in two forms: the manifest has both.
        forms = [[form] for form in known.layers] if known else [[] for _ in self.layers]
        places = [
            (diff_id, *(form.digest for form in first))
            for diff_id, first in zip(self.layers, forms, strict=True)
        ]
        wanted = dict(zip(reversed(places), reversed(forms), strict=True))
        for diff_id in dict.fromkeys(place[0] for place in wanted):
            self.board.say("Preparing", diff_id.short)
        pushed = await together(self._layer(place[0], first, slots) for place, first in wanted.items())
        by_place = dict(zip(wanted, pushed, strict=True))
        layers = tuple(by_place[place] for place in places)
        config = await self._config(known)
        tracepoint.reach("push.config-pushed")
        if known is not None and tuple(layer.digest for layer in known.layers) == tuple(
            layer.digest for layer in layers
        ):
            return known
        was_oci = known is not None and known.media_type == manifests.OCI_MANIFEST
        oci = was_oci or any(manifests.compression_of(layer.media_type) == "zstd" for layer in layers)
        self._tell_of_another(known, oci and not was_oci)
        return manifests.compose(
            Descriptor(manifests.OCI_CONFIG if oci else manifests.DOCKER_CONFIG, config.digest, config.size),
            [_typed(layer, oci) for layer in layers],
            oci=oci,
            like=known,
        )

    def _tell_of_another(self, known: Manifest | None, converted: bool) -> None:
        """The manifest is not the one that the image came with, or not of the kind that one expects."""
        told = self.target.tag or self.target.familiar_name()
        if self.platform:
            told += f", {self.platform}"
        if converted:
            self.board.say(f"{told}: an OCI manifest, since Docker's schema 2 has no zstd layers")
        if known is not None:
            self.board.say(
                f"{told}: the layers' compression differs: another digest than {Digest.of(known.content).short}, "
                f"the same image ID {self.image_id.short}"
            )

    def _manifest(self) -> Manifest | None:
        """The manifest that the image came with, if it fits the image."""
        found = self.rooms.images.manifest_of(self.image_id)
        if found is None:
            return None
        try:
            known = manifests.parse(self.rooms.blobs.read(found[0]), found[1])
        except Fault:
            return None  # damaged or of another kind: a new one will do
        if not isinstance(known, Manifest) or known.config.digest != self.image_id:
            return None
        return known if len(known.layers) == len(self.layers) else None

    def _forms(self, diff_id: Digest, first: list[Descriptor]) -> list[Descriptor]:
        """The known forms of the layer, the manifest's own first, then those whose bytes are here."""
        blobs = self.rooms.blobs
        others = [
            Descriptor(form.media_type, form.digest, form.size)
            for form in blobs.of_layer(diff_id)
            if all(form.digest != known.digest for known in first)
        ]
        wanted = self.how.suffix
        others.sort(
            key=lambda form: (
                not blobs.has(form.digest),
                manifests.compression_of(form.media_type) != wanted,
                str(form.digest),
            )
        )
        return first + others

    def _will_do(self, form: Descriptor) -> bool:
        if self.how.anew:
            return False
        return not self.how.strict or manifests.compression_of(form.media_type) == self.how.suffix

    async def _layer(self, diff_id: Digest, first: list[Descriptor], slots: asyncio.Semaphore) -> Descriptor:
        shown = diff_id.short
        turn = self.turns[diff_id]  # another image of the index may have the same layer
        if slots.locked() or turn.locked():
            self.board.say("Waiting", shown)
        async with turn, slots:
            forms = self._forms(diff_id, first)
            candidates = [form for form in forms if self._will_do(form)]
            for candidate in candidates:
                if await self.repository.has_blob(candidate.digest, candidate.size):
                    self.board.say("Layer already exists", shown)
                    return candidate
                if candidate in first and await self._give(candidate, shown):
                    return candidate  # rather than another form that the registry has: the manifest stays the same
            for candidate in candidates:
                if candidate not in first and await self._give(candidate, shown):
                    return candidate
            made = self.made[diff_id] = self.made.get(diff_id) or await self._compress(diff_id, forms)
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

    async def _compress(self, diff_id: Digest, forms: list[Descriptor]) -> Descriptor:
        """The layer compressed, stored so that the next push sends the same bytes without making them again.

        forms: one of them will do to make it of when the layer itself is not here (another system's).
        """
        rooms, staged = self.rooms, self.rooms.blobs.stage_path()
        here = [form.digest for form in forms if rooms.blobs.has(form.digest)]
        is_here = rooms.layers.has(diff_id)
        if not is_here and not here:
            what = f"blob {forms[0].digest}" if forms else f"layer {diff_id}"
            raise absent_fault([what + (f" of {self.platform}" if self.platform else "")])
        if self.how.is_slow:
            self.board.say("Compressing", diff_id.short)
        if is_here:
            digest, size = await rooms.layers.compress(diff_id, staged, self.how)
        else:
            digest, size = await rooms.layers.recompress(rooms.blobs.path(here[0]), diff_id, staged, self.how)
        try:
            media_type = manifests.layer_type(self.how.suffix, oci=self.how.format == ZSTD)
            self.lease.add("blob", digest)
            await rooms.blobs.publish(staged, digest, size, media_type)
            rooms.blobs.relate(diff_id, digest, media_type, size)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        tracepoint.reach("push.layer-compressed")
        return Descriptor(media_type, digest, size)

    async def _config(self, known: Manifest | None) -> Descriptor:
        """The config, at the registry."""
        image_id, blobs = self.image_id, self.rooms.blobs
        media_type = known.config.media_type if known is not None else manifests.DOCKER_CONFIG
        descriptor = Descriptor(media_type, image_id, blobs.size(image_id))
        if not await self.repository.has_blob(descriptor.digest, descriptor.size):
            content = blobs.read(image_id)
            await self.repository.upload(
                descriptor.digest, descriptor.size, lambda start, stop: BytesBody(content[start:stop])
            )
        return descriptor


def _typed(layer: Descriptor, oci: bool) -> Descriptor:
    """The layer under the media type of the manifest's family: mixed ones confuse some registries."""
    kind = manifests.layer_type(manifests.compression_of(layer.media_type), oci=oci)
    return Descriptor(kind, layer.digest, layer.size)
