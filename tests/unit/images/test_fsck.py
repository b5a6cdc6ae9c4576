"""fsck: what is damaged is found, and only that is repaired."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.machine import registry
from ketch_testing.rooms import container_of, image_of, layer_of, tar_of
from ketchd.engine.findings import Finding
from ketchd.engine.fsck import fsck
from ketchd.engine.images import delete_image
from ketchd.engine.pull import pull
from ketchd.engine.push import push
from ketchd.engine.rooms import Rooms
from ketchd.layers.verify import State
from ketchd.model.digest import Digest
from ketchd.model.reference import Reference
from ketchd.registry.tokens import Credentials

ANONYMOUS = Credentials.read({})


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    with registry(Path(tempfile.mkdtemp(prefix="ketch-registry-"))) as found:
        yield found


async def check(rooms: Rooms, *, repair: bool = False) -> list[Finding]:
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    found = await fsck(rooms, send, repair=repair)
    summary = said[-1]["aux"]
    assert (summary["Bad"], summary["Repaired"]) == (len(found), sum(1 for one in found if one.repaired))
    return found


def brief(found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.kind, one.key, one.problem) for one in found]


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


async def send_nothing(*_: Any) -> None:
    return None


async def test_a_sound_store_has_no_findings(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x")
    container_of(rooms, image, "c")
    await rooms.volumes.create("vol")

    assert await check(rooms) == []


@pytest.mark.parametrize("again", [False, True])
async def test_a_layer_that_is_removed_while_it_is_looked_at(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It is no finding, nor is the one that has come in its place."""
    layer = await layer_of(rooms, {"a": b"1"})
    await image_of(rooms, [layer], "x")
    state = rooms.layers.state
    removals = []

    async def remove_and_look(diff_id: Digest) -> State:
        if not removals:
            removals.append(await delete_image(rooms, "x"))
            damaged = await rooms.workers.run(
                "ketchd.layers.verify:verify",
                {
                    "path": str(rooms.layers.path(layer)),
                    "kind": "erofs",
                    "tar_size": 1,
                    "diff_id": str(layer),
                },
            )
            if again:
                await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x")
            found: State = damaged["state"]
            return found
        return await state(diff_id)

    monkeypatch.setattr(rooms.layers, "state", remove_and_look)

    assert await check(rooms, repair=True) == [] and rooms.layers.has(layer) is again


async def test_what_belonged_to_nobody_may_be_stored_meanwhile(rooms: Rooms) -> None:
    """The repair looks again when it has the layer for itself."""
    layer = await layer_of(rooms, {"a": b"1"})
    blob = await rooms.blobs.put(b"content", "text/plain")
    paths = [rooms.layers.path(layer), rooms.blobs.path(blob)]
    with rooms.catalogue.transaction() as connection:
        for table in ("layers", "blobs"):
            connection.execute(f"DELETE FROM {table}")
    for path in paths:
        os.utime(path, (1, 1))
    strays = [path.parent / "0" for path in paths]  # what is looked at first
    for stray in strays:
        stray.write_bytes(b"")
        os.utime(stray, (1, 1))
    said = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)
        if message.get("aux", {}).get("Key") == "blobs/sha256/0":
            await rooms.blobs.put(b"content", "text/plain")
        elif message.get("aux", {}).get("Key") == "layers/sha256/0":
            await layer_of(rooms, {"a": b"1"})
        for path in paths:
            os.utime(path, (1, 1))

    await fsck(rooms, send, repair=True)

    assert rooms.layers.has(layer) and rooms.blobs.has(blob) and all(path.exists() for path in paths)
    assert not any(stray.exists() for stray in strays)


