"""Compression chosen at a push: which bytes go, in which manifest, and that the image stays the same."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from registry.conftest import Engine, engine_below, need, noise, until

from ketch_testing.hostile import DOCKER_MANIFEST, HostileRegistry, hostile_registry
from ketch_testing.rooms import image_of, layer_of, tar_of
from ketch_wire.faults import InvalidInput
from ketchd.engine.save import saving
from ketchd.model.compression import Compression
from ketchd.model.digest import Digest
from ketchd.model.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST

BASE, TOP = {"a": b"base" * 2000}, {"b": b"top" * 2000}
ZSTD = Compression("zstd", strict=True)
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


@pytest.fixture
async def target() -> AsyncIterator[HostileRegistry]:
    """Another registry, empty."""
    async with hostile_registry() as made:
        yield made


def document_of(registry: HostileRegistry, repository: str, tag: str = "1") -> dict[str, Any]:
    """The manifest as pushed; its media type is the one it was pushed under."""
    content, media_type = registry.manifests[repository][tag]
    document: dict[str, Any] = json.loads(content)
    assert document["mediaType"] == media_type
    return document


async def test_a_pulled_image_goes_out_as_zstd(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry, tmp_path: Path
) -> None:
    """In an OCI manifest, which is said, under the same image ID; another engine has the same layers of it."""
    image = hostile.put_image("me/app", "1", [tar_of(BASE), tar_of(TOP)])
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    name = f"{target.host}/copy:1"
    engine.tag(image_id, name)

    await engine.push(name, compression=ZSTD)

    document = document_of(target, "copy")
    assert document["mediaType"] == OCI_MANIFEST
    assert document["config"]["digest"] == str(image_id)
    assert document["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    for layer in document["layers"]:
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
        content = target.blobs["copy"][layer["digest"]]
        assert content.startswith(MAGIC["zstd"]) and len(content) == layer["size"]
    assert engine.statuses()[-3:-1] == [
        "1: an OCI manifest, since Docker's schema 2 has no zstd layers",
        f"1: the layers' compression differs: another digest than {Digest(image.digest).short}, "
        f"the same image ID {image_id.short}",
    ]
    assert engine.rooms.leases.held() == set() and engine.staged() == []
    async with engine_below(tmp_path / "other") as other:
        assert await other.pull(name) == image_id
        assert other.rooms.images.get(image_id).layers == engine.rooms.images.get(image_id).layers


async def test_known_bytes_go_as_they_are_unless_asked(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """A default of the daemon, or a level, is for layers that are made here: the pulled ones go byte for byte."""
    image = hostile.put_image("me/app", "1", [tar_of(BASE)])
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    engine.rooms.compression = Compression("zstd", 5)
    for number, asked in enumerate((None, Compression("gzip", 9), Compression("zstd"))):
        engine.tag(image_id, f"{target.host}/copy{number}:1")
        await engine.push(f"{target.host}/copy{number}:1", compression=asked)
        assert target.manifests[f"copy{number}"]["1"] == (image.manifest, DOCKER_MANIFEST)

    layer = await layer_of(engine.rooms, TOP)
    await image_of(engine.rooms, [layer], f"{target.host}/built:1")
    await engine.push(f"{target.host}/built:1")
    assert document_of(target, "built")["mediaType"] == OCI_MANIFEST


async def test_a_format_that_is_there_is_not_made_again(engine: Engine, target: HostileRegistry) -> None:
    """The form of each format is kept: another push of it sends nothing, and the first one's manifest comes back."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    await engine.push(name)
    first = target.manifests["app"]["1"]
    await engine.push(name, compression=ZSTD)
    zstd = target.manifests["app"]["1"]
    assert zstd != first
    target.seen.clear()

    await engine.push(name, compression=Compression("gzip", strict=True))
    assert document_of(target, "app")["layers"][0]["digest"] == json.loads(first[0])["layers"][0]["digest"]
    await engine.push(name, compression=ZSTD)
    assert document_of(target, "app")["layers"] == json.loads(zstd[0])["layers"]
    assert target.asked("POST", "/uploads/") == []


