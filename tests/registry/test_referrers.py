"""Referrers: listed by the registry's API, else under the tag `sha256-HEX`; fetched and pushed with their image."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from registry.conftest import Engine, engine_below

from ketch_testing.hostile import HostileRegistry, hostile_registry, on, refuse
from ketch_testing.rooms import tar_of
from ketch_wire.faults import EngineFailure
from ketchd.model.digest import Digest
from ketchd.model.manifest import OCI_INDEX, OCI_MANIFEST

EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.fixture
async def target() -> AsyncIterator[HostileRegistry]:
    """Another registry, empty and without a referrers API until a test gives it one."""
    async with hostile_registry() as made:
        yield made


def put_referrer(
    registry: HostileRegistry, repository: str, tag: str, subject: str, size: int, **more: Any
) -> str:
    """An artifact about `subject`; returns its digest."""
    empty = {"mediaType": EMPTY, "digest": registry.put_blob(repository, b"{}"), "size": 2}
    document = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/spdx+json", "config": empty,
        "layers": [{**empty, "mediaType": "application/spdx+json"}],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": size}, **more,
    }  # fmt: skip
    return registry.put_manifest(repository, tag, json.dumps(document).encode(), OCI_MANIFEST)


def listed(registry: HostileRegistry, repository: str, subject: str) -> list[dict[str, Any]]:
    """The entries under the subject's tag."""
    content, media_type = registry.manifests[repository][subject.replace(":", "-")]
    document = json.loads(content)
    assert media_type == document["mediaType"] == OCI_INDEX and document["schemaVersion"] == 2
    entries: list[dict[str, Any]] = document["manifests"]
    return entries


async def test_the_tag_stands_in_for_the_api(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """Each referrer once, behind those that others have put there; it is said."""
    image = hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    digests = [
        put_referrer(hostile, "app", tag, image.digest, len(image.manifest), annotations={"about": tag})
        for tag in ("sbom", "signature")
    ]
    before = {"mediaType": OCI_MANIFEST, "digest": digests[0][:-4] + "0000", "size": 7, "artifactType": "x/y"}
    kept = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [before],
        "annotations": {"whose": "other"},
    }
    target.put_manifest("app", image.digest.replace(":", "-"), json.dumps(kept).encode(), OCI_INDEX)
    for tag in ("sbom", "signature"):
        artifact = await engine.pull(f"{hostile.host}/app:{tag}")
        engine.tag(artifact, f"{target.host}/app:{tag}")
        for _ in range(2):
            await engine.push(f"{target.host}/app:{tag}")
            assert (
                f"{artifact.short}: listed under the tag {image.digest.replace(':', '-')}, the registry has no referrers API"
                in engine.statuses()
            )

    entries = listed(target, "app", image.digest)
    assert entries[0] == before
    assert entries[1:] == [
        {
            "mediaType": OCI_MANIFEST, "digest": digest, "size": len(hostile.manifests["app"][digest][0]),
            "artifactType": "application/spdx+json", "annotations": {"about": tag},
        }
        for digest, tag in zip(digests, ("sbom", "signature"), strict=True)
    ]  # fmt: skip
    content, _ = target.manifests["app"][image.digest.replace(":", "-")]
    assert json.loads(content)["annotations"] == {"whose": "other"}


