"""The save journey: images as one tar that is a docker archive and an OCI layout at once, streamed in constant memory.

The layers go out as plain tars, cut from where they lie, under their diff IDs; the manifests are made for the archive. A whole
index and an artifact go out as they came, every byte of them; `manifest.json` then points at the compressed layers.
Source: Engine API 1.50, ImageSave; moby's image/tarexport/save.go; image-spec image-layout.md.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ketch_wire.faults import EngineFailure, Fault, InvalidInput, NotFound
from ketchd.content.archives import Member, stream
from ketchd.content.documents import Document
from ketchd.content.images import ImageRecord
from ketchd.engine.images import announce
from ketchd.engine.platforms import image_for
from ketchd.engine.pushwhole import Parts, absent_fault, gather
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    compose,
    parse,
)
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference

NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(slots=True)
class _Chosen:
    """One image to save, by which of its names. whole: the document that goes out as it came, in place of the image alone."""

    record: ImageRecord
    names: list[Reference] = field(default_factory=list)
    whole: Document | None = None
    parts: Parts | None = None


@asynccontextmanager
async def saving(
    rooms: Rooms, names: Sequence[str], platform: Platform | None = None, *, everything: bool = False
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The archive of `names`, to be read in the body. A name without tag means all tags of it.

    platform: which image of an index. everything: whole indexes; NotFound when not all of one is here.
    Raises NotFound, InvalidInput, EngineFailure before the first byte. What is saved cannot be collected meanwhile.
    """
    if not names:
        raise InvalidInput("no image names given")
    chosen = _choose(rooms, names, platform, everything)
    async with rooms.leases.hold() as lease:
        for item in chosen:
            if item.whole is not None:
                item.parts = gather(rooms.blobs, item.whole)
                if item.parts.absent:
                    raise absent_fault(item.parts.absent)
                for digest in (*item.parts.blobs, *(known[0] for known in item.parts.manifests)):
                    lease.add("blob", digest)
                continue
            if not item.record.layers:
                raise EngineFailure("empty export - not implemented")
            lease.add("blob", item.record.id)
            for layer in item.record.layers:
                lease.add("layer", layer)
                if not rooms.layers.has(layer):
                    raise EngineFailure(
                        f"layer {layer} of image {item.record.id.short} is missing: repair it with ketch system fsck"
                    )
        async with aclosing(stream(_members(rooms, chosen))) as archive:
            first = await anext(archive)  # by then all documents were read, and found whole
            yield _from(first, archive)
        for item in chosen:
            announce(rooms, item.record.id, "save")


