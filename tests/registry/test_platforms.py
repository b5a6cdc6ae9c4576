"""Indexes and artifacts through pull, push, save and load: kept byte for byte, whole or in part, and pushed as they came."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from registry.conftest import Engine, engine_below, noise
from registry.test_pull import put_index

from ketch_testing.hostile import DOCKER_MANIFEST, HostileRegistry, digest_of, on
from ketch_testing.rooms import container_of, tar_of
from ketch_wire.faults import EngineFailure, InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.engine.create import platform_warnings
from ketchd.engine.fsck import fsck
from ketchd.engine.imagelist import image_history, inspect_image, list_images
from ketchd.engine.imageprune import prune_images
from ketchd.engine.images import delete_image, delete_platforms, tag_image
from ketchd.engine.load import load
from ketchd.engine.platforms import image_for
from ketchd.engine.pull import pull
from ketchd.engine.push import push
from ketchd.engine.save import saving
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.tokens import Credentials

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
ARM, AMD = Platform("linux", "arm64"), Platform("linux", "amd64")
NEW = (1, 50)


def put_document(
    hostile: HostileRegistry, repository: str, tag: str, document: dict[str, Any]
) -> dict[str, Any]:
    """A manifest; returns the descriptor of it."""
    content = json.dumps({"schemaVersion": 2, **document}).encode()
    media_type = document.get("mediaType", OCI_MANIFEST)
    digest = hostile.put_manifest(repository, tag, content, media_type)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def put_blob(hostile: HostileRegistry, repository: str, content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": hostile.put_blob(repository, content), "size": len(content)}


def put_artifact(
    hostile: HostileRegistry, repository: str, tag: str, *layers: bytes, **more: Any
) -> dict[str, Any]:
    """A chart, as helm pushes it."""
    return put_document(
        hostile, repository, tag,
        {
            "mediaType": OCI_MANIFEST,
            "config": put_blob(hostile, repository, b'{"name":"chart"}', "application/vnd.cncf.helm.config.v1+json"),
            "layers": [
                put_blob(hostile, repository, layer, "application/vnd.cncf.helm.chart.content.v1.tar+gzip") for layer in layers
            ],
            **more,
        },
    )  # fmt: skip


def put_whole(hostile: HostileRegistry, repository: str, tag: str) -> str:
    """An index as buildx pushes them: two platforms, an attestation of one, Windows, a nested index, and a stranger."""
    entries = []
    for architecture in ("amd64", "arm64"):
        tar = tar_of({"platform": architecture.encode(), "noise": noise(100_000)})
        image = hostile.put_image(repository, architecture, [tar], architecture=architecture)
        shown = {"os": "linux", "architecture": architecture}
        entries.append(
            {
                "mediaType": DOCKER_MANIFEST,
                "digest": image.digest,
                "size": len(image.manifest),
                "platform": shown,
            }
        )
    statement = put_blob(
        hostile, repository, b'{"_type":"https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json"
    )
    config = json.dumps(
        {
            "architecture": "unknown",
            "os": "unknown",
            "rootfs": {"type": "layers", "diff_ids": [statement["digest"]]},
        }
    )
    attestation = put_document(
        hostile, repository, "attestation",
        {"mediaType": OCI_MANIFEST, "config": put_blob(hostile, repository, config.encode(), OCI_CONFIG), "layers": [statement]},
    )  # fmt: skip
    attestation["platform"] = {"os": "unknown", "architecture": "unknown"}
    attestation["annotations"] = {
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": entries[0]["digest"],
    }  # fmt: skip
    windows = hostile.put_image(repository, "windows", [tar_of({"Files/a": b"w"})], os="windows")
    risc = hostile.put_image(repository, "risc", [tar_of({"platform": b"risc"})], architecture="riscv64")
    nested = put_document(
        hostile, repository, "nested",
        {
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": DOCKER_MANIFEST, "digest": risc.digest, "size": len(risc.manifest),
                    "platform": {"os": "linux", "architecture": "riscv64"},
                }
            ],
        },
    )  # fmt: skip
    entries += [
        attestation,
        {
            "mediaType": DOCKER_MANIFEST, "digest": windows.digest, "size": len(windows.manifest),
            "platform": {"os": "windows", "architecture": "amd64", "os.version": "10.0"},
        },
        nested,
        put_blob(hostile, repository, b"anything", "application/vnd.stranger"),
    ]  # fmt: skip
    return str(
        put_document(hostile, repository, tag, {"mediaType": OCI_INDEX, "manifests": entries})["digest"]
    )


async def pull_whole(engine: Engine, name: str) -> Digest:
    engine.said = []
    return await pull(engine.rooms, Reference.parse(name), Credentials(), engine.send, everything=True)


async def push_whole(engine: Engine, name: str, **more: Any) -> None:
    engine.said = []
    await push(engine.rooms, Reference.parse(name), Credentials(), engine.send, **more)


def garbage(engine: Engine) -> list[str]:
    return [item.key for item in engine.rooms.garbage.find()]


# -- indexes


async def test_a_pull_keeps_the_index(engine: Engine, hostile: HostileRegistry) -> None:
    """Of one platform as of all: its digest is what the name has, its bytes are here."""
    digest = put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = f"{hostile.host}/multi:1"

    image_id = await engine.pull(name, platform="linux/amd64")

    shown = inspect_image(engine.rooms, name, NEW, with_manifests=True)
    assert shown["Id"] == str(image_id) and shown["RepoDigests"] == [f"{hostile.host}/multi@{digest}"]
    assert shown["Descriptor"]["digest"] == digest
    assert engine.rooms.blobs.read(Digest(digest)) == hostile.manifests["multi"]["1"][0]
    assert [(row["Available"], row["ImageData"]["Platform"]["architecture"]) for row in shown["Manifests"]] == [
        (True, "amd64"), (False, "arm64"),
    ]  # fmt: skip
    assert garbage(engine) == []


async def test_a_pull_of_everything_that_fails_leaves_no_image(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """What has arrived of the other platforms is for the next pull."""
    image = hostile.put_image("half", "own", [tar_of({"a": b"1"})])
    entries = [
        {"mediaType": DOCKER_MANIFEST, "digest": digest, "size": len(image.manifest), "platform": {"os": "linux", "architecture": name}}
        for digest, name in ((image.digest, "amd64"), (digest_of(b"nowhere"), "arm64"))
    ]  # fmt: skip
    put_document(hostile, "half", "1", {"mediaType": OCI_INDEX, "manifests": entries})

    with pytest.raises(NotFound):
        await pull_whole(engine, f"{hostile.host}/half:1")

    assert engine.rooms.images.all() == []
    assert engine.rooms.catalogue.query("SELECT 1 FROM layers")


async def test_platforms_of_one_name_stand_side_by_side(engine: Engine, hostile: HostileRegistry) -> None:
    """The later pull takes the name, the earlier image stays and is found by its platform; the list has one row."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = f"{hostile.host}/multi:1"
    arm = await engine.pull(name, platform="linux/arm64")
    amd = await engine.pull(name, platform="linux/amd64")
    rooms = engine.rooms

    assert (image_for(rooms, name, ARM).id, image_for(rooms, name, AMD).id) == (arm, amd)
    assert image_for(rooms, name, None).id == amd
    assert inspect_image(rooms, name, NEW, platform=ARM)["Architecture"] == "arm64"
    assert image_history(rooms, name, ARM) == []
    with pytest.raises(NotFound, match=r"does not match the specified platform \(linux/s390x\)"):
        image_for(rooms, name, Platform("linux", "s390x"))
    rows = list_images(rooms, {}, NEW, with_manifests=True)
    assert [row["Id"] for row in rows] == [str(amd)]
    assert [one["Available"] for one in rows[0]["Manifests"]] == [True, True]
    assert list_images(rooms, {"dangling": ["true"]}, NEW) == []
    assert {row["Id"] for row in list_images(rooms, {}, NEW, everything=True)} == {str(amd), str(arm)}
    seen = len(hostile.seen)
    assert await engine.pull(name, platform="linux/arm64") == arm  # nothing but asking what the tag means
    assert [one.method for one in hostile.seen[seen:]] == ["HEAD"]


