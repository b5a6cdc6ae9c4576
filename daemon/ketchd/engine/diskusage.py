"""What everything takes on the disk: `system df`.

Content is summed from the catalogue, which knows each file's size; what containers, volumes and cache mounts write is walked.
LayersSize is every layer, blob and partial download but what the build cache alone keeps, which are its rows': the two together
are what `layers/`, `blobs/` and `partial/` hold. Source: Engine API 1.50, SystemDataUsage.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.containers import show
from ketchd.containers.record import ContainerRecord
from ketchd.engine.buildcache import cache_usage
from ketchd.engine.imagelist import fill_shared_sizes, list_images
from ketchd.engine.remove import tree_size
from ketchd.engine.rooms import Rooms
from ketchd.registry.partial import leftovers

NEWEST = (1, 50)


async def disk_usage(rooms: Rooms, version: tuple[int, int] = NEWEST) -> dict[str, Any]:
    """{LayersSize, Images, Containers, Volumes, BuildCache} as a client of that API version sees them."""
    return {
        "LayersSize": content_size(rooms),
        "Images": _images(rooms, version),
        "Containers": await _containers(rooms),
        "Volumes": await _volumes(rooms),
        "BuildCache": cache_usage(rooms, version),
    }


def content_size(rooms: Rooms) -> int:
    """Bytes of layers, blobs and what has arrived of downloads, without the layers (and their blobs) that only the build cache
    keeps."""
    query = rooms.catalogue.query
    stored = query(
        "SELECT (SELECT coalesce(sum(disk_size), 0) FROM layers) + (SELECT coalesce(sum(size), 0) FROM blobs)"
    )
    used = {layer for box in rooms.supervisor for layer in box.record.layers}
    private = [
        row
        for row in query(
            "SELECT diff_id, disk_size FROM layers WHERE diff_id IN (SELECT diff_id FROM build_cache) "
            "AND diff_id NOT IN (SELECT diff_id FROM image_layers)"
        )
        if row["diff_id"] not in used
    ]
    partial = sum(one.size for one in leftovers(rooms.data_root / "partial"))
    return int(stored[0][0]) + partial - sum(int(row["disk_size"]) for row in private)


def _images(rooms: Rooms, version: tuple[int, int]) -> list[dict[str, Any]]:
    rows = list_images(rooms, {}, version)
    fill_shared_sizes(rooms, rows)
    users = Counter(box.record.image_id for box in rooms.supervisor)
    for row in rows:
        row["Containers"] = users[row["Id"]]
    return rows


async def _containers(rooms: Rooms) -> list[dict[str, Any]]:
    now, networks, rows = time.time_ns(), rooms.networks.ids(), []
    for box in sorted(rooms.supervisor, key=lambda one: one.record.created_ns, reverse=True):
        record = box.record
        row = show.summary(record, now_ns=now, network_ids=networks, image_shown=_image_shown(rooms, record))
        written = await asyncio.to_thread(tree_size, rooms.container_dir(record.id) / "upper")
        sizes = [rooms.layers.record(layer).disk_size for layer in record.diff_ids if rooms.layers.has(layer)]
        rows.append({**row, "SizeRw": written, "SizeRootFs": written + sum(sizes)})
    return rows


def _image_shown(rooms: Rooms, record: ContainerRecord) -> str:
    """The name it was created by, as long as that still means its image."""
    try:
        still = rooms.images.resolve(record.image_name).text == record.image_id
    except (NotFound, InvalidInput):
        still = False
    return record.image_name if still else record.image_id


async def _volumes(rooms: Rooms) -> list[dict[str, Any]]:
    rows = []
    for volume in rooms.volumes.list():
        usage = {
            "RefCount": len(rooms.volumes.in_use(volume.name)),
            "Size": await rooms.volumes.size(volume.name),
        }
        rows.append({**volume.show(), "UsageData": usage})
    return rows
