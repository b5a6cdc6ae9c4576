"""Pushing: byte for byte what was pulled, nothing that is there already, resumed where it broke, the manifest last."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from registry.conftest import Engine, noise, until

from ketch_testing.hostile import DOCKER_MANIFEST, HostileRegistry, hostile_registry, on, refuse, times
from ketch_testing.rooms import image_of, layer_of, tar_of
from ketch_wire.faults import EngineFailure, InvalidInput, NotFound, Unauthorized
from ketchd.model.digest import Digest
from ketchd.registry import uploads
from ketchd.registry.tokens import Credentials

BASE, TOP = {"a": b"base"}, {"b": b"top"}


@pytest.fixture
async def target() -> AsyncIterator[HostileRegistry]:
    """Another registry, empty."""
    async with hostile_registry() as made:
        yield made


async def test_a_pulled_image_goes_out_as_it_came_in(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """The same manifest, config and blobs, byte for byte."""
    image = hostile.put_image("me/app", "1", [tar_of(BASE), tar_of(TOP)])
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    engine.tag(image_id, f"{target.host}/copy:2")

    await engine.push(f"{target.host}/copy:2")

    assert target.manifests["copy"]["2"] == (image.manifest, DOCKER_MANIFEST)
    assert target.blobs["copy"] == hostile.blobs["me/app"]
    record = engine.rooms.images.get(image_id)
    assert f"{target.host}/copy@{image.digest}" in record.repo_digests
    assert f"{target.host}/copy" in engine.rooms.blobs.sources(Digest(image.layer_digests[0]))
    assert engine.rooms.leases.held() == set() and engine.staged() == []


async def test_the_messages_are_dockers(engine: Engine, target: HostileRegistry) -> None:
    """Top layer first; tag, digest and size at the end."""
    base, top = await layer_of(engine.rooms, BASE), await layer_of(engine.rooms, TOP)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [base, top], name)

    await engine.push(name)

    assert engine.said[0] == {"status": f"The push refers to repository [{target.host}/app]"}
    assert engine.said[1:3] == [
        {"status": "Preparing", "progressDetail": {}, "id": top.short},
        {"status": "Preparing", "progressDetail": {}, "id": base.short},
    ]
    assert engine.statuses(base.short) == ["Preparing", "Pushing", "Pushed"]
    content, _ = target.manifests["app"]["1"]
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    assert engine.said[-2:] == [
        {"status": f"1: digest: {digest} size: {len(content)}"},
        {"progressDetail": {}, "aux": {"Tag": "1", "Digest": digest, "Size": len(content)}},
    ]
    assert [(event.action, event.actor_id) for event in engine.rooms.events.since(0)][-1] == ("push", name)


async def test_a_built_image_is_compressed_once(engine: Engine, target: HostileRegistry) -> None:
    """The same bytes for every push, in a manifest of Docker's schema 2; the manifest goes last."""
    layer = await layer_of(engine.rooms, BASE)
    image_id = await image_of(engine.rooms, [layer], f"{target.host}/app:1")
    engine.tag(image_id, f"{target.host}/other:1")

    await engine.push(f"{target.host}/app:1")
    first = target.manifests["app"]["1"]
    document = json.loads(first[0])
    assert first[1] == document["mediaType"] == DOCKER_MANIFEST
    assert document["layers"][0]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    writes = [seen for seen in target.seen if seen.method in ("POST", "PUT", "PATCH")]
    assert writes[-1].path == "/v2/app/manifests/1"
    (form,) = engine.rooms.blobs.of_layer(layer)
    assert str(form.digest) == document["layers"][0]["digest"]

    target.seen.clear()
    await engine.push(f"{target.host}/other:1")
    assert target.manifests["other"]["1"] == first
    assert engine.statuses(layer.short) == ["Preparing", "Mounted from app"]
    assert sum(seen.body_size for seen in target.asked("PUT", "/blobs/uploads/")) < 1000