async def test_the_last_name_takes_every_platform_along(engine: Engine, hostile: HostileRegistry) -> None:
    """And nothing of the index stays; what a container or another name needs does."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name, rooms = f"{hostile.host}/multi:1", engine.rooms
    await pull_whole(engine, name)
    tag_image(rooms, name, Reference.parse("other:1"))
    await delete_image(rooms, name)
    assert rooms.images.count() == 2 and image_for(rooms, "other:1", ARM).architecture == "arm64"

    report, _ = await prune_images(rooms, {})
    assert report == [] and rooms.images.count() == 2
    await delete_image(rooms, "other:1")
    assert rooms.images.count() == 0
    await rooms.garbage.sweep()
    assert list((rooms.data_root / "blobs/sha256").iterdir()) == []
    assert rooms.catalogue.query("SELECT * FROM documents") == []


async def test_a_removal_of_an_index_goes_in_one_step(
    engine: Engine, hostile: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended at any moment, it leaves all of it or no image, named or not."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name, rooms = f"{hostile.host}/multi:1", engine.rooms
    await pull_whole(engine, name)
    for point, left in (("rmi.untagged", 2), ("rmi.forgotten", 2), ("rmi.committed", 0)):
        monkeypatch.setattr(tracepoint, "_actions", {point: "raise"})
        with pytest.raises(EngineFailure):
            await delete_image(rooms, name)
        assert rooms.images.count() == left
        assert len(rooms.catalogue.query("SELECT * FROM documents")) == left // 2
    assert garbage(engine) == [] and rooms.catalogue.query("SELECT * FROM blobs") == []


async def test_a_platform_in_use_outlives_its_name(engine: Engine, hostile: HostileRegistry) -> None:
    """As a dangling image, as with dockerd."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name, rooms = f"{hostile.host}/multi:1", engine.rooms
    await pull_whole(engine, name)
    arm = image_for(rooms, name, ARM).id
    container_of(rooms, arm, "user")

    await delete_image(rooms, name)

    assert [record.id for record in rooms.images.all()] == [arm]
    assert all(rooms.layers.has(layer) for layer in rooms.images.get(arm).layers)


