"""Looking at images: the list with its filters, one image whole, its history.

The list is one pass over the catalogue: no blob is read, whatever the number of images.
Source: Engine API 1.50, ImageList; moby's ImageService.Images has the order of the filters.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.content import imageviews
from ketchd.content.imagerows import image_rows, shared_sizes
from ketchd.content.images import ImageRecord
from ketchd.content.imageviews import Version
from ketchd.engine import platforms
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.pathmatch import pattern
from ketchd.model.platform import Platform
from ketchd.model.reference import familiar_text
from ketchd.model.times import parse_timestamp

Filters = Mapping[str, Sequence[str]]
_FILTERS = frozenset({"before", "dangling", "label", "reference", "since", "until"})


def check_keys(filters: Filters, allowed: frozenset[str]) -> None:
    """Raises InvalidInput for a filter that the endpoint does not know."""
    for key in filters:
        if key not in allowed:
            raise InvalidInput(f"invalid filter '{key[:80]}'")


def filter_bool(filters: Filters, key: str) -> bool | None:
    """A yes or no; None when it is not asked. Raises InvalidInput."""
    values = filters.get(key)
    if not values:
        return None
    meanings = {{"1": True, "true": True, "0": False, "false": False}.get(value) for value in values}
    if len(meanings) != 1 or None in meanings:
        raise InvalidInput(f"invalid filter '{key}=[{' '.join(values)[:80]}]'")
    return meanings.pop()


def name_patterns(filters: Filters) -> list[re.Pattern[str]]:
    """The `name` filter. As in dockerd, what is no expression matches nothing."""
    found = []
    for text in filters.get("name", ()):
        try:
            found.append(re.compile(text))
        except re.error:
            found.append(re.compile(r"(?!)"))
    return found


def has_labels(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    """Whether every `k` or `k=v` holds."""
    for item in wanted:
        key, sign, value = item.partition("=")
        if key not in labels or (sign and labels[key] != value):
            return False
    return True


def list_images(
    rooms: Rooms,
    filters: Filters,
    version: Version,
    *,
    everything: bool = False,
    shared_size: bool = False,
    with_manifests: bool = False,
) -> list[dict[str, Any]]:
    """The rows, newest first. Raises InvalidInput, NotFound (an image named by before or since).

    everything: also images that only others stand on, and the other platforms of a name. with_manifests: what each name has of
    every platform, for which indexes are read.
    """
    check_keys(filters, _FILTERS)
    dangling = filter_bool(filters, "dangling")
    before = _earliest(rooms, filters)
    since = max((_created(rooms, name) for name in filters.get("since", ())), default=None)
    labels = filters.get("label", ())
    patterns = [pattern(text) for text in filters.get("reference", ())]
    hidden: set[str] | None = None
    rows = []
    for image in image_rows(rooms.catalogue):
        if before is not None and (image.created_ns is None or image.created_ns >= before):
            continue
        if since is not None and (image.created_ns is None or image.created_ns <= since):
            continue
        if labels and not has_labels(image.labels or {}, labels):
            continue
        tags = [familiar_text(name) for name in image.tags]
        digests = [familiar_text(name) for name in image.digests]
        if patterns:
            tags = [name for name in tags if _fits(patterns, name, name.rpartition(":")[0])]
            digests = [name for name in digests if _fits(patterns, name, name.partition("@")[0])]
        if not tags and not digests:
            if patterns or dangling is False:
                continue
            if not everything or dangling:
                if hidden is None:
                    hidden = {image.text for image in rooms.images.parents() | rooms.documents.members()}
                if image.id in hidden:
                    continue
        elif dangling and tags:
            continue
        rows.append(imageviews.summary(image, version, tags=tags, digests=digests))
    if shared_size:
        fill_shared_sizes(rooms, rows)
    if with_manifests:
        _fill_manifests(rooms, rows, version)
    return rows


def _fits(patterns: Iterable[re.Pattern[str]], *texts: str) -> bool:
    return any(one.fullmatch(text) for one in patterns for text in texts)


def _fill_manifests(rooms: Rooms, rows: Iterable[dict[str, Any]], version: Version) -> None:
    users = platforms.containers_by_image(rooms)
    for row in rows:
        record = rooms.images.get(Digest(row["Id"]))
        document = rooms.documents.of_image(record.id)
        row["Manifests"] = platforms.manifest_rows(rooms, record, document, users)
        if version >= (1, 48) and (described := platforms.descriptor_of(rooms, record, document)):
            row["Descriptor"] = described


def fill_shared_sizes(rooms: Rooms, rows: Iterable[dict[str, Any]]) -> None:
    """SharedSize of `rows`: bytes of the layers that other images have too."""
    sizes = shared_sizes(rooms.catalogue)
    for row in rows:
        row["SharedSize"] = sizes.get(row["Id"], 0)


def layer_sizes(rooms: Rooms, among: Iterable[Digest] | None = None) -> dict[Digest, int]:
    """Bytes on disk of the given layers, or of all."""
    if among is not None:
        return {
            layer: rooms.layers.record(layer).disk_size for layer in set(among) if rooms.layers.has(layer)
        }
    rows = rooms.catalogue.query("SELECT diff_id, disk_size FROM layers")
    return {Digest(row["diff_id"]): row["disk_size"] for row in rows}


def _created(rooms: Rooms, name: str) -> int:
    return rooms.images.get(rooms.images.resolve(name)).created_ns or 0


def _earliest(rooms: Rooms, filters: Filters) -> int | None:
    moments = [_created(rooms, name) for name in filters.get("before", ())]
    moments += [parse_timestamp(text, time.time_ns()) for text in filters.get("until", ())]
    return min(moments, default=None)


def inspect_image(
    rooms: Rooms,
    name: str,
    version: Version,
    *,
    platform: Platform | None = None,
    with_manifests: bool = False,
) -> dict[str, Any]:
    """One image. platform: which of a name's. Raises NotFound, InvalidInput, EngineFailure (damaged)."""
    record = platforms.image_for(rooms, name, platform)
    document = platforms.document_named(rooms, name) if platform is None else None
    shown = imageviews.inspect(record, version, platforms.descriptor_of(rooms, record, document))
    if with_manifests:
        users = platforms.containers_by_image(rooms)
        shown["Manifests"] = platforms.manifest_rows(rooms, record, document, users)
    return shown


def image_history(rooms: Rooms, name: str, platform: Platform | None = None) -> list[dict[str, Any]]:
    """Rows, newest first; the image itself and the parents that are here are named. Raises NotFound, InvalidInput."""
    record: ImageRecord | None = platforms.image_for(rooms, name, platform)
    assert record is not None
    record.check_is_image(name)
    rows = imageviews.history(record.config.history, record.layers, layer_sizes(rooms, record.layers))
    position = 0
    while record is not None and position < len(rows):
        rows[position]["Id"], rows[position]["Tags"] = record.id.text, record.repo_tags or None
        record = _parent(rooms, record)
        if record is not None:
            # A parent stands where its own history ends: a build adds several entries to its base's at once.
            ends = len(rows) - len(record.config.history) if record.config.history else 0
            position = max(position + 1, ends)
    return rows


def _parent(rooms: Rooms, record: ImageRecord) -> ImageRecord | None:
    if record.parent is None:
        return None
    try:
        return rooms.images.get(record.parent)
    except NotFound:
        return None
