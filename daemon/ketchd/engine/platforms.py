"""Several platforms under one name: what an index offers, what of it is here, and which image a platform means.

An index is a document that its name keeps; the images of its platforms are images like others, which need no name of their own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ketch_wire.faults import Fault, InvalidInput, NotFound
from ketchd.content.documents import Document
from ketchd.content.images import ImageRecord
from ketchd.engine.rooms import Rooms
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.model.platform import Platform, choose
from ketchd.model.reference import Reference

DEPTH = 3
Kind = Literal["image", "attestation", "unknown"]


def host_platform() -> Platform:
    """What this host runs."""
    return Platform.host(os.uname().machine)


def platform_of(image: ImageRecord) -> Platform:
    """What the image is for, normalised."""
    return Platform.of(image.os, image.architecture, image.variant)


def read_platform(sent: Mapping[str, Any]) -> Platform | None:
    """A request's `{"os", "architecture", "variant"?}`; None for {}. Raises InvalidInput for half of one."""
    if not sent:
        return None
    words = [str(sent.get(key) or "") for key in ("os", "architecture", "variant")]
    if not words[0] or not words[1]:
        raise InvalidInput("both OS and Architecture must be provided")
    return Platform.of(*words)


@dataclass(frozen=True, slots=True)
class Offer:
    """One entry of an index. image: its image here. for_digest: what an attestation is about."""

    entry: Descriptor
    kind: Kind
    image: Digest | None = None
    for_digest: str = ""


def document_named(rooms: Rooms, name: str) -> Document | None:
    """The index or artifact that `name` means, by name, digest name or ID. Raises NotFound, InvalidInput as `resolve` does."""
    image_id = rooms.images.resolve(name)
    try:
        reference = Reference.parse(name)
    except InvalidInput:
        return rooms.documents.of_image(image_id)
    if rooms.images.find_name(reference) is not None:
        return rooms.documents.named(reference)
    return rooms.documents.of_image(image_id)


def offers(rooms: Rooms, document: Document | None) -> list[Offer]:
    """The entries of an index, those of nested ones in their place; nothing for what is no index or is damaged."""
    if document is None or document.kind != "index":
        return []
    return list(_offers(rooms, document.digest, document.media_type, DEPTH))


def _offers(rooms: Rooms, digest: Digest, media_type: str, depth: int) -> Iterator[Offer]:
    try:
        found = manifests.parse(rooms.blobs.read(digest), media_type)
    except Fault:
        return
    if not isinstance(found, Index):
        return
    for entry in found.entries:
        if entry.media_type in manifests.INDEXES:
            if depth:
                yield from _offers(rooms, entry.digest, entry.media_type, depth - 1)
        elif about := manifests.attested(entry):
            yield Offer(entry, "attestation", for_digest=about)
        else:
            image = rooms.documents.image_of(entry.digest)
            yield Offer(entry, "unknown" if image is None and manifests.is_aside(entry) else "image", image)
    for entry in found.others:
        yield Offer(entry, "unknown")


def image_for(rooms: Rooms, name: str, wanted: Platform | None) -> ImageRecord:
    """The image of `name` for a platform: the name's own, or one beside it in its index.

    Raises NotFound in dockerd's words, InvalidInput.
    """
    record = rooms.images.get(rooms.images.resolve(name))
    if wanted is None:
        return record
    here = [record] if record.artifact_type is None else []
    here += [
        rooms.images.get(offer.image)
        for offer in offers(rooms, document_named(rooms, name))
        if offer.image is not None and offer.image != record.id
    ]
    position = choose([platform_of(image) for image in here], wanted)
    if position is None:
        raise NotFound(
            f"image with reference {name} was found but its platform ({platform_of(record)}) does not match the specified "
            f"platform ({wanted})"
        )
    return here[position]


# -- as the API shows them


def descriptor_of(rooms: Rooms, record: ImageRecord, document: Document | None) -> dict[str, Any] | None:
    """What the name means in a registry: the index, else the manifest that the image came with."""
    if document is not None:
        return {"mediaType": document.media_type, "digest": document.digest.text, "size": document.size}
    manifest = rooms.images.manifest_of(record.id)
    if manifest is None:
        return None
    digest, media_type = manifest
    return {"mediaType": media_type, "digest": digest.text, "size": rooms.blobs.size(digest)}


def manifest_rows(
    rooms: Rooms, record: ImageRecord, document: Document | None, users: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """`Manifests[]`: everything that the name has, here or not. users: containers by image. Source: Engine API 1.48."""
    found = offers(rooms, document)
    if not found:
        described = descriptor_of(rooms, record, document)
        if described is None:
            return []  # built or imported here: it has no manifest before it is pushed
        entry = Descriptor(described["mediaType"], Digest(described["digest"]), described["size"])
        found = [
            Offer(entry, "unknown") if record.artifact_type is not None else Offer(entry, "image", record.id)
        ]
    return [_row(rooms, offer, users) for offer in found]


def _row(rooms: Rooms, offer: Offer, users: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    entry = offer.entry
    content, whole = _content(rooms, entry)
    descriptor: dict[str, Any] = {
        "mediaType": entry.media_type,
        "digest": entry.digest.text,
        "size": entry.size,
    }
    if entry.annotations:
        descriptor["annotations"] = dict(entry.annotations)
    platform = entry.platform
    unpacked = 0
    if offer.image is not None:
        image = rooms.images.get(offer.image)
        platform = platform or Platform(image.os, image.architecture, image.variant)
        unpacked = image.size
    if platform is not None:
        descriptor["platform"] = _shown(platform)
    row: dict[str, Any] = {
        "ID": entry.digest.text,
        "Descriptor": descriptor,
        "Available": offer.image is not None if offer.kind == "image" else whole,
        "Size": {"Content": content, "Total": content + unpacked},
        "Kind": offer.kind,
    }
    if offer.kind == "image":
        row["ImageData"] = {
            "Platform": _shown(platform) if platform is not None else {"architecture": "", "os": ""},
            "Containers": list(users.get("" if offer.image is None else offer.image.text, ())),
            "Size": {"Unpacked": unpacked},
        }
    elif offer.kind == "attestation":
        row["AttestationData"] = {"For": offer.for_digest}
    return row


def _content(rooms: Rooms, entry: Descriptor) -> tuple[int, bool]:
    """Bytes of the entry's blobs that are here, and whether that is all of them."""
    if not rooms.blobs.has(entry.digest):
        return 0, False
    try:
        found = manifests.parse(rooms.blobs.read(entry.digest), entry.media_type)
    except Fault:
        return entry.size, entry.media_type not in manifests.ACCEPTED
    if not isinstance(found, Manifest):
        return entry.size, True
    parts = Counter({part.digest: part.size for part in (found.config, *found.layers)})
    present = [digest for digest in parts if rooms.blobs.has(digest)]
    return entry.size + sum(parts[digest] for digest in present), len(present) == len(parts)


def containers_by_image(rooms: Rooms) -> dict[str, list[str]]:
    """IDs of the containers of each image."""
    found: dict[str, list[str]] = {}
    for box in rooms.supervisor:
        found.setdefault(box.record.image_id, []).append(box.record.id)
    return found


def _shown(platform: Platform) -> dict[str, str]:
    shown = {"architecture": platform.architecture, "os": platform.os}
    return {**shown, "variant": platform.variant} if platform.variant else shown