async def with_blob(rooms: Rooms, content: bytes) -> tuple[Digest, Digest]:
    """A layer that came as gzip, and its blob."""
    packed = gzip.compress(tar_of({"a": content}), mtime=0)
    staged = rooms.blobs.stage_path()
    async with rooms.layers.ingest(keep_blob=staged) as ingest:
        await ingest.feed(packed)
        made = await ingest.finish()
    await rooms.blobs.publish(staged, made.blob_digest, made.blob_size, "application/gzip")
    rooms.blobs.relate(made.diff_id, made.blob_digest, "application/gzip", made.blob_size)
    return made.diff_id, made.blob_digest


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
async def test_a_bad_layer_is_made_again_from_its_blob(rooms: Rooms, harm: str) -> None:
    layer, _ = await with_blob(rooms, b"1" * 20_000)
    image = await image_of(rooms, [layer], "x")
    path = rooms.layers.path(layer)
    if harm == "flip":
        flip(path, 6000)
    elif harm == "remove":
        path.unlink()
    else:
        os.truncate(path, 0 if harm == "empty" else 5000)

    (found,) = await check(rooms)
    assert (found.kind, found.key, found.users) == ("layer", str(layer), [f"image {image}"])
    assert (found.repaired == "" and not rooms.layers.has(layer)) or not await rooms.layers.verify(layer)
    (found,) = await check(rooms, repair=True)
    assert found.repaired == "made again from its blob"
    assert await check(rooms) == [] and await rooms.layers.verify(layer)


async def test_a_layers_bad_blob_is_forgotten(rooms: Rooms) -> None:
    layer, blob = await with_blob(rooms, b"1")
    await image_of(rooms, [layer], "x")
    flip(rooms.blobs.path(blob), 20)

    (found,) = await check(rooms, repair=True)
    assert (found.kind, found.problem) == ("blob", "is damaged") and found.repaired.startswith("forgotten")
    assert await check(rooms) == [] and rooms.layers.has(layer)


async def test_without_a_source_it_is_only_told(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    image = await image_of(rooms, [layer], "x")
    flip(rooms.layers.path(layer), 5000)
    flip(rooms.blobs.path(image), 10)

    found = await check(rooms, repair=True)
    assert brief(found) == [("layer", str(layer), "is damaged"), ("blob", str(image), "is damaged")]
    assert all(one.reason and not one.repaired for one in found)
    assert rooms.layers.has(layer), "what is bad is better than nothing"


async def test_everything_bad_is_fetched_and_nothing_else(rooms: Rooms, host: str) -> None:
    layers = [await layer_of(rooms, {"a": b"1" * 9000}), await layer_of(rooms, {"b": b"2"})]
    name = Reference.parse(f"{host}/me/x:1")
    await image_of(rooms, layers, f"{host}/me/x:1")
    await push(rooms, name, ANONYMOUS, send_nothing)
    image = await pull(rooms, name, ANONYMOUS, send_nothing)
    manifest = rooms.images.manifest_of(image)
    assert manifest is not None
    forms = rooms.blobs.of_layer(layers[0])
    flip(rooms.layers.path(layers[0]), 5000)
    for digest in (image, manifest[0], *(form.digest for form in forms if rooms.blobs.has(form.digest))):
        flip(rooms.blobs.path(digest), 3)
    untouched = rooms.layers.path(layers[1]).stat().st_ino

    found = await check(rooms, repair=True)
    assert {one.key for one in found} >= {str(layers[0]), str(image), str(manifest[0])}
    assert all(one.repaired.startswith(f"fetched from {host}/me/x") for one in found), [
        one.show() for one in found
    ]
    assert await check(rooms) == []
    assert rooms.layers.path(layers[1]).stat().st_ino == untouched


async def test_what_belongs_to_nothing_is_removed_when_it_is_old(rooms: Rooms) -> None:
    old, young = rooms.data_root / "blobs/sha256/aa", rooms.data_root / "layers/sha256/bb"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))

    assert brief(await check(rooms, repair=True)) == [("file", "blobs/sha256/aa", "belongs to nothing")]
    assert not old.exists() and young.exists()


async def test_users_data_is_told_of_and_left_alone(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x")
    box = container_of(rooms, image, "c")
    shutil.rmtree(rooms.container_dir(box.record.id))
    volume = await rooms.volumes.create("vol")
    shutil.rmtree(volume.mountpoint)

    assert brief(await check(rooms, repair=True)) == [
        ("container", box.record.id, "has no writable layer"), ("volume", "vol", "has no directory"),
    ]  # fmt: skip
