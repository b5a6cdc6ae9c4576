"""Pulling: the whole way, what is already here, platforms, many at once, and the messages that clients know."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web
from registry.conftest import Engine, engine_below, noise, until

from ketch_testing.hostile import DOCKER_INDEX, DOCKER_MANIFEST, HostileRegistry, digest_of, on, refuse
from ketch_testing.rooms import tar_of
from ketch_wire.faults import EngineFailure, Forbidden, InvalidInput, NotFound
from ketchd.engine.search import search
from ketchd.model.digest import Digest
from ketchd.model.reference import Reference
from ketchd.registry.endpoints import Settings
from ketchd.registry.tokens import Credentials

BASE, TOP = tar_of({"a": b"base"}), tar_of({"b": b"top"})


async def test_an_image_arrives_whole(engine: Engine, hostile: HostileRegistry) -> None:
    """Layers, config, manifest and both names; every blob as it was sent, nothing half done left."""
    image = hostile.put_image("me/app", "1", [BASE, TOP])
    name = f"{hostile.host}/me/app:1"

    image_id = await engine.pull(name)

    rooms = engine.rooms
    assert image_id == Digest.of(image.config)
    record = rooms.images.get(image_id)
    assert record.repo_tags == [name] and record.repo_digests == [f"{hostile.host}/me/app@{image.digest}"]
    assert [str(layer) for layer in record.layers] == [digest_of(BASE), digest_of(TOP)]
    for content in (*image.layers, image.config, image.manifest):
        assert rooms.blobs.path(Digest.of(content)).read_bytes() == content
    assert rooms.blobs.sources(Digest.of(image.layers[0])) == [f"{hostile.host}/me/app"]
    assert [form.digest for form in rooms.blobs.of_layer(Digest.of(BASE))] == [Digest.of(image.layers[0])]
    assert engine.partials() == [] and engine.staged() == []
    assert rooms.leases.held() == set() and rooms.garbage.find() == []
    (event,) = rooms.events.since(0)
    assert (event.action, event.actor_id) == ("pull", name)
    assert event.attributes == {"name": f"{hostile.host}/me/app", "who": "hostile"}


async def test_the_messages_are_dockers(engine: Engine, hostile: HostileRegistry) -> None:
    """Their words and order are what clients parse."""
    image = hostile.put_image("me/app", "1", [BASE])
    await engine.pull(f"{hostile.host}/me/app:1")

    short = image.layer_digests[0][7:19]
    assert engine.said[0] == {"status": "Pulling from me/app", "id": "1"}
    assert engine.said[1] == {"status": "Pulling fs layer", "progressDetail": {}, "id": short}
    assert engine.statuses(short) == [
        "Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete",
    ]  # fmt: skip
    bar = next(message for message in engine.said if message["status"] == "Downloading")
    size = len(image.layers[0])
    assert bar["progressDetail"] == {"current": size, "total": size}
    assert bar["progress"].startswith("[====") and bar["progress"].endswith(f"{size}B/{size}B")
    assert engine.said[-2:] == [
        {"status": f"Digest: {image.digest}"},
        {"status": f"Status: Downloaded newer image for {hostile.host}/me/app:1"},
    ]


async def test_what_is_here_is_not_fetched_again(engine: Engine, hostile: HostileRegistry) -> None:
    """The same tag costs one HEAD; a layer that another image brought is there already."""
    hostile.put_image("me/app", "1", [BASE])
    name = f"{hostile.host}/me/app:1"
    await engine.pull(name)
    hostile.seen.clear()

    await engine.pull(name)

    assert [(seen.method, seen.path) for seen in hostile.seen] == [("HEAD", "/v2/me/app/manifests/1")]
    assert engine.statuses()[-1] == f"Status: Image is up to date for {name}"
    more = hostile.put_image("me/other", "1", [BASE, TOP])
    hostile.seen.clear()
    await engine.pull(f"{hostile.host}/me/other:1")
    assert engine.statuses(more.layer_digests[0][7:19]) == ["Already exists"]
    assert [seen.path for seen in hostile.asked("GET", "/blobs/")] == [
        f"/v2/me/other/blobs/{Digest.of(more.config)}",
        f"/v2/me/other/blobs/{more.layer_digests[1]}",
    ]


async def test_a_tag_that_moved_is_followed(engine: Engine, hostile: HostileRegistry) -> None:
    """The old image stays, without its tag."""
    hostile.put_image("app", "1", [BASE])
    before = await engine.pull(f"{hostile.host}/app:1")
    hostile.put_image("app", "1", [TOP])

    after = await engine.pull(f"{hostile.host}/app:1")

    assert after != before
    assert engine.rooms.images.get(before).repo_tags == []
    assert engine.statuses()[-1].startswith("Status: Downloaded newer image")


async def test_by_digest(engine: Engine, hostile: HostileRegistry) -> None:
    """No tag is made, and a tag beside the digest means nothing."""
    image = hostile.put_image("app", "1", [BASE])
    name = f"{hostile.host}/app@{image.digest}"

    image_id = await engine.pull(f"{hostile.host}/app:9@{image.digest}")

    assert engine.rooms.images.get(image_id).repo_tags == []
    assert engine.rooms.images.get(image_id).repo_digests == [name]
    assert engine.said[0] == {"status": "Pulling from app", "id": name}
    await engine.pull(name)
    assert engine.statuses()[-1] == f"Status: Image is up to date for {name}"


async def test_every_tag(engine: Engine, hostile: HostileRegistry) -> None:
    """One status at the end; images share what they can."""
    hostile.put_image("app", "1", [BASE])
    hostile.put_image("app", "2", [BASE, TOP])

    await engine.pull_all(f"{hostile.host}/app")

    tags = [str(name) for name, _ in engine.rooms.images.tags_of(f"{hostile.host}/app")]
    assert tags == [f"{hostile.host}/app:1", f"{hostile.host}/app:2"]
    assert [s for s in engine.statuses() if s.startswith("Status")] == [
        f"Status: Downloaded newer image for {hostile.host}/app"
    ]


def put_index(hostile: HostileRegistry, tag: str, *platforms: str) -> str:
    entries = []
    for number, platform in enumerate(platforms):
        system, architecture, *variant = platform.split("/")
        tar = tar_of({"platform": platform.encode()})
        image = hostile.put_image("multi", f"p{number}", [tar], architecture=architecture, os=system)
        shown = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        entries.append(
            {
                "mediaType": DOCKER_MANIFEST, "digest": image.digest, "size": len(image.manifest), "platform": shown,
            }
        )  # fmt: skip
    content = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": entries}).encode()
    return hostile.put_manifest("multi", tag, content, DOCKER_INDEX)


async def test_a_platform_is_chosen(engine: Engine, hostile: HostileRegistry) -> None:
    """The asked one, each under the digest of the index; no platform but the chosen one is fetched."""
    digest = put_index(hostile, "1", "linux/amd64", "linux/arm64/v8", "unknown/unknown")
    name = f"{hostile.host}/multi:1"

    arm = await engine.pull(name, platform="linux/arm64")
    assert engine.rooms.images.get(arm).architecture == "arm64"
    intel = await engine.pull(name, platform="linux/amd64")
    assert engine.rooms.images.get(intel).architecture == "amd64"
    assert engine.rooms.images.get(intel).repo_digests == [f"{hostile.host}/multi@{digest}"]
    assert engine.rooms.images.find_name(Reference.parse(name)) == intel
    with pytest.raises(
        NotFound, match=r"^no matching manifest for linux/s390x in the manifest list entries$"
    ):
        await engine.pull(name, platform="linux/s390x")


async def test_a_single_image_of_another_platform_comes_with_a_warning(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """As dockerd has it."""
    hostile.put_image("app", "1", [BASE], architecture="s390x")

    await engine.pull(f"{hostile.host}/app:1", platform="linux/arm64")

    (warning,) = [status for status in engine.statuses() if status.startswith("WARNING")]
    assert "its platform (linux/s390x) does not match the specified platform (linux/arm64)" in warning


async def test_many_pulls_share_one_download(engine: Engine, hostile: HostileRegistry) -> None:
    """However many wait, a blob is fetched once, and all of them hear of it."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(3_000_000)})])
    hostile.manifests["copy"] = hostile.manifests["app"]
    hostile.blobs["copy"] = hostile.blobs["app"]
    first, second = Engine(engine.rooms), Engine(engine.rooms)

    ids = await asyncio.gather(
        first.pull(f"{hostile.host}/app:1"),
        second.pull(f"{hostile.host}/copy:1"),
        engine.pull(f"{hostile.host}/app:1"),
    )

    assert len(set(ids)) == 1
    assert len([seen for seen in hostile.asked("GET", image.layer_digests[0])]) == 1
    short = image.layer_digests[0][7:19]
    for one in (first, second):
        assert one.statuses(short)[-1] == "Pull complete" and "Download complete" in one.statuses(short)