async def _from(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _choose(rooms: Rooms, names: Sequence[str], platform: Platform | None, everything: bool) -> list[_Chosen]:
    """Images in the order of their first name; one entry for each image, whatever its names."""
    found: dict[tuple[Digest, Digest | None], _Chosen] = {}

    def add(image_id: Digest, reference: Reference | None) -> None:
        shown = image_id.text if reference is None else reference.familiar()
        record = image_for(rooms, shown, platform)
        document = (
            rooms.documents.of_image(image_id) if reference is None else rooms.documents.named(reference)
        )
        if document is not None and document.kind == "index" and not everything:
            document = None
        key = (record.id, None if document is None else document.digest)
        item = found.setdefault(key, _Chosen(record, whole=document))
        if reference is not None and reference.digest is None and reference not in item.names:
            item.names.append(reference)

    for name in names:
        try:
            reference = Reference.parse(name)
        except InvalidInput:
            add(rooms.images.resolve(name), None)
            continue
        tags = rooms.images.tags_of(reference.repository) if reference.is_name_only else []
        for tag, image_id in tags:
            add(image_id, tag)
        if tags:
            continue
        named = None if reference.is_name_only else rooms.images.find_name(reference)
        if named is not None:
            add(named, reference)
        elif reference.is_name_only or name.startswith("sha256:"):
            add(rooms.images.resolve(name), None)
        else:
            raise NotFound(f"No such image: {reference.familiar()}")
    return list(found.values())


async def _members(rooms: Rooms, chosen: Sequence[_Chosen]) -> AsyncIterator[Member]:
    """Every entry, in the order of their names. A layer's place is asked for when its turn comes."""
    blobs: dict[str, bytes | Digest | Descriptor] = {}
    times: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for item in chosen:
        when = max(0, (item.record.created_ns or 0) // 1_000_000_000)
        added: dict[Digest, bytes | Digest | Descriptor] = {}
        if item.whole is not None and item.parts is not None:
            added |= {digest: content for digest, _, content in item.parts.manifests}
            added |= dict(item.parts.blobs)
            entries += _entries(item, Descriptor(item.whole.media_type, item.whole.digest, item.whole.size))
            rows += _rows_of_whole(item)
        else:
            config = rooms.blobs.read(item.record.id)
            sizes = {layer: rooms.layers.record(layer).tar_size for layer in item.record.layers}
            manifest = compose(
                Descriptor(OCI_CONFIG, item.record.id, len(config)),
                [Descriptor(OCI_LAYER, layer, sizes[layer]) for layer in item.record.layers],
                oci=True,
                like=_known(rooms, item.record),
            )
            digest = Digest.of(manifest.content)
            added |= {item.record.id: config, digest: manifest.content}
            added |= {layer: layer for layer in item.record.layers}
            rows.append(_row(item, sizes))
            entries += _entries(item, Descriptor(OCI_MANIFEST, digest, len(manifest.content)))
        for key, content in added.items():
            blobs.setdefault(key.hex, content)
            times.setdefault(key.hex, when)
    yield Member("blobs/", max(times.values()))
    yield Member("blobs/sha256/", max(times.values()))
    for hexdigits in sorted(blobs):
        name, content = f"blobs/sha256/{hexdigits}", blobs[hexdigits]
        if isinstance(content, bytes):
            yield Member(name, times[hexdigits], content=content)
        elif isinstance(content, Descriptor):
            path = rooms.blobs.path(content.digest)
            yield Member(name, times[hexdigits], source=path, size=content.size)
        else:
            path, offset, size = await rooms.layers.tar_range(content)
            yield Member(name, times[hexdigits], source=path, offset=offset, size=size)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    yield Member("index.json", 0, content=_json(index))
    yield Member("manifest.json", 0, content=_json(rows))
    yield Member("oci-layout", 0, content=_LAYOUT)
    if repositories := _repositories(chosen):
        yield Member("repositories", 0, content=_json(repositories))


def _known(rooms: Rooms, record: ImageRecord) -> Manifest | None:
    """The manifest that the image came with, if it can be read."""
    found = rooms.images.manifest_of(record.id)
    if found is None:
        return None
    try:
        known = parse(rooms.blobs.read(found[0]), found[1])
    except Fault:
        return None  # damaged or of another kind: the archive goes without what it says
    return known if isinstance(known, Manifest) and known.config.digest == record.id else None


def _row(item: _Chosen, sizes: Mapping[Digest, int]) -> dict[str, Any]:
    """The image's entry of manifest.json."""
    return {
        "Config": f"blobs/sha256/{item.record.id.hex}",
        "RepoTags": [name.familiar() for name in item.names] or None,
        "Layers": [f"blobs/sha256/{layer.hex}" for layer in item.record.layers],
        "LayerSources": {
            layer.text: {"mediaType": OCI_LAYER, "size": size, "digest": layer.text}
            for layer, size in sizes.items()
        },
    }


def _rows_of_whole(item: _Chosen) -> list[dict[str, Any]]:
    """The entry of manifest.json for the name's own image, by which dockerd loads it; none for an artifact."""
    if item.record.artifact_type is not None or item.parts is None:
        return []
    for _, media_type, content in item.parts.manifests:
        manifest = parse(content, media_type)
        if isinstance(manifest, Manifest) and manifest.config.digest == item.record.id:
            return [
                {
                    "Config": f"blobs/sha256/{item.record.id.hex}",
                    "RepoTags": [name.familiar() for name in item.names] or None,
                    "Layers": [f"blobs/sha256/{layer.digest.hex}" for layer in manifest.layers],
                }
            ]
    return []


def _entries(item: _Chosen, manifest: Descriptor) -> list[dict[str, Any]]:
    """The image's entries of index.json: one for each name, one without a name for none."""
    row = manifest.to_json()
    if item.record.artifact_type is not None:
        row["artifactType"] = item.record.artifact_type
    elif item.whole is None:
        row["platform"] = {"architecture": item.record.architecture, "os": item.record.os}
        if item.record.variant:
            row["platform"]["variant"] = item.record.variant
    if not item.names:
        return [row]
    return [
        {**row, "annotations": {NAME_ANNOTATION: name.canonical(), REF_ANNOTATION: name.tag}}
        for name in item.names
    ]


def _repositories(chosen: Iterable[_Chosen]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for item in chosen:
        for name in item.names if item.record.layers else ():
            found.setdefault(name.familiar_name(), {})[name.tag or "latest"] = item.record.layers[-1].hex
    return found


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
