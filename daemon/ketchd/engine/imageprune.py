"""The prune journey: images that nobody uses go, and what journeys that failed have left in the store. Source: Engine API 1.50, ImagePrune."""

from __future__ import annotations

import time

from ketch_wire.faults import Fault, InvalidInput
from ketchd.engine.imagelist import Filters, check_keys, filter_bool, has_labels
from ketchd.engine.images import Report, delete_image, is_leased
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.times import parse_timestamp

GARBAGE_AGE_NS = 600 * 1_000_000_000
_PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})


async def prune_images(rooms: Rooms, filters: Filters) -> tuple[Report, int]:
    """Remove the images that no container uses and nothing names (`dangling=false`: named ones too): (report, bytes won back).

    What journeys that failed have left in the store goes too, when nobody needed it for a while. Raises InvalidInput. An
    image that cannot go is left out.
    """
    check_keys(filters, _PRUNE_FILTERS)
    dangling_only = filter_bool(filters, "dangling") is not False
    untils = filters.get("until", ())
    if len(untils) > 1:
        raise InvalidInput("more than one until filter specified")
    until = parse_timestamp(untils[0], time.time_ns()) if untils else None
    before = _stored_bytes(rooms)
    report: Report = []
    for record in rooms.images.all():

        def still(image_id: Digest, wanted: Digest = record.id) -> bool:
            return image_id == wanted and _prunable(rooms, image_id, filters, until, dangling_only)

        if not still(record.id):
            continue
        names = [reference.canonical() for reference in record.references] or [record.id.hex]
        for name in names:
            try:
                report += await delete_image(rooms, name, still=still)
            except Fault:
                continue
    since = time.time_ns() - GARBAGE_AGE_NS
    await rooms.garbage.sweep(unused_since_ns=since)
    for one in rooms.transfers.left_over():
        if one.last_used_ns < since:
            rooms.transfers.forget(one.digest)
    await rooms.trash.settle()
    reclaimed = max(0, before - _stored_bytes(rooms))
    rooms.events.append("image", "prune", "", {"reclaimed": str(reclaimed)})
    return report, reclaimed


def _prunable(
    rooms: Rooms, image_id: Digest, filters: Filters, until: int | None, dangling_only: bool
) -> bool:
    """As it is now: it may have gone with a child, or come to a name or a user."""
    if not rooms.images.has(image_id) or rooms.supervisor.users_of_image(image_id.text):
        return False
    if is_leased(rooms, image_id):
        return False  # a pull, load or build is about to name it, or stands on it
    record = rooms.images.get(image_id)
    if dangling_only and record.tags:
        return False
    if not record.references and (
        rooms.images.children(image_id) or image_id in rooms.documents.members()  # another platform of a name
    ):
        return False
    if until is not None and (record.created_ns is None or record.created_ns > until):
        return False
    labels = record.labels or {}
    unwanted = any(has_labels(labels, [item]) for item in filters.get("label!", ()))
    return not unwanted and has_labels(labels, filters.get("label", ()))


def _stored_bytes(rooms: Rooms) -> int:
    query = rooms.catalogue.query
    layers = query("SELECT coalesce(sum(disk_size), 0) FROM layers")[0][0]
    partial = sum(one.size for one in rooms.transfers.left_over())
    return int(layers) + int(query("SELECT coalesce(sum(size), 0) FROM blobs")[0][0]) + partial