async def test_one_waiter_leaves_and_the_download_goes_on(engine: Engine, hostile: HostileRegistry) -> None:
    """Only the last one's end ends it."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(2_000_000)})])
    gate = asyncio.Event()

    async def hold(request):  # type: ignore[no-untyped-def]
        if image.layer_digests[0] in request.path:
            await gate.wait()
        return None

    hostile.tricks.append(hold)
    other = Engine(engine.rooms)
    leaver = asyncio.create_task(engine.pull(f"{hostile.host}/app:1"))
    stayer = asyncio.create_task(other.pull(f"{hostile.host}/app:1"))
    short = image.layer_digests[0][7:19]
    await until(lambda: hostile.asked("GET", image.layer_digests[0]) and other.statuses(short))
    leaver.cancel()
    await asyncio.wait([leaver])
    assert leaver.cancelled()
    gate.set()

    assert await stayer == Digest.of(image.config)
    assert len(hostile.asked("GET", image.layer_digests[0])) == 1


async def test_equal_layers_in_one_image(engine: Engine, hostile: HostileRegistry) -> None:
    """Legal, and seen in the wild: the empty layer twice."""
    image = hostile.put_image("app", "1", [BASE, TOP, BASE])

    image_id = await engine.pull(f"{hostile.host}/app:1")

    assert len(engine.rooms.images.get(image_id).layers) == 3
    assert len(hostile.asked("GET", image.layer_digests[0])) == 1


async def test_an_image_without_layers(engine: Engine, hostile: HostileRegistry) -> None:
    """Legal too."""
    hostile.put_image("app", "1", [])

    assert engine.rooms.images.get(await engine.pull(f"{hostile.host}/app:1")).layers == ()


async def test_names_that_are_not_there(engine: Engine, hostile: HostileRegistry) -> None:
    """Each with dockerd's status and line."""
    hostile.put_image("app", "1", [BASE])
    missing = f"{hostile.host}/app:2"
    with pytest.raises(NotFound) as caught:
        await engine.pull(missing)
    assert caught.value.message == f"manifest for {missing} not found: manifest unknown: manifest unknown"
    with pytest.raises(Forbidden, match="'scratch' is a reserved name"):
        await engine.pull("scratch")
    with pytest.raises(NotFound, match="/nobody not found: name unknown"):
        hostile.tricks.append(_no_such_repository)
        await engine.pull_all(f"{hostile.host}/nobody")
    assert engine.rooms.images.count() == 0


