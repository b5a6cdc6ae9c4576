"""Pushing an index whose images go in another compression: theirs change, so their manifests do, and so the index that lists them.

What is no image (attestations, artifacts, strangers) goes as it came.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from ketch_wire.faults import InvalidInput
from ketchd.content.documents import Document
from ketchd.engine.platforms import DEPTH
from ketchd.engine.pushimage import ImagePush
from ketchd.engine.pushwhole import (
    Parts,
    about_entry,
    absent_fault,
    add,
    add_leaves,
    publish_told,
    send_blobs,
)
from ketchd.engine.rooms import Rooms
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import ImageConfig
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.model.replacing import with_replaced
from ketchd.registry.together import together


@dataclass(frozen=True, slots=True)
class Member:
    """An image of an index. layers: diff IDs, base first. platform: as the index says, or nothing."""

    manifest: Manifest
    layers: tuple[Digest, ...]
    platform: str

    @property
    def digest(self) -> Digest:
        """What the index names it by."""
        return Digest.of(self.manifest.content)


@dataclass(slots=True)
class Plan:
    """What there is to send of an index. indexes: it and those in it, inner before outer, itself last. images: each once.
    rest: what stays as it is.

    absent: what is not here, a line for each. is_known: whether that is all there is to say; else a manifest or an image's config
    is among it, and what those consist of nobody here knows.
    """

    indexes: list[Index] = field(default_factory=list)
    images: list[Member] = field(default_factory=list)
    rest: Parts = field(default_factory=Parts)
    absent: list[str] = field(default_factory=list)
    is_known: bool = True


def plan(rooms: Rooms, document: Document) -> Plan:
    """Look through the index, and those in it. Raises EngineFailure (damaged), InvalidInput."""
    made = Plan()
    _look(rooms, Descriptor(document.media_type, document.digest, document.size), made, DEPTH + 1)
    made.absent += made.rest.absent
    made.is_known = not any(line.startswith("manifest ") for line in made.absent) and made.is_known
    return made


def _look(rooms: Rooms, entry: Descriptor, found: Plan, depth: int) -> None:
    blobs = rooms.blobs
    if not depth:
        raise InvalidInput("manifest lists are nested too deeply")
    if any(Digest.of(index.content) == entry.digest for index in found.indexes) or any(
        member.digest == entry.digest for member in found.images
    ):
        return
    if not blobs.has(entry.digest):
        found.absent.append(f"manifest {entry.digest}{about_entry(entry)}")
        found.is_known = False
        return
    document = manifests.parse(blobs.read(entry.digest), entry.media_type)
    if isinstance(document, Index):
        for inner in document.entries:
            _look(rooms, inner, found, depth - 1)
        add_leaves(blobs, document.others, "", found.rest)
        found.indexes.append(document)
    elif not _may_be_image(entry, document):
        add(blobs, entry.digest, entry.media_type, about_entry(entry), found.rest)
    elif not blobs.has(document.config.digest):
        found.absent.append(f"blob {document.config.digest}{about_entry(entry)}")
        found.is_known = False
    elif (layers := _layers(blobs.read(document.config.digest), document)) is None:
        add(blobs, entry.digest, entry.media_type, about_entry(entry), found.rest)
    else:
        found.images.append(Member(document, layers, str(entry.platform or "")))
        missing = {
            layer.digest
            for layer, diff_id in zip(document.layers, layers, strict=True)
            if not rooms.layers.has(diff_id) and not blobs.has(layer.digest)
        }
        found.absent += [f"blob {digest}{about_entry(entry)}" for digest in sorted(missing)]


def _may_be_image(entry: Descriptor, manifest: Manifest) -> bool:
    if manifests.is_aside(entry) or manifests.artifact_type(manifest) is not None:
        return False
    return not any(layer.is_foreign or layer.urls for layer in manifest.layers)


def _layers(config: bytes, manifest: Manifest) -> tuple[Digest, ...] | None:
    """The diff IDs of the manifest's layers; None when the config is not that of an image with these."""
    try:
        found = ImageConfig.parse(config).diff_ids
    except InvalidInput:
        return None
    return tuple(found) if len(found) == len(manifest.layers) else None


@dataclass(slots=True)
class Sent:
    """What is at the registry. content: the index'. changed: each image that is another there than it came, with its new manifest.
    indexes: those that are new, the outermost last. manifests: digests of all that is in it."""

    digest: Digest
    content: bytes
    changed: list[tuple[Member, Manifest]]
    indexes: list[Index]
    manifests: list[Digest]


