"""system df: the numbers are those of the disk."""

from __future__ import annotations

import os
from pathlib import Path

from ketch_testing.rooms import container_of, image_of, layer_of
from ketchd.engine.diskusage import content_size, disk_usage
from ketchd.engine.images import delete_image
from ketchd.engine.rooms import Rooms


def on_disk(path: Path) -> int:
    """Blocks of layers, bytes of blobs."""
    layers = sum(file.stat().st_blocks * 512 for file in (path / "layers/sha256").iterdir())
    return layers + sum(file.stat().st_size for file in (path / "blobs/sha256").iterdir())


def cached(rooms: Rooms, layer: object) -> None:
    with rooms.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO build_cache (key, kind, description, result, diff_id, created_ns, last_used_ns, size) "
            "VALUES (?, 'regular', 'RUN x', '{}', ?, 1, 1, (SELECT disk_size FROM layers WHERE diff_id = ?))",
            (os.urandom(16).hex(), str(layer), str(layer)),
        )


async def test_content_is_what_the_disk_holds(rooms: Rooms) -> None:
    base, top = await layer_of(rooms, {"a": b"1" * 70_000}), await layer_of(rooms, {"b": b"2"})
    await image_of(rooms, [base], "x")
    await image_of(rooms, [base, top], "y")
    assert content_size(rooms) == on_disk(rooms.data_root)

    private = await layer_of(rooms, {"c": b"3"})
    cached(rooms, private)
    cached(rooms, base)
    shown = await disk_usage(rooms)
    only_cache = sum(row["Size"] for row in shown["BuildCache"] if not row["Shared"])
    assert shown["LayersSize"] + only_cache == on_disk(rooms.data_root)
    await delete_image(rooms, "y")
    assert content_size(rooms) + only_cache == on_disk(rooms.data_root)


async def test_every_part(rooms: Rooms) -> None:
    shared, own = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    image = await image_of(rooms, [shared], "x")
    await image_of(rooms, [shared, own], "y")
    box = container_of(rooms, image, "c")
    (rooms.container_dir(box.record.id) / "upper" / "file").write_bytes(b"x" * 1234)
    volume = await rooms.volumes.create("vol")
    (volume.mountpoint / "file").write_bytes(b"y" * 77)
    box.record.mounts = [
        {"type": "volume", "name": "vol", "destination": "/v", "source": str(volume.mountpoint)}
    ]

    shown = await disk_usage(rooms)
    sizes = {
        row["RepoTags"][0]: (row["Containers"], row["SharedSize"], row["Size"]) for row in shown["Images"]
    }
    base = rooms.layers.record(shared).disk_size
    assert sizes == {
        "x:latest": (1, base, base), "y:latest": (0, base, base + rooms.layers.record(own).disk_size),
    }  # fmt: skip
    (container,) = shown["Containers"]
    assert (container["SizeRw"], container["SizeRootFs"]) == (1234, 1234 + base)
    assert container["Id"] == box.record.id and container["State"] == "exited"
    assert shown["Volumes"][0]["UsageData"] == {"RefCount": 1, "Size": 77}
    assert shown["BuildCache"] == []