async def _no_such_repository(request):  # type: ignore[no-untyped-def]
    if request.path.endswith("/tags/list"):
        return refuse(404, "NAME_UNKNOWN", "repository name not known to registry")
    return None


async def test_nobody_listens(engine: Engine) -> None:
    """One line, dockerd's, and no second attempt."""
    with pytest.raises(EngineFailure) as caught:
        await engine.pull("127.0.0.1:1/x:1")
    assert caught.value.message == (
        'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
    )


@pytest.mark.parametrize(
    ("change", "fault", "words"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, InvalidInput, "schema 1 manifests are not supported"),
        ({"manifests": []}, InvalidInput, "media-type confusion"),
        ({"layers": []}, EngineFailure, "layers from manifest don't match image configuration"),
        (
            {
                "config": {
                    "mediaType": "application/vnd.docker.plugin.v1+json",
                    "size": 2,
                    "digest": digest_of(b"{}"),
                }
            },
            InvalidInput,
            r"Encountered remote .*\(plugin\) when fetching",
        ),
    ],
)
async def test_manifests_that_are_refused(
    engine: Engine, hostile: HostileRegistry, change: dict[str, object], fault: type[Exception], words: str
) -> None:
    """Before any layer is fetched."""
    hostile.put_image("app", "1", [BASE], **change)

    with pytest.raises(fault, match=words):
        await engine.pull(f"{hostile.host}/app:1")
    assert not any(Digest.of(BASE).hex in seen.path for seen in hostile.seen)
    assert engine.rooms.images.count() == 0 and engine.rooms.leases.held() == set()


