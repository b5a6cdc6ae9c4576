"""What an OCI layout in a received archive holds, before anything of it is taken: names, platforms, and what is really there. Pure
but for reading the archive's small documents.

Source: image-spec image-layout.md, annotations.md; containerd's image import for the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ketch_wire.faults import Fault, InvalidInput, NotFound
from ketchd.content.archives import Contents
from ketchd.engine.platforms import host_platform
from ketchd.engine.save import NAME_ANNOTATION, REF_ANNOTATION
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.model.platform import Platform, choose
from ketchd.model.reference import DEFAULT_TAG, Reference

_NESTING_LIMIT = 4


@dataclass(slots=True)
class Leaf:
    """One manifest to take. platform: as its index says."""

    manifest: Manifest
    platform: Platform | None
    is_image: bool


@dataclass(slots=True)
class Whole:
    """What one entry of index.json is. top: its digest. indexes: those in it, inner before outer. leaves: the manifests of which
    everything is in the archive."""

    top: Digest
    names: list[Reference] = field(default_factory=list)
    indexes: list[Index] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)

    def own(self, wanted: Platform | None) -> Leaf | None:
        """The leaf that the names are to mean: for `wanted`, else for this host, else the first; an artifact when it is alone.

        None when nothing is there for `wanted`.
        """
        images = [leaf for leaf in self.leaves if leaf.is_image]
        if not images:
            return self.leaves[0] if self.leaves and not self.indexes else None
        position = choose([leaf.platform for leaf in images], wanted or host_platform())
        if position is not None:
            return images[position]
        if len(images) == 1 and not self.indexes:
            return images[0]  # whoever takes it looks into its config
        return None if wanted is not None else images[0]


def is_for_layouts(contents: Contents) -> bool:
    """Whether index.json holds what manifest.json cannot say: indexes or artifacts."""
    if "index.json" not in contents:
        return False
    if "manifest.json" not in contents:
        return True
    try:
        index = _top(contents)
        return any(
            entry.media_type in manifests.INDEXES
            or manifests.artifact_type(_manifest(contents, entry)) is not None
            for entry in index.entries
        )
    except Fault:
        return False


def read_layout(contents: Contents, wanted: Platform | None) -> list[Whole]:
    """Every entry of index.json, several of one name and of different platforms brought down to the fitting one.

    Raises InvalidInput, NotFound (of several platforms none fits).
    """
    groups: dict[Reference | None, list[Descriptor]] = {}
    for entry in manifests.candidates(_top(contents)):
        groups.setdefault(_name_of(entry), []).append(entry)
    if not groups:
        raise InvalidInput("the archive's index.json names no image")
    found: dict[Digest, Whole] = {}
    for name, entries in groups.items():
        for entry in _fitting(entries, wanted):
            if entry.digest not in found:
                found[entry.digest] = _read(contents, entry)
            if name is not None:
                found[entry.digest].names.append(name)
    return list(found.values())


def blob_of(contents: Contents, descriptor: Descriptor) -> bytes:
    """A small blob, verified. Raises InvalidInput."""
    content = contents.read(blob_name(descriptor))
    if len(content) != descriptor.size or Digest.of(content) != descriptor.digest:
        raise InvalidInput(f"blob {descriptor.digest} of the archive is not what its name says")
    return content


def blob_name(descriptor: Descriptor) -> str:
    """Where it lies in a layout."""
    return f"blobs/sha256/{descriptor.digest.hex}"


def _top(contents: Contents) -> Index:
    index = manifests.parse(contents.read("index.json"), manifests.OCI_INDEX)
    assert isinstance(index, Index)
    return index


def _manifest(contents: Contents, entry: Descriptor) -> Manifest:
    found = manifests.parse(blob_of(contents, entry), entry.media_type)
    if not isinstance(found, Manifest):
        raise InvalidInput(f"{entry.digest} of the archive is no manifest")
    return found


def _read(contents: Contents, entry: Descriptor) -> Whole:
    whole = Whole(entry.digest)
    _walk(contents, entry, whole, 0)
    if not whole.leaves:
        raise InvalidInput(f"the archive holds nothing whole of {entry.digest}")
    return whole


def _walk(contents: Contents, entry: Descriptor, whole: Whole, depth: int) -> None:
    if depth > _NESTING_LIMIT:
        raise InvalidInput("the archive's indexes are nested too deeply")
    if depth and blob_name(entry) not in contents:
        return  # of an index only a part need be there
    found = manifests.parse(blob_of(contents, entry), entry.media_type)
    if isinstance(found, Index):
        for inner in found.entries:
            _walk(contents, inner, whole, depth + 1)
        whole.indexes.append(found)
        return
    if depth and not all(blob_name(part) in contents for part in (found.config, *found.layers)):
        return
    is_image = not (depth and manifests.is_aside(entry)) and manifests.artifact_type(found) is None
    if depth and entry.platform is not None and entry.platform.os not in ("", "linux"):
        is_image = False
    whole.leaves.append(Leaf(found, entry.platform, is_image))


def _fitting(entries: Sequence[Descriptor], wanted: Platform | None) -> list[Descriptor]:
    offers = [entry.platform for entry in entries]
    if len(entries) == 1 or None in offers or len(set(offers)) == 1:
        return list(entries)
    best = choose(offers, wanted or host_platform())
    if best is None:
        raise NotFound(f"the archive has no image for platform {wanted or host_platform()}")
    return [entries[best]]


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