async def test_a_registry_that_keeps_the_list_needs_no_tag(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """It says so with OCI-Subject."""
    target.referrers = 10
    image = hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    put_referrer(hostile, "app", "sbom", image.digest, len(image.manifest))
    engine.tag(await engine.pull(f"{hostile.host}/app:sbom"), f"{target.host}/app:sbom")
    await engine.push(f"{target.host}/app:sbom")
    assert [tag for tag in target.manifests["app"] if ":" not in tag] == ["sbom"]


async def test_pushes_at_once_lose_no_entry(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """The list is read and written by one at a time."""
    image = hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    tags = [f"sbom{number}" for number in range(6)]
    for tag in tags:
        put_referrer(hostile, "app", tag, image.digest, len(image.manifest), annotations={"about": tag})
        engine.tag(await engine.pull(f"{hostile.host}/app:{tag}"), f"{target.host}/app:{tag}")
    async with asyncio.TaskGroup() as group:
        for tag in tags:
            group.create_task(engine.push(f"{target.host}/app:{tag}"))
    assert sorted(entry["annotations"]["about"] for entry in listed(target, "app", image.digest)) == tags


async def test_a_tag_that_is_somebodys_is_not_written_over(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """An image under that name stays; the push says why it fails."""
    image = hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    put_referrer(hostile, "app", "sbom", image.digest, len(image.manifest))
    tag = image.digest.replace(":", "-")
    other = target.put_image("app", tag, [tar_of({"b": b"2"})])
    engine.tag(await engine.pull(f"{hostile.host}/app:sbom"), f"{target.host}/app:sbom")
    with pytest.raises(
        EngineFailure, match=f"under {tag}: the tag for its subject's referrers holds no index"
    ):
        await engine.push(f"{target.host}/app:sbom")
    assert target.manifests["app"][tag][0] == other.manifest


@pytest.mark.parametrize("page", [0, 1, 10])
async def test_what_refers_to_an_image_comes_and_goes_with_it(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry, page: int
) -> None:
    """From a registry with the API, in pages or not, or without; to one of each. Also what refers to a referrer."""
    image = hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    referrers = [
        put_referrer(hostile, "app", tag, image.digest, len(image.manifest), annotations={"about": tag})
        for tag in ("sbom", "signature")
    ]
    about = len(hostile.manifests["app"][referrers[0]][0])
    referrers.append(put_referrer(hostile, "app", "signed", referrers[0], about))
    for tag in ("sbom", "signature", "signed"):
        del hostile.manifests["app"][tag]
    hostile.referrers = page
    if not page:
        for subject, found in ((image.digest, referrers[:2]), (referrers[0], referrers[2:])):
            entries = [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": digest,
                    "size": len(hostile.manifests["app"][digest][0]),
                }
                for digest in found
            ]
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
            hostile.put_manifest("app", subject.replace(":", "-"), json.dumps(index).encode(), OCI_INDEX)
    name = f"{hostile.host}/app:1"

    image_id = await engine.pull(name)
    assert engine.rooms.images.artifacts() == []
    await engine.pull(name, referrers=True)
    assert {str(digest) for digest in engine.rooms.images.artifacts()} == set(referrers)
    assert engine.rooms.images.find_name(_by_digest(engine, hostile, referrers[2])) == Digest(referrers[2])

    engine.tag(image_id, f"{target.host}/copy:1")
    await engine.push(f"{target.host}/copy:1")
    assert [key for key in target.manifests["copy"] if ":" not in key] == ["1"]
    await engine.push(f"{target.host}/copy:1", referrers=True)
    for digest in referrers:
        assert target.manifests["copy"][digest] == hostile.manifests["app"][digest]
    assert [entry["digest"] for entry in listed(target, "copy", image.digest)] == sorted(referrers[:2])
    assert [entry["digest"] for entry in listed(target, "copy", referrers[0])] == referrers[2:]
    assert engine.rooms.leases.held() == set() and engine.staged() == []


def _by_digest(engine: Engine, registry: HostileRegistry, digest: str) -> Any:
    (name,) = [
        name for name in engine.rooms.images.get(Digest(digest)).digests if name.domain == registry.host
    ]
    return name


async def test_a_list_of_referrers_is_no_tag_to_pull(engine: Engine, hostile: HostileRegistry) -> None:
    """All tags are the images'."""
    image = hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    hostile.put_manifest("app", image.digest.replace(":", "-"), index, OCI_INDEX)
    await engine.pull_all(f"{hostile.host}/app")
    assert [record.repo_tags for record in engine.rooms.images.all()] == [[f"{hostile.host}/app:1"]]


async def test_a_registry_that_fails_is_not_one_without_the_api(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """Its refusal is told; the image is there."""
    hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    hostile.tricks.append(on("GET", "/referrers/", lambda _: refuse(403, "DENIED", "no lists for you")))
    with pytest.raises(Exception, match="no lists for you"):
        await engine.pull(f"{hostile.host}/app:1", referrers=True)
    assert len(engine.rooms.images.all()) == 1


async def test_debians_registry(engine: Engine, hostile: HostileRegistry, real: str, tmp_path: Path) -> None:
    """It has no API: the tag is made there, and another engine finds the SBOM by it."""
    image = hostile.put_image("app", "1", [tar_of({"a": b"1"})])
    sbom = put_referrer(hostile, "app", "sbom", image.digest, len(image.manifest))
    hostile.referrers = 10
    image_id = await engine.pull(f"{hostile.host}/app:1", referrers=True)
    engine.tag(image_id, f"{real}/app:1")
    await engine.push(f"{real}/app:1", referrers=True)

    def fetch() -> dict[str, Any]:
        with urlopen(f"http://{real}/v2/app/tags/list") as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    assert sorted((await asyncio.to_thread(fetch))["tags"]) == ["1", image.digest.replace(":", "-")]
    async with engine_below(tmp_path / "other") as other:
        assert await other.pull(f"{real}/app:1", referrers=True) == image_id
        assert [str(digest) for digest in other.rooms.images.artifacts()] == [sbom]
