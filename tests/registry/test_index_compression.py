"""Indexes pushed in another compression: every platform's image in the new form and with its ID, the rest as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from registry.conftest import Engine, engine_below, need, noise
from registry.test_compression import MAGIC, ZSTD
from registry.test_platforms import (
    AMD,
    ARM,
    NEW,
    OCI_MANIFEST,
    garbage,
    pull_whole,
    push_whole,
    put_document,
    put_whole,
)  # fmt: skip
from registry.test_pull import put_index

from ketch_testing.hostile import DOCKER_MANIFEST, HostileRegistry, digest_of, hostile_registry, on, refuse
from ketch_testing.rooms import tar_of
from ketch_wire.faults import EngineFailure, NotFound
from ketchd.engine.fsck import fsck
from ketchd.engine.imagelist import inspect_image
from ketchd.engine.images import delete_image, tag_image
from ketchd.engine.platforms import image_for
from ketchd.model.compression import Compression
from ketchd.model.digest import Digest
from ketchd.model.reference import Reference

FORCED = Compression("zstd", 5, strict=True, anew=True)
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


@pytest.fixture
async def target() -> AsyncIterator[HostileRegistry]:
    """Another registry, empty."""
    async with hostile_registry() as made:
        yield made


async def copy_of(engine: Engine, source: str, name: str) -> str:
    """Everything of `source` under another name."""
    await pull_whole(engine, source)
    tag_image(engine.rooms, source, Reference.parse(name))
    return name


def at(registry: HostileRegistry, repository: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(registry.manifests[repository][name][0])
    return found


def unchanged(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("mediaType", "digest", "size")}


async def test_every_image_of_an_index_goes_as_zstd(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry, tmp_path: Path
) -> None:
    """Windows' too, which is not unpacked here, and those of nested indexes; another engine has the same images of it."""
    old = put_whole(hostile, "multi", "1")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    rooms = engine.rooms

    await push_whole(engine, name, everything=True, compression=ZSTD)

    before, after = at(hostile, "multi", "1"), at(target, "copy", "1")
    amd, arm, attestation, windows, nested, stranger = after["manifests"]
    assert {**after, "manifests": []} == {**before, "manifests": []}
    assert [unchanged(entry) for entry in (amd, arm, windows, nested)] == [
        unchanged(before["manifests"][position]) for position in (0, 1, 3, 4)
    ]
    assert stranger == before["manifests"][5]
    assert attestation["digest"] == before["manifests"][2]["digest"]
    assert attestation["annotations"]["vnd.docker.reference.digest"] == amd["digest"]
    inner = (at(hostile, "multi", before["manifests"][4]["digest"]), at(target, "copy", nested["digest"]))
    pairs = [(before["manifests"][position], after["manifests"][position]) for position in (0, 1, 3)]
    for was, entry in (*pairs, (inner[0]["manifests"][0], inner[1]["manifests"][0])):
        content, media_type = target.manifests["copy"][entry["digest"]]
        assert (entry["mediaType"], entry["size"], media_type) == (OCI_MANIFEST, len(content), OCI_MANIFEST)
        image = json.loads(content)
        assert image["config"]["digest"] == at(hostile, "multi", was["digest"])["config"]["digest"]
        for layer in image["layers"]:
            assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
            blob = target.blobs["copy"][layer["digest"]]
            assert blob.startswith(MAGIC["zstd"]) and len(blob) == layer["size"]
    (aux,) = [message["aux"] for message in engine.said if "aux" in message]
    content = target.manifests["copy"]["1"][0]
    assert aux == {"Tag": "1", "Digest": digest_of(content), "Size": len(content)} and aux["Digest"] != old
    said = engine.statuses()
    assert said.count("1: its attestations describe the images as they were, in the old compression") == 1
    assert "1, linux/arm64: an OCI manifest, since Docker's schema 2 has no zstd layers" in said
    assert engine.rooms.leases.held() == set() and engine.staged() == [] and garbage(engine) == []
    assert await fsck(rooms, engine.send) == []

    shown = inspect_image(rooms, f"{target.host}/copy@{aux['Digest']}", NEW, with_manifests=True)["Manifests"]
    assert [row["Available"] for row in shown] == [True, True, True, False, True, True]
    assert inspect_image(rooms, name, NEW)["Descriptor"]["digest"] == old  # here the tag means what it meant
    async with engine_below(tmp_path / "other") as other:
        await pull_whole(other, name)
        assert {image.id for image in other.rooms.images.all()} == {image.id for image in rooms.images.all()}
        assert inspect_image(other.rooms, name, NEW)["Descriptor"]["digest"] == aux["Digest"]