async def send_index(pushing: ImagePush, found: Plan, tag: str) -> Sent:
    """Send all of it, the index last, under the tag. pushing: of the name's own image; the index' others go in its manner.

    Of an index of which everything is in the asked form every byte is the same. Raises NotFound with what is neither here nor
    there; Refused, Unreachable, EngineFailure.
    """
    repository, board = pushing.repository, pushing.board
    if not found.is_known:
        raise absent_fault(found.absent)
    _lease(pushing, found)
    limit = pushing.rooms.registry.settings.uploads
    await send_blobs(repository, found.rest, limit, pushing.blob)
    for part in found.rest.manifests:
        await publish_told(repository, part[0], part, board)
    inner = [part[0] for part in found.rest.manifests]
    changed = []
    changes: dict[Digest, Descriptor] = {}
    for member, made in zip(found.images, await _send_images(pushing, found.images, limit), strict=True):
        digest = Digest.of(made.content)
        inner.append(digest)
        if digest != member.digest:
            changed.append((member, made))
            changes[member.digest] = Descriptor(made.media_type, digest, len(made.content))
    _tell_of_attestations(pushing, tag, found, changes)
    new: list[Index] = []
    for index in found.indexes:
        content = with_replaced(index, changes)
        digest = Digest.of(content)
        if content != index.content:
            changes[Digest.of(index.content)] = Descriptor(index.media_type, digest, len(content))
            rewritten = manifests.parse(content, index.media_type)
            assert isinstance(rewritten, Index)
            new.append(rewritten)
        name = tag if index is found.indexes[-1] else digest
        await publish_told(repository, name, (digest, index.media_type, content), board)
        inner.append(digest)
    return Sent(inner.pop(), content, changed, new, inner)


async def _send_images(pushing: ImagePush, images: list[Member], limit: int) -> list[Manifest]:
    """Each image's manifest at the registry, which is there. limit: layers on their way at once, of all of them, and images."""
    slots, places = asyncio.Semaphore(limit), asyncio.Semaphore(limit)

    async def send(member: Member) -> Manifest:
        one = replace(
            pushing, image_id=member.manifest.config.digest, layers=member.layers, came_with=member.manifest,
            platform=member.platform, slots=slots,
        )  # fmt: skip
        async with places:
            made = await one.run()
            digest = Digest.of(made.content)
            part = (digest, made.media_type, made.content)
            await publish_told(pushing.repository, digest, part, pushing.board)
        return made

    return await together(send(member) for member in images)


def _lease(pushing: ImagePush, found: Plan) -> None:
    for member in found.images:
        for layer in (member.manifest.config, *member.manifest.layers):
            pushing.lease.add("blob", layer.digest)
        pushing.lease.add("blob", member.digest)
        for diff_id in member.layers:
            pushing.lease.add("layer", diff_id)
    for digest in (*found.rest.blobs, *(part[0] for part in found.rest.manifests)):
        pushing.lease.add("blob", digest)
    for index in found.indexes:
        pushing.lease.add("blob", Digest.of(index.content))


def _tell_of_attestations(
    pushing: ImagePush, tag: str, found: Plan, changes: dict[Digest, Descriptor]
) -> None:
    known = {str(digest) for digest in changes}
    if any(manifests.attested(entry) in known for index in found.indexes for entry in index.entries):
        pushing.board.say(f"{tag}: its attestations describe the images as they were, in the old compression")


async def remember(pushing: ImagePush, found: Plan, sent: Sent) -> list[Document]:
    """The images are known by their new manifests too, and all blobs have a place to be mounted from.

    Returns the new documents, of which everything is stored: to be kept and named, before anything else is awaited.
    """
    rooms, repository = pushing.rooms, pushing.target.repository
    new: list[Document] = []
    for member, made in sent.changed:
        if rooms.documents.image_of(member.digest) is not None:
            await rooms.images.register(
                rooms.blobs.read(made.config.digest), manifest=made.content, manifest_media_type=made.media_type,
                config_media_type=made.config.media_type,
            )  # fmt: skip
        else:  # another system's, which is no image here
            new.append(await _stored(pushing, made, (made.config, *made.layers)))
    for index in sent.indexes:
        new.append(await _stored(pushing, index, (*index.entries, *index.others)))
    manifests_there = {member.digest: member.manifest for member in found.images}
    manifests_there |= {member.digest: made for member, made in sent.changed}
    there = {part.digest for made in manifests_there.values() for part in (made.config, *made.layers)}
    for digest in (*there, *found.rest.blobs):
        rooms.blobs.add_source(digest, repository)
    return new


async def _stored(pushing: ImagePush, made: Manifest | Index, parts: tuple[Descriptor, ...]) -> Document:
    pushing.lease.add("blob", Digest.of(made.content))
    digest = await pushing.rooms.blobs.put(made.content, made.media_type)
    return Document(
        digest, "index" if isinstance(made, Index) else "artifact", made.media_type, len(made.content),
        tuple(dict.fromkeys(part.digest for part in parts)),
    )  # fmt: skip