async def test_what_is_there_is_not_sent(engine: Engine, target: HostileRegistry) -> None:
    """A second push of the same name sends the manifest only."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    await engine.push(name)
    target.seen.clear()

    await engine.push(name)

    assert engine.statuses(layer.short) == ["Preparing", "Layer already exists"]
    assert target.asked("POST", "/uploads/") == []


async def test_a_layer_whose_blob_is_gone_is_made_again(
    engine: Engine, hostile: HostileRegistry, target: HostileRegistry
) -> None:
    """Then the image has a new manifest; what came from this registry is mounted, not sent."""
    image = hostile.put_image("me/app", "1", [tar_of(BASE)])
    image_id = await engine.pull(f"{hostile.host}/me/app:1")
    engine.rooms.blobs.path(Digest(image.layer_digests[0])).unlink()
    engine.tag(image_id, f"{hostile.host}/moved:1")
    engine.tag(image_id, f"{target.host}/copy:1")

    await engine.push(f"{hostile.host}/moved:1")
    assert hostile.manifests["moved"]["1"][0] == image.manifest
    await engine.push(f"{target.host}/copy:1")

    document = json.loads(target.manifests["copy"]["1"][0])
    assert document["config"]["digest"] == str(image_id)
    assert document["layers"][0]["digest"] in target.blobs["copy"]


async def test_every_tag(engine: Engine, target: HostileRegistry) -> None:
    """In order; each with its digest."""
    layer = await layer_of(engine.rooms, BASE)
    await image_of(engine.rooms, [layer], f"{target.host}/app:1", f"{target.host}/app:2")
    await image_of(engine.rooms, [layer], f"{target.host}/app:3", created="2020-01-01T00:00:00Z")

    await engine.push(f"{target.host}/app")

    assert [tag for tag in target.manifests["app"] if ":" not in tag] == ["1", "2", "3"]
    assert [message["aux"]["Tag"] for message in engine.said if "aux" in message] == ["1", "2", "3"]


async def test_an_upload_that_breaks_is_continued(
    engine: Engine, target: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk by chunk; after a cut the registry is asked what it has."""
    monkeypatch.setattr(uploads, "CHUNK", 1_000_000)
    monkeypatch.setattr(uploads.Upload.__init__, "__kwdefaults__", {"source": "", "chunk": 1_000_000})
    layer = await layer_of(engine.rooms, {"big": noise(3_500_000)})
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)

    async def cut(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "PATCH" or target.asked("GET", "/uploads/"):
            return None
        held = target.uploads[request.path.rpartition("/")[2]]
        if not held:
            return None
        held += await request.content.readexactly(100_000)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    target.tricks.append(cut)
    await engine.push(name)

    (digest,) = [form.digest for form in engine.rooms.blobs.of_layer(layer)]
    assert Digest.of(target.blobs["app"][str(digest)]) == digest
    assert len(target.asked("GET", "/uploads/")) == 1
    sent = [seen.headers["Content-Range"] for seen in target.asked("PATCH", "/uploads/")]
    assert sent[:3] == ["0-999999", "1000000-1999999", "1100000-2099999"]


async def test_a_burst_of_errors_passes(engine: Engine, target: HostileRegistry) -> None:
    """At every kind of request of a push."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    for method, part, count in (
        ("HEAD", "/blobs/", 2),
        ("POST", "/uploads/", 1),
        ("PUT", "/uploads/", 2),
        ("PUT", "/manifests/", 2),
    ):
        target.tricks.append(times(count, on(method, part, lambda _: web.Response(status=502))))

    await engine.push(name)

    assert "1" in target.manifests["app"]


async def test_a_mount_that_is_not_allowed_becomes_an_upload(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """401 for the other repository is no reason to fail."""
    image = hostile.put_image("secret", "1", [tar_of(BASE)])
    image_id = await engine.pull(f"{hostile.host}/secret:1")
    engine.tag(image_id, f"{hostile.host}/open:1")

    async def no_mount(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.query.get("from"):
            return refuse(403, "DENIED")
        return None

    hostile.tricks.append(no_mount)
    await engine.push(f"{hostile.host}/open:1")

    assert hostile.manifests["open"]["1"][0] == image.manifest
    assert "Pushed" in engine.statuses()


async def test_a_refused_push(engine: Engine, target: HostileRegistry) -> None:
    """The registry's own words; nothing was said to be pushed."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    target.tricks.append(on("POST", "/uploads/", lambda _: refuse(403, "DENIED", "requested access denied")))

    with pytest.raises(EngineFailure, match="denied: requested access denied"):
        await engine.push(name)
    assert target.manifests == {} and "Pushed" not in engine.statuses()


async def test_false_bytes_are_found_by_the_registry(engine: Engine, target: HostileRegistry) -> None:
    """A damaged blob on our disk never becomes an image there."""
    layer = await layer_of(engine.rooms, {"big": noise(100_000)})
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    await engine.push(name)
    (form,) = engine.rooms.blobs.of_layer(layer)
    path = engine.rooms.blobs.path(form.digest)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    target.blobs.clear()
    target.manifests.clear()

    with pytest.raises(EngineFailure, match="digest invalid"):
        await engine.push(name)
    assert target.manifests == {}
    path.write_bytes(content[:-1])
    with pytest.raises(EngineFailure, match="is damaged on disk"):
        await engine.push(name)


async def test_names_that_cannot_be_pushed(engine: Engine, target: HostileRegistry) -> None:
    """In dockerd's words, after the first line."""
    layer = await layer_of(engine.rooms, BASE)
    await image_of(engine.rooms, [layer], f"{target.host}/app:1")
    for name, fault, words in (
        ("nothing", NotFound, f"An image does not exist locally with the tag: {target.host}/nothing"),
        ("app:2", NotFound, f"tag does not exist: {target.host}/app:2"),
        (f"app@sha256:{'a' * 64}", InvalidInput, "cannot push a digest reference"),
    ):
        with pytest.raises(fault) as caught:
            await engine.push(f"{target.host}/{name}")
        assert str(caught.value) == words
        assert engine.statuses()[0].startswith("The push refers to repository")
    assert target.seen == []


async def test_without_credentials(engine: Engine, target: HostileRegistry) -> None:
    """Told before any layer is looked at."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    asks = {"WWW-Authenticate": 'Basic realm="more"'}
    target.tricks.append(on("GET", "/v2/", lambda _: web.Response(status=401, headers=asks)))

    with pytest.raises(EngineFailure, match="no basic auth credentials"):
        await engine.push(name)
    bearer = {"WWW-Authenticate": f'Bearer realm="http://{target.host}/token"'}
    target.tricks[:] = [
        on("GET", "/v2/", lambda _: web.Response(status=401, headers=bearer)),
        on("GET", "/token", lambda _: web.Response(status=401)),
    ]
    with pytest.raises(Unauthorized, match="unauthorized: authentication required"):
        await engine.push(name)


async def test_one_put_that_breaks_is_continued(engine: Engine, target: HostileRegistry) -> None:
    """Not only chunks: what arrived of a blob that goes in one piece is not sent again."""
    layer = await layer_of(engine.rooms, {"big": noise(1_500_000)})
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)

    async def cut(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "PUT" or (request.content_length or 0) < 1_000_000:
            return None
        held = target.uploads[request.path.rpartition("/")[2]]
        if held:
            return None
        held += await request.content.readexactly(600_000)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    target.tricks.append(cut)
    await engine.push(name)

    (form,) = engine.rooms.blobs.of_layer(layer)
    assert Digest.of(target.blobs["app"][str(form.digest)]) == form.digest
    ranges = [seen.headers.get("Content-Range") for seen in target.asked("PUT", "/uploads/")]
    assert f"600000-{form.size - 1}" in ranges and target.asked("PATCH", "/uploads/") == []


async def test_a_rate_limit_that_is_too_long_is_told(engine: Engine, target: HostileRegistry) -> None:
    """With the moment when to try again, also in the middle of an upload."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    limited = {"Retry-After": "3600"}
    target.tricks.append(
        on("POST", "/uploads/", lambda _: refuse(429, "TOOMANYREQUESTS", "limit", **limited))
    )
    with pytest.raises(
        EngineFailure,
        match=r"^toomanyrequests: limit \(the registry asks to try again in 3600 seconds, at \d\d:\d\d:\d\d UTC\)$",
    ):
        await engine.push(name)


async def test_credentials_do_not_follow_an_upload(engine: Engine, target: HostileRegistry) -> None:
    """A location at another host gets the bytes, and no Authorization."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)
    expected = "Basic " + base64.b64encode(b"me:sesame").decode()
    asks = {"WWW-Authenticate": 'Basic realm="more"'}

    async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != expected:
            return web.Response(status=401, headers=asks)
        return None

    async with hostile_registry() as other:
        moved = f"http://localhost:{other.host.partition(':')[2]}"
        other.blobs = target.blobs
        other.uploads = target.uploads

        async def elsewhere(request: web.BaseRequest) -> web.StreamResponse | None:
            if request.method != "POST":
                return None
            target.uploads["0" * 32] = bytearray()
            location = f"{moved}/v2/app/blobs/uploads/{'0' * 32}?signature=x%2Fy"
            return web.Response(status=202, headers={"Location": location})

        target.tricks += [guarded, elsewhere]
        await engine.push(name, Credentials("me", "sesame"))
        assert {seen.method for seen in other.seen} == {"PUT"}
        assert all("Authorization" not in seen.headers for seen in other.seen)
        assert all(seen.query.startswith("signature=x%2Fy&digest=sha256") for seen in other.seen)
    assert "1" in target.manifests["app"]


async def test_a_registry_may_take_its_time_to_store(
    engine: Engine, target: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a body it may be silent for longer than otherwise."""
    monkeypatch.setattr("ketchd.registry.transport.IDLE_SECONDS", 1.0)
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)

    async def slow(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method == "PUT" and "/uploads/" in request.path:
            await asyncio.sleep(2.5)
        return None

    target.tricks.append(slow)
    await engine.push(name)
    assert len(target.asked("PUT", "/uploads/")) == 2  # the layer and the config, each once


async def test_a_registry_that_never_confirms_an_upload_ends(
    engine: Engine, target: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded number of attempts; nothing is said to be pushed."""
    monkeypatch.setattr("ketchd.registry.transport.STORING_SECONDS", 0.1)
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)

    async def silent(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method == "PUT" and "/uploads/" in request.path:
            await asyncio.sleep(3600)
        return None

    target.tricks.append(silent)
    with pytest.raises(EngineFailure, match="while the registry was silent"):
        await engine.push(name)
    assert len(target.asked("PUT", "/uploads/")) == 4
    assert target.manifests == {} and "Pushed" not in engine.statuses()


async def test_an_error_without_an_end_is_read_so_far_and_no_further(
    engine: Engine, target: HostileRegistry
) -> None:
    """The status alone is told."""
    layer = await layer_of(engine.rooms, BASE)
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [layer], name)

    async def talks(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "PUT" or "/manifests/" not in request.path:
            return None
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(65536))
        return response

    target.tricks.append(talks)
    with pytest.raises(EngineFailure, match="400"):
        await engine.push(name)


async def test_a_cancelled_push_is_given_up_at_the_registry(engine: Engine, target: HostileRegistry) -> None:
    """Ctrl-C: the upload under way is taken back, what had arrived whole is used by the next push."""
    small, big = await layer_of(engine.rooms, BASE), await layer_of(engine.rooms, {"big": noise(400_000)})
    name = f"{target.host}/app:1"
    await image_of(engine.rooms, [small, big], name)
    halted = asyncio.Event()

    async def halt(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method == "PUT" and (request.content_length or 0) > 300_000:
            halted.set()
            await asyncio.sleep(3600)
        return None

    target.tricks.append(halt)
    pushing = asyncio.create_task(engine.push(name))
    await halted.wait()
    await until(lambda: "Pushed" in engine.statuses(small.short))
    pushing.cancel()
    await asyncio.wait([pushing])

    assert pushing.cancelled() and len(target.asked("DELETE", "/uploads/")) == 1 and target.uploads == {}
    assert engine.rooms.leases.held() == set() and engine.staged() == []
    target.tricks.clear()
    await engine.push(name)
    assert engine.statuses(small.short)[-1] == "Layer already exists"
    assert engine.statuses(big.short)[-1] == "Pushed" and "1" in target.manifests["app"]