@pytest.mark.parametrize("how", [ZSTD, FORCED], ids=["format", "forced"])
async def test_a_second_push_sends_nothing(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry, how: Compression
) -> None:
    """The forms that were made are known, or come out the same; also after the pull of what was pushed."""
    put_whole(hostile, "multi", "1")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    await push_whole(engine, name, everything=True, compression=how)
    first = target.manifests["copy"]["1"]
    target.seen.clear()

    await push_whole(engine, name, everything=True, compression=how)
    assert target.manifests["copy"]["1"] == first and target.asked("POST", "/uploads/") == []
    seen = len(target.seen)
    await engine.pull(name)
    assert [one.method for one in target.seen[seen:]] == ["HEAD"]
    assert inspect_image(engine.rooms, name, NEW)["Descriptor"]["digest"] == digest_of(first[0])
    await push_whole(engine, name, compression=how)
    assert target.manifests["copy"]["1"] == first and target.asked("POST", "/uploads/") == []


@pytest.mark.parametrize("how", [ZSTD, FORCED], ids=["format", "forced"])
async def test_a_layer_of_two_images_is_made_and_sent_once(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry, how: Compression
) -> None:
    """Though the images go at the same time."""
    shared, entries = tar_of({"shared": noise(300_000)}), []
    for architecture in ("amd64", "arm64", "riscv64"):
        image = hostile.put_image(
            "multi", architecture, [shared, tar_of({"own": architecture.encode()})], architecture=architecture
        )
        entries.append(
            {
                "mediaType": DOCKER_MANIFEST, "digest": image.digest, "size": len(image.manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )  # fmt: skip
    put_document(hostile, "multi", "1", {"mediaType": DOCKER_INDEX, "manifests": entries})
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    await push_whole(engine, name, everything=True, compression=how)
    said = engine.statuses(Digest.of(shared).short)
    assert (said.count("Pushed"), said.count("Layer already exists")) == (1, 1)  # of the others in a row, one
    assert said.count("Compressing") == (how is FORCED)
    assert len(target.asked("POST", "/uploads/")) == len(target.blobs["copy"]) == 1 + 3 + 3


async def test_an_index_in_the_asked_form_goes_byte_for_byte(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """gzip of gzip; and what an image was in before, it is in again."""
    put_whole(hostile, "multi", "1")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    for how in (Compression("gzip", strict=True), ZSTD, Compression("gzip", strict=True)):
        await push_whole(engine, name, everything=True, compression=how)
        is_same = target.manifests["copy"]["1"] == hostile.manifests["multi"]["1"]
        assert is_same is (how.format == "gzip")


async def test_what_is_missing_is_named(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """A platform that was never pulled, a blob that is gone; without being asked for all, one image goes instead."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8", "windows/amd64")
    name = f"{target.host}/part:1"
    await engine.pull(f"{hostile.host}/multi:1", platform="linux/amd64")
    tag_image(engine.rooms, f"{hostile.host}/multi:1", Reference.parse(name))
    with pytest.raises(
        NotFound, match=r"here \(manifest sha256:\w+ of linux/arm64/v8, manifest sha256:\w+ of windows/amd64"
    ):
        await push_whole(engine, name, everything=True, compression=ZSTD)
    await push_whole(engine, name, compression=ZSTD)
    assert at(target, "part", "1")["config"]["digest"] == str(image_for(engine.rooms, name, AMD).id)
    instead, _ = [message["aux"] for message in engine.said if "aux" in message]
    assert instead["manifestPushedInsteadOfIndex"]

    await pull_whole(engine, f"{hostile.host}/multi:1")
    (layer,) = at(hostile, "multi", "p2")["layers"]
    engine.rooms.blobs.remove(Digest(layer["digest"]))
    with pytest.raises(NotFound, match=rf"not all of it is here \(blob {layer['digest']} of windows/amd64\)"):
        await push_whole(engine, f"{target.host}/part:1", everything=True, compression=ZSTD)


async def test_layers_without_their_blobs_will_do(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """The disk's pressure takes compressed forms first; the layer is compressed anew, in gzip as well."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    rooms = engine.rooms
    for image in rooms.images.all():
        for form in rooms.blobs.of_layer(image.layers[0]):
            rooms.blobs.drop(form.digest)
    await push_whole(engine, name, everything=True, compression=ZSTD)
    assert digest_of(target.manifests["copy"]["1"][0]) != digest_of(hostile.manifests["multi"]["1"][0])
    assert {entry["platform"]["architecture"] for entry in at(target, "copy", "1")["manifests"]} == {
        "amd64",
        "arm64",
    }


async def test_one_platform_goes_alone(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """Asked for by --platform, in the form that was asked for too."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    await push_whole(engine, name, platform=ARM, compression=ZSTD)
    document = at(target, "copy", "1")
    assert document["config"]["digest"] == str(image_for(engine.rooms, name, ARM).id)
    assert {layer["mediaType"].rpartition("+")[2] for layer in document["layers"]} == {"zstd"}


async def test_a_daemons_setting_is_for_indexes_too(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """One that counts no other form; a mere default leaves known forms as they are."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    engine.rooms.compression = Compression("zstd")
    await push_whole(engine, name)
    assert target.manifests["copy"]["1"] == hostile.manifests["multi"]["1"]
    engine.rooms.compression = ZSTD
    await push_whole(engine, name)
    assert {entry["mediaType"] for entry in at(target, "copy", "1")["manifests"]} == {OCI_MANIFEST}


async def test_a_refused_image_leaves_the_tag_alone(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """The index comes last: what the registry had under the tag is there until all of the new one is."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    await push_whole(engine, name)
    kept = target.manifests["copy"]["1"]
    target.tricks.append(
        on("PUT", "/manifests/1", lambda _: refuse(400, "MANIFEST_INVALID", "no such index"))
    )
    with pytest.raises(EngineFailure, match="no such index"):
        await push_whole(engine, name, everything=True, compression=ZSTD)
    assert target.manifests["copy"]["1"] == kept
    assert engine.rooms.leases.held() == set() and engine.staged() == []
    target.tricks.clear()
    await push_whole(engine, name, everything=True, compression=ZSTD)
    assert target.manifests["copy"]["1"] != kept


async def test_nothing_stays_of_what_was_made(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """When the last name goes: no blob, no document, and no word of forms of layers that are not here."""
    put_whole(hostile, "multi", "1")
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{target.host}/copy:1")
    await push_whole(engine, name, everything=True, compression=ZSTD)
    rooms = engine.rooms
    await delete_image(rooms, f"{hostile.host}/multi:1")
    await delete_image(rooms, name)
    assert rooms.images.count() == 0
    await rooms.garbage.sweep()
    assert list((rooms.data_root / "blobs/sha256").iterdir()) == []
    for table in ("documents", "layer_blobs", "layers"):
        assert rooms.catalogue.query(f"SELECT * FROM {table}") == []


# -- a real registry


def put_buildx(hostile: HostileRegistry, index_type: str, manifest_type: str) -> dict[str, str]:
    """An index of two platforms and of an attestation, none of whose layers are shared; ID of each platform's image."""
    entries: list[dict[str, Any]] = []
    ids = {}
    for architecture in ("amd64", "arm64"):
        tars = [
            tar_of({"platform": architecture.encode(), "noise": noise(50_000)}),
            tar_of({"text": architecture.encode() * 9000}),
        ]
        image = hostile.put_image(
            "multi", architecture, tars, architecture=architecture, mediaType=manifest_type
        )
        ids[architecture] = json.loads(image.manifest)["config"]["digest"]
        entries.append(
            {
                "mediaType": manifest_type, "digest": image.digest, "size": len(image.manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )  # fmt: skip
    statement = hostile.put_blob("multi", b'{"_type":"https://in-toto.io/Statement/v0.1"}')
    config = hostile.put_blob("multi", b'{"architecture":"unknown","os":"unknown"}')
    attestation = put_document(
        hostile, "multi", "attestation",
        {
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 41},
            "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": statement, "size": 45}],
        },
    )  # fmt: skip
    attestation["platform"] = {"os": "unknown", "architecture": "unknown"}
    attestation["annotations"] = {
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": entries[1]["digest"],
    }  # fmt: skip
    document = {"schemaVersion": 2, "mediaType": index_type, "manifests": [*entries, attestation]}
    hostile.put_manifest("multi", "1", json.dumps(document, indent=2).encode(), index_type)
    return ids


@pytest.mark.parametrize("families", ["oci", "docker"])
@pytest.mark.parametrize("format", ["zstd", "uncompressed"])
async def test_a_real_registry_and_skopeo(
    engine: Engine, hostile: HostileRegistry, real: str, tmp_path: Path, families: str, format: str
) -> None:
    """Debian's registry takes it, skopeo reads it and copies all of it, and what comes back is the same images."""
    need("skopeo")
    kinds = ("application/vnd.oci.image.index.v1+json", OCI_MANIFEST)
    ids = put_buildx(hostile, *(kinds if families == "oci" else (DOCKER_INDEX, DOCKER_MANIFEST)))
    name = await copy_of(engine, f"{hostile.host}/multi:1", f"{real}/app:1")
    await push_whole(engine, name, everything=True, compression=Compression(format, strict=True))
    (aux,) = [message["aux"] for message in engine.said if "aux" in message]

    raw = await _skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    assert digest_of(raw) == aux["Digest"]
    entries = json.loads(raw)["manifests"]
    assert entries[2]["annotations"]["vnd.docker.reference.digest"] == entries[1]["digest"]
    suffix = {"zstd": "tar+zstd", "uncompressed": "tar"}[format]
    sizes = {}
    for entry, (architecture, image_id) in zip(entries, ids.items(), strict=False):
        assert entry["platform"]["architecture"] == architecture
        manifest = await _skopeo(
            "inspect", "--raw", "--tls-verify=false", f"docker://{real}/app@{entry['digest']}"
        )
        assert (digest_of(manifest), len(manifest)) == (entry["digest"], entry["size"])
        assert json.loads(manifest)["config"]["digest"] == image_id
        assert json.loads(manifest)["mediaType"] == entry["mediaType"]
        for layer in json.loads(manifest)["layers"]:
            assert layer["mediaType"].rpartition(".")[2] == suffix
            sizes[layer["digest"]] = layer["size"]
    copied = tmp_path / "copied"
    await _skopeo("copy", "--multi-arch=all", "--src-tls-verify=false", f"docker://{name}", f"dir:{copied}")
    assert (copied / "manifest.json").read_bytes() == raw
    assert {one: (copied / one.removeprefix("sha256:")).stat().st_size for one in sizes} == sizes
    async with engine_below(tmp_path / "other") as other:
        await pull_whole(other, name)
        found = {image.architecture: str(image.id) for image in other.rooms.images.all()}
        assert found == ids


async def _skopeo(*words: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        "skopeo", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output
