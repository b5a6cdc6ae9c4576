"""What pulls of others fell for: credentials for whoever asks, documents that read as two things, a digest of another repository."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from aiohttp import web
from registry.conftest import Engine

from ketch_testing.hostile import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    HostileRegistry,
    digest_of,
    hostile_registry,
    on,
)
from ketch_testing.rooms import tar_of
from ketch_wire.faults import EngineFailure, InvalidInput, NotFound
from ketchd.registry.tokens import Credentials

BASE, OTHER = tar_of({"a": b"base"}), tar_of({"a": b"other"})
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ME = Credentials("me", "sesame")
BASIC = "Basic " + base64.b64encode(b"me:sesame").decode()


@pytest.mark.parametrize("asks", ["Basic", "Bearer"])
async def test_cve_2020_15157_a_foreign_host_is_not_even_called(
    engine: Engine, hostile: HostileRegistry, asks: str
) -> None:
    """A layer's `urls` on a host that answers 401 and names a token server of its own: nobody there hears of us."""
    image = hostile.put_image("app", "1", [BASE])
    registry = {"WWW-Authenticate": 'Basic realm="registry"'}

    async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != BASIC:
            return web.Response(status=401, headers=registry)
        return None

    hostile.tricks.append(guarded)
    async with hostile_registry() as thief:
        challenge = {"WWW-Authenticate": f'{asks} realm="http://{thief.host}/token",service="s"'}
        thief.tricks += [
            on("GET", "/token", lambda _: web.json_response({"token": "t"})),
            on("GET", "/", lambda _: web.Response(status=401, headers=challenge)),
        ]
        document = json.loads(image.manifest)
        for kind in (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ):
            document["layers"][0] |= {"mediaType": kind, "urls": [f"http://{thief.host}/layer"]}
            hostile.put_manifest("app", "1", json.dumps(document).encode(), DOCKER_MANIFEST)
            with pytest.raises(EngineFailure, match="URLs outside of the registry: refused"):
                await engine.pull(f"{hostile.host}/app:1", ME)
        assert thief.seen == []
    assert any(seen.headers.get("Authorization") == BASIC for seen in hostile.seen)


def _ambiguous() -> dict[str, tuple[dict[str, Any], str]]:
    """By name: what is changed in an image's manifest, and the Content-Type that it is served with."""
    entry = {"mediaType": DOCKER_MANIFEST, "digest": digest_of(b"evil"), "size": 4}
    return {
        "both in one": ({"manifests": [entry]}, DOCKER_MANIFEST),
        "both, served as an index": ({"manifests": [entry]}, DOCKER_INDEX),
        "both, typed as an index": ({"manifests": [entry], "mediaType": DOCKER_INDEX}, DOCKER_INDEX),
        "an image served as an index": ({}, OCI_INDEX),
        "a type unlike the header's": ({"mediaType": OCI_MANIFEST}, DOCKER_MANIFEST),
        "an index beside it in capitals": ({"Manifests": [entry]}, DOCKER_MANIFEST),
    }


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("name", list(_ambiguous()))
async def test_cve_2021_41190_an_ambiguous_document_is_not_pulled(
    engine: Engine, hostile: HostileRegistry, name: str, by: str
) -> None:
    """Neither reading of it is taken, by whatever name it is asked for, and no layer is fetched."""
    change, content_type = _ambiguous()[name]
    image = hostile.put_image("app", "1", [BASE])
    document = {**json.loads(image.manifest), **change}
    digest = hostile.put_manifest("app", "1", json.dumps(document).encode(), content_type)

    with pytest.raises(InvalidInput, match="media-type confusion"):
        await engine.pull(f"{hostile.host}/app:1" if by == "tag" else f"{hostile.host}/app@{digest}")
    assert hostile.asked("GET", "/blobs/") == [] and engine.rooms.images.count() == 0


async def test_tag_digest_mismatch_a_digest_of_another_repository(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """`a:1@digest-of-b` is asked for in `a`, where it is not; that `b` has been pulled before helps nobody."""
    hostile.put_image("a", "1", [BASE])
    other = hostile.put_image("b", "1", [OTHER])
    for _ in range(2):
        with pytest.raises(NotFound):
            await engine.pull(f"{hostile.host}/a:1@{other.digest}")
        assert engine.rooms.images.tags_of(f"{hostile.host}/a") == []
        await engine.pull(f"{hostile.host}/b:1")
    names = [name for image in engine.rooms.images.all() for name in (*image.repo_tags, *image.repo_digests)]
    assert not any("/a" in name for name in names), names


async def test_tag_digest_mismatch_the_tags_image_is_no_answer(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """A registry that answers a digest of `b` with what `a:1` is: verified, and refused."""
    image = hostile.put_image("a", "1", [BASE])
    other = hostile.put_image("b", "1", [OTHER])
    hostile.manifests["a"][other.digest] = (image.manifest, DOCKER_MANIFEST)

    with pytest.raises(EngineFailure, match=f"manifest verification failed for digest {other.digest}"):
        await engine.pull(f"{hostile.host}/a:1@{other.digest}")
    assert engine.rooms.images.count() == 0