async def test_single_platforms_are_removed(engine: Engine, hostile: HostileRegistry) -> None:
    """The name stays; the one it means here cannot go before it."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name, rooms = f"{hostile.host}/multi:1", engine.rooms
    amd = await pull_whole(engine, name)

    with pytest.raises(InvalidInput, match=r"linux/amd64 is the platform that .* means here"):
        await delete_platforms(rooms, name, [AMD])
    await delete_platforms(rooms, name, [ARM])
    assert [record.id for record in rooms.images.all()] == [amd]
    await delete_platforms(rooms, name, [AMD])
    assert rooms.images.count() == 0


async def test_everything_comes_and_goes_byte_for_byte(engine: Engine, hostile: HostileRegistry) -> None:
    """Attestations, Windows, nested indexes and strangers too, none of them unpacked."""
    digest = put_whole(hostile, "multi", "1")
    name, rooms = f"{hostile.host}/multi:1", engine.rooms

    await pull_whole(engine, name)
    assert {record.architecture for record in rooms.images.all()} == {"amd64", "arm64", "riscv64"}
    assert garbage(engine) == []
    shown = inspect_image(rooms, name, NEW, with_manifests=True)["Manifests"]
    assert [row["Kind"] for row in shown] == ["image", "image", "attestation", "image", "image", "unknown"]
    assert [row["Available"] for row in shown] == [True, True, True, False, True, True]
    assert shown[2]["AttestationData"] == {"For": shown[0]["ID"]}

    tag_image(rooms, name, Reference.parse(f"{hostile.host}/again:1"))
    await push_whole(engine, f"{hostile.host}/again:1", everything=True)
    (aux,) = [message["aux"] for message in engine.said if "aux" in message]
    assert aux["Digest"] == digest
    assert hostile.manifests["again"]["1"] == hostile.manifests["multi"]["1"]
    assert set(hostile.blobs["again"]) == set(hostile.blobs["multi"])
    assert rooms.images.get(rooms.images.resolve(name)).repo_digests == [
        f"{hostile.host}/again@{digest}", f"{hostile.host}/multi@{digest}",
    ]  # fmt: skip


async def test_a_part_is_pushed_as_a_part(engine: Engine, hostile: HostileRegistry) -> None:
    """Without all of the index the host's image goes alone, and the client is told; a whole is refused, naming what is missing."""
    digest = put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = f"{hostile.host}/multi:1"
    await engine.pull(name, platform="linux/amd64")
    target = f"{hostile.host}/part:1"
    tag_image(engine.rooms, name, Reference.parse(target))

    with pytest.raises(NotFound, match=r"not all of it is here \(manifest sha256:\w+ of linux/arm64/v8\)"):
        await push_whole(engine, target, everything=True)
    await push_whole(engine, target)
    original, _ = [message["aux"] for message in engine.said if "aux" in message]
    assert original["manifestPushedInsteadOfIndex"] and original["originalIndex"]["digest"] == digest
    assert hostile.manifests["part"]["1"] == hostile.manifests["multi"]["p0"]
    await pull_whole(engine, name)
    await push_whole(engine, target, platform=ARM)
    assert hostile.manifests["part"]["1"] == hostile.manifests["multi"]["p1"]
    await push_whole(engine, target)
    assert hostile.manifests["part"]["1"] == hostile.manifests["multi"]["1"]