async def test_cve_2020_15157_foreign_layers_are_refused(engine: Engine, hostile: HostileRegistry) -> None:
    """Nothing is fetched from a URL that a manifest names."""
    image = hostile.put_image("app", "1", [BASE])
    document = json.loads(image.manifest)
    document["layers"][0]["urls"] = [f"http://{hostile.host}/secret"]
    hostile.put_manifest("app", "1", json.dumps(document).encode(), DOCKER_MANIFEST)

    with pytest.raises(EngineFailure, match="URLs outside of the registry: refused"):
        await engine.pull(f"{hostile.host}/app:1")
    assert hostile.asked("GET", "secret") == []


async def test_another_operating_system_is_refused(engine: Engine, hostile: HostileRegistry) -> None:
    """It could not run."""
    hostile.put_image("app", "1", [BASE], os="windows")

    with pytest.raises(EngineFailure, match="image is for 'windows'"):
        await engine.pull(f"{hostile.host}/app:1")


async def test_through_a_proxy(tmp_path: Path, hostile: HostileRegistry) -> None:
    """By the daemon's environment; the registry's name is the proxy's business."""
    hostile.put_image("app", "1", [BASE])
    settings = Settings(
        insecure=("registry.invalid",),
        certificate_directories=(),
        environment={"HTTP_PROXY": f"http://{hostile.host}", "HTTPS_PROXY": "http://127.0.0.1:1"},
    )
    async with engine_below(tmp_path / "data", settings) as engine:
        await engine.pull("registry.invalid/app:1")
    assert {seen.headers["Host"] for seen in hostile.seen} == {"registry.invalid"}


async def test_search_where_a_registry_offers_it(engine: Engine, hostile: HostileRegistry) -> None:
    """Rows in the API's form, filtered."""
    rows = [
        {"name": "a", "star_count": 7, "is_official": True, "description": "first"},
        {"name": "b", "star_count": None, "is_official": False},
    ]
    hostile.tricks.append(on("GET", "/v1/search", lambda _: web.json_response({"results": rows})))

    found = await search(engine.rooms, f"{hostile.host}/x y", 10, {}, Credentials())
    assert [(row["name"], row["star_count"], row["is_official"]) for row in found] == [
        ("a", 7, True),
        ("b", 0, False),
    ]
    assert hostile.seen[-1].query == "q=x%20y&n=10"
    assert [row["name"] for row in await search(
        engine.rooms, f"{hostile.host}/x", 25, {"stars": ["3"], "is-official": ["true"]}, Credentials()
    )] == ["a"]  # fmt: skip


@pytest.mark.parametrize("most", [1, 3])
async def test_so_many_blobs_at_once_and_no_more(tmp_path: Path, hostile: HostileRegistry, most: int) -> None:
    """`max-concurrent-downloads` and `-uploads`: as many as there may be are under way together."""
    under_way, full, seen = 0, asyncio.Event(), [0]

    async def count(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal under_way
        is_layer = request.method == "GET" and request.path.rpartition("/")[2] in layers
        if not (is_layer or (request.method == "PUT" and "/uploads/" in request.path)):
            return None
        under_way += 1
        seen.append(under_way)
        if under_way == most:
            full.set()
        async with asyncio.timeout(20):
            await full.wait()
        await asyncio.sleep(0.02)  # time for one too many
        under_way -= 1
        return None

    image = hostile.put_image("app", "1", [tar_of({"a": str(number).encode()}) for number in range(7)])
    layers = set(image.layer_digests)
    hostile.tricks.append(count)
    settings = Settings(certificate_directories=(), downloads=most, uploads=most)
    async with engine_below(tmp_path / "data", settings) as engine:
        image_id = await engine.pull(f"{hostile.host}/app:1")
        assert max(seen) == most
        seen.clear()
        full.clear()
        for layer in image.layer_digests:
            for name in engine.rooms.blobs.sources(Digest(layer)):
                engine.rooms.blobs.drop_source(Digest(layer), name)
        engine.tag(image_id, f"{hostile.host}/copy:1")
        await engine.push(f"{hostile.host}/copy:1")
        assert max(seen) == most