async def test_force_makes_every_layer_anew(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """Also in the same format, at the level that was asked for; Docker's manifest stays Docker's."""
    hostile.put_image("me/app", "1", [tar_of(BASE)])
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    name = f"{target.host}/copy:1"
    engine.tag(image_id, name)

    await engine.push(name, compression=Compression("gzip", 1, strict=True, anew=True))

    shown = Digest.of(tar_of(BASE)).short
    assert engine.statuses(shown) == ["Preparing", "Compressing", "Pushing", "Pushed"]
    document = document_of(target, "copy")
    assert document["mediaType"] == DOCKER_MANIFEST and document["config"]["digest"] == str(image_id)
    (layer,) = document["layers"]
    assert layer["digest"] not in hostile.blobs["me/app"]
    assert target.blobs["copy"][layer["digest"]].startswith(MAGIC["gzip"])
    assert await engine.pull(f"{target.host}/copy:1") == image_id


async def test_an_oci_manifest_stays_one(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """With what it says of itself."""
    tar = tar_of(BASE)
    hostile.put_image("me/app", "1", [tar], mediaType=OCI_MANIFEST, annotations={"org.example": "kept"})
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    engine.tag(image_id, f"{target.host}/copy:1")

    await engine.push(f"{target.host}/copy:1", compression=Compression("uncompressed", strict=True))

    document = document_of(target, "copy")
    assert document["mediaType"] == OCI_MANIFEST and document["annotations"] == {"org.example": "kept"}
    (layer,) = document["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
    assert layer["digest"] == str(Digest.of(tar)) and target.blobs["copy"][layer["digest"]] == tar


async def test_an_artifact_is_not_compressed(engine: Engine, hostile: HostileRegistry) -> None:
    """It would be another one."""
    config = {
        "mediaType": "application/vnd.example.thing",
        "size": 2,
        "digest": hostile.put_blob("art", b"{}"),
    }
    hostile.put_image("art", "1", [], mediaType=OCI_MANIFEST, config=config)
    name = f"{hostile.host}/art:1"
    await engine.pull(name)
    with pytest.raises(InvalidInput, match="is an artifact: it is pushed as it is"):
        await engine.push(name, compression=ZSTD)


@pytest.mark.parametrize("format", ["gzip", "zstd", "uncompressed"])
async def test_a_real_registry_and_skopeo(engine: Engine, real: str, tmp_path: Path, format: str) -> None:
    """Debian's registry takes it, skopeo reads and converts it, and what comes back is the same image."""
    need("skopeo")
    layers = (await layer_of(engine.rooms, BASE), await layer_of(engine.rooms, TOP))
    name = f"{real}/app:1"
    image_id = await image_of(engine.rooms, list(layers), name, config={"Cmd": ["/b"]})
    await engine.push(name, compression=Compression(format, strict=True))
    (digest,) = [message["aux"]["Digest"] for message in engine.said if "aux" in message]

    shown = json.loads(await _skopeo("inspect", "--tls-verify=false", f"docker://{name}"))
    assert shown["Digest"] == digest
    raw = json.loads(await _skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}"))
    assert raw["config"]["digest"] == str(image_id)
    assert {layer["mediaType"].rpartition(".")[2] for layer in raw["layers"]} == {
        "zstd": {"tar+zstd"}, "gzip": {"gzip"}, "uncompressed": {"tar"}
    }[format]  # fmt: skip
    await _skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path / 'copied'}")
    for one in raw["layers"]:
        assert (tmp_path / "copied" / one["digest"].removeprefix("sha256:")).stat().st_size == one["size"]
    async with engine_below(tmp_path / "other") as other:
        assert await other.pull(name) == image_id
        assert other.rooms.images.get(image_id).layers == layers


async def _skopeo(*words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "skopeo", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_a_push_that_is_cancelled_while_it_compresses(
    engine: Engine, target: HostileRegistry, tmp_path: Path
) -> None:
    """Ctrl-C ends the compression as well: nothing stays of it, and the next push is right."""
    layer = await layer_of(engine.rooms, {"big": noise(20_000_000)})
    name = f"{target.host}/app:1"
    image_id = await image_of(engine.rooms, [layer], name)
    pushing = asyncio.create_task(engine.push(name, compression=Compression("zstd", 20, strict=True)))
    await until(lambda: "Compressing" in engine.statuses(layer.short))
    pushing.cancel()
    await asyncio.wait([pushing])

    assert pushing.cancelled() and engine.staged() == [] and engine.rooms.leases.held() == set()
    assert engine.rooms.blobs.of_layer(layer) == [] and target.manifests == {}
    await engine.push(name)
    assert document_of(target, "app")["config"]["digest"] == str(image_id)


async def test_what_an_oci_manifest_says_of_its_parts_is_kept(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry, tmp_path: Path
) -> None:
    """Its subject and type too, but not what is true of the old bytes alone; in an archive as well."""
    image = hostile.put_image("me/app", "0", [tar_of(BASE), tar_of(TOP)])
    parts = json.loads(image.manifest)
    rows = [
        {
            "mediaType": f"{OCI_LAYER}+gzip", "digest": row["digest"], "size": row["size"],
            "annotations": {
                "org.example.layer": str(number), "io.github.containers.zstd-chunked.manifest-position": "1:2:3:4",
                "containerd.io/snapshot/stargz/toc.digest": "sha256:0",
            },
        }
        for number, row in enumerate(parts["layers"])
    ]  # fmt: skip
    plain = tar_of(TOP)
    rows[1] |= {"mediaType": OCI_LAYER, "digest": hostile.put_blob("me/app", plain), "size": len(plain)}
    document = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example",
        "config": {**parts["config"], "mediaType": OCI_CONFIG, "annotations": {"org.example.config": "yes"}},
        "layers": rows, "subject": {"mediaType": OCI_MANIFEST, "digest": image.digest, "size": len(image.manifest)},
        "annotations": {"org.example": "kept"},
    }  # fmt: skip
    hostile.put_manifest("me/app", "1", json.dumps(document).encode(), OCI_MANIFEST)
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    engine.tag(image_id, f"{target.host}/copy:1")

    await engine.push(f"{target.host}/copy:1", compression=Compression("uncompressed", strict=True))

    made = document_of(target, "copy")
    for key in ("artifactType", "subject", "annotations", "config"):
        assert made[key] == document[key], key
    first, second = made["layers"]
    assert first["digest"] != rows[0]["digest"] and first["annotations"] == {"org.example.layer": "0"}
    assert second == rows[1]
    async with saving(engine.rooms, [f"{hostile.host}/me/app:1"]) as archive:
        content = b"".join([piece async for piece in archive])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:

        def read(name: str) -> Any:
            found = tar.extractfile(name)
            assert found is not None
            return json.load(found)

        (entry,) = read("index.json")["manifests"]
        saved = read(f"blobs/sha256/{entry['digest'][7:]}")
    assert saved["annotations"] == document["annotations"] and saved["subject"] == document["subject"]
    assert [row["annotations"]["org.example.layer"] for row in saved["layers"]] == ["0", "1"]


async def test_a_layer_that_came_twice_in_two_forms_goes_as_it_came(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """The manifest that was pulled names both."""
    tar = tar_of(BASE)
    image = hostile.put_image("me/app", "0", [tar, tar])
    document = json.loads(image.manifest)
    other = gzip.compress(tar, 1, mtime=1)
    document["layers"][1] |= {"digest": hostile.put_blob("me/app", other), "size": len(other)}
    content = json.dumps(document).encode()
    hostile.put_manifest("me/app", "1", content, DOCKER_MANIFEST)
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    engine.tag(image_id, f"{target.host}/copy:1")

    await engine.push(f"{target.host}/copy:1")

    assert target.manifests["copy"]["1"] == (content, DOCKER_MANIFEST)
    assert {row["digest"] for row in document["layers"]} <= set(target.blobs["copy"])
    await engine.push(f"{target.host}/copy:1", compression=ZSTD)
    first, second = document_of(target, "copy")["layers"]
    assert first == second