async def test_a_tag_that_moves_leaves_the_old_platforms_dangling(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """They can be pruned then; the digest name keeps the old index until it goes."""
    first = put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name, rooms = f"{hostile.host}/multi:1", engine.rooms
    old = await pull_whole(engine, name)
    hostile.put_image("multi", "1", [tar_of({"new": b"1"})])
    new = await engine.pull(name)

    assert rooms.images.get(old).repo_digests == [f"{hostile.host}/multi@{first}"]
    assert image_for(rooms, f"{hostile.host}/multi@{first}", ARM).architecture == "arm64"
    await prune_images(rooms, {})
    assert [record.id for record in rooms.images.all()] == [new] and garbage(engine) == []


async def archive_of(engine: Engine, *names: str, **more: Any) -> bytes:
    async with saving(engine.rooms, names, **more) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def read_in(engine: Engine, archive: bytes, platform: Platform | None = None) -> list[str]:
    engine.said = []
    await load(engine.rooms, pieces(archive), quiet=True, platform=platform, send=engine.send)
    return [message["stream"] for message in engine.said if "stream" in message]


async def test_whole_indexes_travel_by_archive(
    engine: Engine, hostile: HostileRegistry, tmp_path: Path
) -> None:
    """Saved whole, loaded elsewhere, pushed from there: the same bytes at the end."""
    digest = put_whole(hostile, "multi", "1")
    name = f"{hostile.host}/multi:1"
    image_id = await pull_whole(engine, name)
    archive = await archive_of(engine, name, everything=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (row,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        (entry,) = json.load(tar.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
    assert row["RepoTags"] == [name] and row["Config"] == f"blobs/sha256/{image_id.hex}"
    assert (entry["digest"], entry["annotations"]["io.containerd.image.name"]) == (digest, name)

    async with engine_below(tmp_path / "other") as other:
        assert await read_in(other, archive) == [f"Loaded image: {name}\n"]
        assert other.rooms.images.resolve(name) == image_id and garbage(other) == []
        assert inspect_image(other.rooms, name, NEW)["Descriptor"]["digest"] == digest
        assert await archive_of(other, name, everything=True) == archive
        tag_image(other.rooms, name, Reference.parse(f"{hostile.host}/loaded:1"))
        await push_whole(other, f"{hostile.host}/loaded:1")
        assert hostile.manifests["loaded"]["1"] == hostile.manifests["multi"]["1"]

    async with engine_below(tmp_path / "third") as third:
        with pytest.raises(NotFound, match="no image for platform linux/s390x"):
            await read_in(third, archive, Platform("linux", "s390x"))
        await read_in(third, archive, ARM)
        (record,) = third.rooms.images.all()
        assert (record.architecture, record.repo_tags) == ("arm64", [name])


async def test_one_platform_is_saved(engine: Engine, hostile: HostileRegistry, tmp_path: Path) -> None:
    """By --platform, out of what a name has; a whole that is not here is refused before the first byte."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name = f"{hostile.host}/multi:1"
    await engine.pull(name, platform="linux/amd64")
    with pytest.raises(NotFound, match="not all of it is here"):
        await archive_of(engine, name, everything=True)
    await pull_whole(engine, name)

    archive = await archive_of(engine, name, platform=ARM)

    async with engine_below(tmp_path / "other") as other:
        await read_in(other, archive)
        assert other.rooms.images.get(other.rooms.images.resolve(name)).architecture == "arm64"


async def test_what_a_crash_left_unnamed_is_swept(engine: Engine, hostile: HostileRegistry) -> None:
    """A document that nothing names goes, its bytes with it."""
    put_index(hostile, "1", "linux/amd64", "linux/arm64/v8")
    name, rooms = f"{hostile.host}/multi:1", engine.rooms
    await pull_whole(engine, name)
    rooms.images.untag(Reference.parse(name))
    with rooms.catalogue.transaction() as connection:
        connection.execute("DELETE FROM repo_digests")

    released = rooms.documents.release()

    assert len(released.images) == 2 and len(released.blobs) == 3
    assert rooms.documents.release().images == ()


def test_the_warning_for_another_platform() -> None:
    assert platform_warnings(AMD, AMD) == []
    assert platform_warnings(ARM, AMD) == [
        "The requested image's platform (linux/arm64) does not match the detected host platform (linux/amd64) and no specific "
        "platform was requested"
    ]


# -- artifacts


async def test_an_artifact_is_kept_and_pushed(
    engine: Engine, hostile: HostileRegistry, tmp_path: Path
) -> None:
    """Nothing of it is unpacked; it is listed, inspected, saved, loaded and pushed, and cannot be run."""
    put_artifact(hostile, "chart", "1", noise(3_000_000), noise(100))
    name, rooms = f"{hostile.host}/chart:1", engine.rooms

    artifact = await engine.pull(name)

    assert str(artifact) == digest_of(hostile.manifests["chart"]["1"][0])
    (row,) = list_images(rooms, {}, NEW, with_manifests=True)
    assert (row["Id"], row["RepoTags"]) == (str(artifact), [name]) and row["Size"] > 3_000_000
    assert row["Manifests"][0]["Kind"] == "unknown" and row["Manifests"][0]["Available"]
    shown = inspect_image(rooms, name, NEW)
    assert (shown["Architecture"], shown["RootFS"]["Layers"]) == ("", [])
    with pytest.raises(
        InvalidInput,
        match=r"is an artifact of type application/vnd.cncf.helm.config.v1\+json, not a container",
    ):
        image_for(rooms, name, None).check_is_image(name)
    with pytest.raises(InvalidInput, match="not a container image"):
        image_history(rooms, name)
    assert garbage(engine) == [] and rooms.catalogue.query("SELECT * FROM layers") == []
    assert await engine.pull(name) == artifact and "Status: Image is up to date" in engine.statuses()[-1]

    tag_image(rooms, name, Reference.parse(f"{hostile.host}/copy:2"))
    await push_whole(engine, f"{hostile.host}/copy:2")
    assert hostile.manifests["copy"]["2"] == hostile.manifests["chart"]["1"]
    archive = await archive_of(engine, name)
    async with engine_below(tmp_path / "other") as other:
        assert await read_in(other, archive) == [f"Loaded image: {name}\n"]
        assert other.rooms.images.resolve(name) == artifact and garbage(other) == []

    await delete_image(rooms, name)
    await delete_image(rooms, f"{hostile.host}/copy:2")
    assert list((rooms.data_root / "blobs/sha256").iterdir()) == [] and engine.partials() == []


async def test_a_large_blob_that_cannot_be_fetched_is_still_missing(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """A repair that fails hides nothing from the next check, which finds the registry in order."""
    content = noise(9_000_000)
    put_artifact(hostile, "chart", "1", content)
    await engine.pull(f"{hostile.host}/chart:1")
    path = engine.rooms.blobs.path(Digest(digest_of(content)))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    hostile.tricks.append(on("GET", "/blobs/", lambda _: web.Response(status=404)))

    (found,) = await fsck(engine.rooms, engine.send, repair=True)
    assert found.problem == "is damaged" and found.reason and not found.repaired
    (found,) = await fsck(engine.rooms, engine.send)
    assert (found.key, found.problem) == (digest_of(content), "is missing")
    assert any(user.startswith("document ") for user in found.users)
    hostile.tricks.clear()
    (found,) = await fsck(engine.rooms, engine.send, repair=True)
    assert found.repaired == f"fetched from {hostile.host}/chart" and path.read_bytes() == content
    assert await fsck(engine.rooms, engine.send) == []


async def test_signatures_and_empty_configs(engine: Engine, hostile: HostileRegistry) -> None:
    """cosign's have an image's config, ORAS' an empty one that all of them share, referrers a subject."""
    subject = put_artifact(hostile, "app", "1", b"x")
    signature = put_document(
        hostile, "app", "sha256-abc.sig",
        {
            "mediaType": OCI_MANIFEST,
            "config": put_blob(hostile, "app", b'{"rootfs":{"type":"layers","diff_ids":[]}}', OCI_CONFIG),
            "layers": [put_blob(hostile, "app", b"{}", "application/vnd.dev.cosign.simplesigning.v1+json")],
        },
    )  # fmt: skip
    empty = put_blob(hostile, "app", b"{}", "application/vnd.oci.empty.v1+json")
    referrer = put_document(
        hostile, "app", "sbom",
        {
            "mediaType": OCI_MANIFEST, "artifactType": "application/spdx+json", "config": empty, "layers": [empty],
            "subject": subject,
        },
    )  # fmt: skip

    for tag, descriptor in (("sha256-abc.sig", signature), ("sbom", referrer)):
        assert str(await engine.pull(f"{hostile.host}/app:{tag}")) == descriptor["digest"]
        tag_image(engine.rooms, f"{hostile.host}/app:{tag}", Reference.parse(f"{hostile.host}/copy:{tag}"))
        await push_whole(engine, f"{hostile.host}/copy:{tag}")
        assert hostile.manifests["copy"][tag] == hostile.manifests["app"][tag]
    kinds = {record.artifact_type for record in engine.rooms.images.all()}
    assert kinds == {"application/vnd.dev.cosign.simplesigning.v1+json", "application/spdx+json"}


async def test_an_artifacts_false_bytes_are_refused(engine: Engine, hostile: HostileRegistry) -> None:
    """Small ones and large ones; nothing stays."""
    for size in (100, 3_000_000):
        content = noise(size)
        put_artifact(hostile, "chart", "1", content)
        hostile.blobs["chart"][digest_of(content)] = noise(size)
        with pytest.raises(Exception, match=r"verification failed|not what|digest"):
            await engine.pull(f"{hostile.host}/chart:1")
    assert engine.rooms.images.count() == 0 and engine.partials() == []
