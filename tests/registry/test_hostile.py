"""A hostile registry: false bytes, torn and endless ones, floods of errors, and attempts to get at credentials."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time

import pytest
from aiohttp import web
from registry.conftest import Engine, noise

from ketch_testing.hostile import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_INDEX,
    HostileRegistry,
    Seen,
    digest_of,
    endless,
    hostile_registry,
    on,
    refuse,
    times,
    torn,
)
from ketch_testing.rooms import tar_of
from ketch_wire.faults import EngineFailure, Fault, InvalidInput, NotFound
from ketchd.model.digest import Digest
from ketchd.registry.tokens import Credentials

BASE = tar_of({"a": b"base"})
ME = Credentials("me", "sesame")


def nothing_stays(engine: Engine) -> None:
    """No image, no layer, no lease, no staged file, no partial blob."""
    rooms = engine.rooms
    assert rooms.images.count() == 0 and rooms.leases.held() == set()
    assert engine.staged() == [] and engine.partials() == []
    assert rooms.catalogue.query("SELECT diff_id FROM layers") == []


def begin_of(seen: Seen) -> int:
    """From which byte on a blob was asked for."""
    return int(seen.headers.get("Range", "bytes=0-")[6:].partition("-")[0])


async def test_a_layer_of_other_bytes(engine: Engine, hostile: HostileRegistry) -> None:
    """Fatal, in dockerd's words, and nothing of it stays."""
    image = hostile.put_image("app", "1", [BASE])
    other = gzip.compress(tar_of({"a": b"evil"}), mtime=0)
    hostile.blobs["app"][image.layer_digests[0]] = other.ljust(len(image.layers[0]), b"\0")[
        : len(image.layers[0])
    ]

    with pytest.raises(EngineFailure) as caught:
        await engine.pull(f"{hostile.host}/app:1")
    assert caught.value.message == f"filesystem layer verification failed for digest {image.layer_digests[0]}"
    nothing_stays(engine)


async def test_a_false_config_is_named_as_one(engine: Engine, hostile: HostileRegistry) -> None:
    """It is a config that is false, not a layer."""
    hostile.put_image("app", "1", [BASE])
    config = json.loads(hostile.manifests["app"]["1"][0])["config"]
    hostile.blobs["app"][config["digest"]] = b"{" + bytes(config["size"] - 1)
    line = (
        f"error pulling image configuration: image config verification failed for digest {config['digest']}"
    )

    with pytest.raises(EngineFailure) as caught:
        await engine.pull(f"{hostile.host}/app:1")
    assert caught.value.message == line
    del hostile.blobs["app"][config["digest"]]
    with pytest.raises(EngineFailure, match="error pulling image configuration: blob unknown"):
        await engine.pull(f"{hostile.host}/app:1")
    nothing_stays(engine)


async def test_a_page_in_a_manifests_place(engine: Engine, hostile: HostileRegistry) -> None:
    """As a proxy with a login puts it there: whose answer it was, and what it said."""
    page = b"<!doctype html><title>Please log in</title>" + b"<p>" * 5000
    hostile.tricks.append(on("GET", "manifests", lambda _: web.Response(body=page, content_type="text/html")))
    hostile.tricks.append(on("HEAD", "manifests", lambda _: web.Response()))

    with pytest.raises(EngineFailure) as caught:
        await engine.pull(f"{hostile.host}/app:1")
    assert caught.value.message == f'{hostile.host} answered with what is no manifest: "Please log in"'


async def test_a_limit_is_told_in_the_registrys_words(engine: Engine, hostile: HostileRegistry) -> None:
    """A HEAD has none, so a GET asks for them: Docker Hub says there what may be done."""
    words = "You have reached your unauthenticated pull rate limit."
    hostile.tricks.append(on("HEAD", "manifests", lambda _: web.Response(status=429)))
    hostile.tricks.append(on("GET", "manifests", lambda _: refuse(429, "TOOMANYREQUESTS", words)))

    with pytest.raises(EngineFailure, match=f"^toomanyrequests: {words}"):
        await engine.pull(f"{hostile.host}/app:1")


async def test_null_lists(engine: Engine, hostile: HostileRegistry) -> None:
    """Go's empty ones: an index without manifests, a repository without tags."""
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None}).encode()
    hostile.put_manifest("app", "1", index, OCI_INDEX)
    with pytest.raises(NotFound, match="no matching manifest for linux/"):
        await engine.pull(f"{hostile.host}/app:1")
    hostile.tricks.append(on("GET", "/tags/", lambda _: web.Response(body=b'{"name":"app","tags":null}')))
    await engine.pull_all(f"{hostile.host}/app")
    assert engine.statuses() == [f"Status: Image is up to date for {hostile.host}/app"]


async def test_a_layer_that_is_garbage(engine: Engine, hostile: HostileRegistry) -> None:
    """False bytes that are no gzip either are told apart from a layer that is bad in itself."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(3_000_000)})])
    hostile.blobs["app"][image.layer_digests[0]] = noise(len(image.layers[0]))
    with pytest.raises(EngineFailure, match="filesystem layer verification failed"):
        await engine.pull(f"{hostile.host}/app:1")
    nothing_stays(engine)

    hostile.put_image("app", "2", [b"this is no tar" * 1000])
    with pytest.raises(InvalidInput, match="tar"):
        await engine.pull(f"{hostile.host}/app:2")
    nothing_stays(engine)


async def test_a_layer_that_unpacks_to_another(engine: Engine, hostile: HostileRegistry) -> None:
    """The config names other diff IDs than the blobs have."""
    image = hostile.put_image("app", "1", [BASE])
    config = image.config.replace(digest_of(BASE).encode(), digest_of(b"other").encode())
    document = image.manifest.replace(digest_of(image.config).encode(), digest_of(config).encode())
    hostile.put_blob("app", config)
    hostile.put_manifest("app", "1", document, "application/vnd.docker.distribution.manifest.v2+json")

    with pytest.raises(EngineFailure, match="layers from manifest don't match image configuration"):
        await engine.pull(f"{hostile.host}/app:1")
    assert engine.rooms.images.count() == 0


async def test_a_manifest_of_other_bytes(engine: Engine, hostile: HostileRegistry) -> None:
    """Asked by digest, it must be that digest."""
    image = hostile.put_image("app", "1", [BASE])
    other = image.manifest.replace(b'"schemaVersion": 2', b'"schemaVersion":  2')
    hostile.manifests["app"][image.digest] = (other, "application/vnd.docker.distribution.manifest.v2+json")

    with pytest.raises(EngineFailure, match=f"manifest verification failed for digest {image.digest}"):
        await engine.pull(f"{hostile.host}/app@{image.digest}")
    nothing_stays(engine)


async def test_a_config_of_other_bytes(engine: Engine, hostile: HostileRegistry) -> None:
    """Its digest is the image's ID."""
    image = hostile.put_image("app", "1", [BASE])
    hostile.blobs["app"][digest_of(image.config)] = image.config.replace(b"amd64", b"arm64")

    with pytest.raises(EngineFailure, match="verification failed"):
        await engine.pull(f"{hostile.host}/app:1")
    nothing_stays(engine)


@pytest.mark.parametrize("part", ["manifests", "blobs"])
async def test_bodies_without_an_end(engine: Engine, hostile: HostileRegistry, part: str) -> None:
    """Never more is read than the manifest promised, or a manifest may have."""
    hostile.put_image("app", "1", [BASE])
    hostile.tricks.append(endless(f"/{part}/"))

    with pytest.raises(Fault):
        await engine.pull(f"{hostile.host}/app:1")
    nothing_stays(engine)


async def test_a_layer_without_an_end(engine: Engine, hostile: HostileRegistry) -> None:
    """It is cut at its size; then its digest is false."""
    image = hostile.put_image("app", "1", [BASE])
    hostile.tricks.append(endless(image.layer_digests[0]))

    with pytest.raises(EngineFailure, match="filesystem layer verification failed"):
        await engine.pull(f"{hostile.host}/app:1")
    nothing_stays(engine)


async def test_a_body_that_breaks_off_is_continued(engine: Engine, hostile: HostileRegistry) -> None:
    """From where it broke, with a range; nothing is fetched twice."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(3_000_000)})])
    blob, digest = image.layers[0], image.layer_digests[0]
    for after in (1_200_000, 2_500_000):
        hostile.tricks.append(times(1, torn(digest, blob, after)))

    await engine.pull(f"{hostile.host}/app:1")

    asked = [seen.headers.get("Range") for seen in hostile.asked("GET", digest)]
    assert asked == [None, "bytes=2500000-"] or (asked[0] is None and len(asked) == 3)
    assert "Retrying in 1 second" in engine.statuses(digest[7:19])
    assert engine.rooms.blobs.path(Digest(digest)).read_bytes() == blob


async def test_a_body_that_always_breaks_off(engine: Engine, hostile: HostileRegistry) -> None:
    """Without any progress the attempts end; what arrived stays for the next pull, which needs only the rest."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(3_000_000)})])
    blob, digest = image.layers[0], image.layer_digests[0]
    hostile.tricks.append(torn(digest, blob, 2_000_000))

    with pytest.raises(EngineFailure, match="unexpected EOF"):
        await engine.pull(f"{hostile.host}/app:1")
    starts = [begin_of(seen) for seen in hostile.asked("GET", digest)]
    assert starts == sorted(starts) and starts.count(starts[-1]) >= 2
    assert [path.name for path in engine.partials()] == [digest[7:], f"{digest[7:]}.map"]
    hostile.tricks.clear()
    hostile.seen.clear()
    await engine.pull(f"{hostile.host}/app:1")
    (seen,) = hostile.asked("GET", digest)
    assert begin_of(seen) == starts[-1] > 1_000_000


async def test_a_registry_that_ignores_ranges(engine: Engine, hostile: HostileRegistry) -> None:
    """Then everything is read again, and it is still right."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(2_000_000)})])
    blob, digest = image.layers[0], image.layer_digests[0]
    hostile.ranges = False
    hostile.tricks.append(times(1, torn(digest, blob, 1_500_000)))

    await engine.pull(f"{hostile.host}/app:1")

    assert engine.rooms.blobs.path(Digest(digest)).read_bytes() == blob


async def test_a_registry_that_answers_other_ranges(engine: Engine, hostile: HostileRegistry) -> None:
    """Bytes from elsewhere are not taken for those that were asked for."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(2_000_000)})])
    blob, digest = image.layers[0], image.layer_digests[0]

    async def elsewhere(request: web.BaseRequest) -> web.StreamResponse | None:
        if digest in request.path and "Range" in request.headers:
            return web.Response(
                status=206, body=blob, headers={"Content-Range": f"bytes 0-{len(blob) - 1}/{len(blob)}"}
            )
        return None

    hostile.tricks += [elsewhere, times(1, torn(digest, blob, 1_500_000))]
    with pytest.raises(EngineFailure, match=r"answers a request from byte \d+ with bytes from 0"):
        await engine.pull(f"{hostile.host}/app:1")


async def test_a_burst_of_errors_passes(engine: Engine, hostile: HostileRegistry) -> None:
    """500, 502, 503, 504, at every kind of request."""
    hostile.put_image("app", "1", [BASE])
    for part in ("manifests", "blobs"):
        for method in ("HEAD", "GET"):
            hostile.tricks.append(times(2, on(method, part, lambda _: web.Response(status=503))))

    await engine.pull(f"{hostile.host}/app:1")

    assert engine.statuses()[-1].startswith("Status: Downloaded")
    assert any(status.startswith("Retrying in") for status in engine.statuses())


async def test_errors_without_an_end(engine: Engine, hostile: HostileRegistry) -> None:
    """A bounded number of attempts, then the status in dockerd's words."""
    hostile.put_image("app", "1", [BASE])
    hostile.tricks.append(on("GET", "manifests", lambda _: web.Response(status=500)))

    with pytest.raises(EngineFailure, match="received unexpected HTTP status: 500 Internal Server Error"):
        await engine.pull(f"{hostile.host}/app:1")
    assert len(hostile.asked("GET", "manifests")) == 4
    nothing_stays(engine)


async def test_a_rate_limit_is_waited_for(engine: Engine, hostile: HostileRegistry) -> None:
    """Not shorter than the registry asks, and the user hears of it."""
    image = hostile.put_image("app", "1", [BASE])
    limited = refuse(429, "TOOMANYREQUESTS", "slow down", **{"Retry-After": "1"})
    hostile.tricks.append(times(1, on("GET", image.layer_digests[0], lambda _: limited)))
    began = time.monotonic()

    await engine.pull(f"{hostile.host}/app:1")

    assert time.monotonic() - began >= 1.0
    assert "Retrying in 2 seconds" in engine.statuses(image.layer_digests[0][7:19])


async def test_a_rate_limit_that_is_too_long_is_told(engine: Engine, hostile: HostileRegistry) -> None:
    """At once, with the moment when to try again."""
    hostile.put_image("app", "1", [BASE])
    hostile.tricks.append(
        on("GET", "manifests", lambda _: refuse(429, "TOOMANYREQUESTS", "limit", **{"Retry-After": "3600"}))
    )
    with pytest.raises(
        EngineFailure,
        match=r"^toomanyrequests: limit \(the registry asks to try again in 3600 seconds, at \d\d:\d\d:\d\d UTC\)$",
    ):
        await engine.pull(f"{hostile.host}/app:1")
    assert len(hostile.asked("GET", "manifests")) == 1


async def test_unauthorized_for_ever(engine: Engine, hostile: HostileRegistry) -> None:
    """However often it asks, it is answered twice."""
    hostile.put_image("app", "1", [BASE])
    asks = {"WWW-Authenticate": 'Basic realm="more"'}
    hostile.tricks.append(on("HEAD", "manifests", lambda _: web.Response(status=401, headers=asks)))

    with pytest.raises(EngineFailure, match="unauthorized: authentication required"):
        await engine.pull(f"{hostile.host}/app:1", ME)
    assert len(hostile.seen) == 2


async def test_a_token_server_that_loops(engine: Engine, hostile: HostileRegistry) -> None:
    """A token that is never accepted is fetched once more, no more."""
    hostile.put_image("app", "1", [BASE])
    asks = {"WWW-Authenticate": f'Bearer realm="http://{hostile.host}/token",service="s"'}
    hostile.tricks += [
        on("HEAD", "manifests", lambda _: web.Response(status=401, headers=asks)),
        on("GET", "/token", lambda _: web.json_response({"token": "t"})),
    ]
    with pytest.raises(EngineFailure, match="unauthorized"):
        await engine.pull(f"{hostile.host}/app:1")
    assert len(hostile.asked("GET", "/token")) == 1 and len(hostile.asked("HEAD", "manifests")) == 2


async def test_cve_2020_15157_credentials_do_not_follow_a_redirect(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """Another host gets the request without them, whatever it then asks for."""
    image = hostile.put_image("app", "1", [BASE])
    asks = {"WWW-Authenticate": 'Basic realm="more"'}
    expected = "Basic " + base64.b64encode(b"me:sesame").decode()

    async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != expected:
            return web.Response(status=401, headers=asks)
        return None

    async with hostile_registry() as other:
        other.blobs["app"] = hostile.blobs["app"]
        moved = f"http://localhost:{other.host.partition(':')[2]}"
        hostile.tricks += [
            guarded,
            on("GET", "/blobs/", lambda request: web.Response(
                status=307, headers={"Location": f"{moved}{request.path}?signature=x%2Fy"})),
        ]  # fmt: skip
        await engine.pull(f"{hostile.host}/app:1", ME)
        got = other.asked("GET", image.layer_digests[0])
        assert len(got) == 1 and got[0].query == "signature=x%2Fy"
        assert all("Authorization" not in seen.headers for seen in other.seen)

        other.seen.clear()
        other.tricks.append(on("GET", "/blobs/", lambda _: web.Response(status=401, headers=asks)))
        hostile.put_image("app", "2", [tar_of({"other": b"x"})])
        with pytest.raises(EngineFailure, match="unauthorized"):
            await engine.pull(f"{hostile.host}/app:2", ME)
        assert all("Authorization" not in seen.headers for seen in other.seen)


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "/v2/app/blobs/again", "http://[", ""]
)
async def test_redirects_that_lead_nowhere(engine: Engine, hostile: HostileRegistry, location: str) -> None:
    """Other schemes, circles and nonsense are faults."""
    hostile.put_image("app", "1", [BASE])
    hostile.tricks.append(
        on("GET", "/blobs/", lambda _: web.Response(status=302, headers={"Location": location}))
    )
    with pytest.raises(EngineFailure, match="redirect"):
        await engine.pull(f"{hostile.host}/app:1")
    assert len(hostile.asked("GET", "/blobs/")) <= 10


async def test_a_token_server_in_plain_text_gets_no_password(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """Unless the registry itself is reached in plain text, as here: then it may."""
    hostile.put_image("app", "1", [BASE])
    async with hostile_registry() as other:
        other.tricks.append(on("GET", "/token", lambda _: web.json_response({"token": "good"})))
        asks = {"WWW-Authenticate": f'Bearer realm="http://{other.host}/token",service="s"'}

        async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
            if request.headers.get("Authorization") != "Bearer good":
                return web.Response(status=401, headers=asks)
            return None

        hostile.tricks.append(guarded)
        await engine.pull(f"{hostile.host}/app:1", ME)
        (asked,) = other.seen
        assert asked.query == "service=s&account=me&scope=repository%3Aapp%3Apull"
        assert asked.headers["Authorization"].startswith("Basic ")
        assert all("Basic" not in seen.headers.get("Authorization", "") for seen in hostile.seen)


async def test_a_silent_registry_ends(
    engine: Engine, hostile: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is never answered does not hang for ever."""
    hostile.put_image("app", "1", [BASE])
    monkeypatch.setattr("ketchd.registry.transport.CONNECT_SECONDS", 0.05)
    monkeypatch.setattr("ketchd.registry.transport.HEADER_SECONDS", 0.05)

    async def silent(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method == "HEAD":
            await asyncio.sleep(3600)
        return None

    hostile.tricks.append(silent)
    with pytest.raises(EngineFailure, match="while the registry was silent"):
        await engine.pull(f"{hostile.host}/app:1")


async def test_a_dripping_registry_ends(
    engine: Engine, hostile: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that comes byte by byte is given up, though it is never silent for long."""
    from ketchd.registry import download, retries

    monkeypatch.setattr(download, "Pace", lambda: retries.Pace(window_seconds=0.05, least_bytes=1000))
    image = hostile.put_image("app", "1", [BASE])

    async def drip(request: web.BaseRequest) -> web.StreamResponse | None:
        if image.layer_digests[0] not in request.path:
            return None
        response = web.StreamResponse()
        response.content_length = len(image.layers[0])
        await response.prepare(request)
        for byte in image.layers[0][:-1]:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.01)
        return response

    hostile.tricks.append(drip)
    with pytest.raises(EngineFailure, match="sends too slowly"):
        await engine.pull(f"{hostile.host}/app:1")


async def test_a_token_that_runs_out_in_the_middle_of_a_blob(
    engine: Engine, hostile: HostileRegistry
) -> None:
    """The rest is asked for with a new one."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(3_000_000)})])
    blob, digest = image.layers[0], image.layer_digests[0]
    asks = {"WWW-Authenticate": f'Bearer realm="http://{hostile.host}/token",service="s"'}
    given = 0

    async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal given
        if request.path == "/token":
            given += 1
            return web.json_response({"token": f"t{given}"})
        is_resumed = digest in request.path and "Range" in request.headers
        wanted = "Bearer t2" if is_resumed else f"Bearer t{given}"
        if given and request.headers.get("Authorization") == wanted:
            return None
        return web.Response(status=401, headers=asks)

    hostile.tricks += [guarded, times(1, torn(digest, blob, 1_500_000))]
    await engine.pull(f"{hostile.host}/app:1")

    assert given == 2
    assert [begin_of(seen) > 0 for seen in hostile.asked("GET", digest)] == [False, True, True]
    assert engine.rooms.blobs.path(Digest(digest)).read_bytes() == blob


@pytest.mark.parametrize("depth", [3, 4])
async def test_indexes_in_indexes_end(engine: Engine, hostile: HostileRegistry, depth: int) -> None:
    """Three deep is followed, more is a trap; one that holds itself cannot be."""
    image = hostile.put_image("app", "1", [BASE])
    inner = {"mediaType": DOCKER_MANIFEST, "digest": image.digest, "size": len(image.manifest)}
    for _ in range(depth):
        content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]}).encode()
        inner = {"mediaType": OCI_INDEX, "digest": digest_of(content), "size": len(content)}
        hostile.put_manifest("app", "1", content, OCI_INDEX)
    if depth == 3:
        assert str(await engine.pull(f"{hostile.host}/app:1")) == digest_of(image.config)
        return
    with pytest.raises(InvalidInput, match="nested too deeply"):
        await engine.pull(f"{hostile.host}/app:1")
    nothing_stays(engine)


async def test_a_bomb_is_told(engine: Engine, hostile: HostileRegistry) -> None:
    """A frame that asks for a gigabyte of memory to be read is refused before it gets any, and nothing of it stays."""
    header = (
        b"\x28\xb5\x2f\xfd" + b"\x00" + b"\xa0"
    )  # one frame, window 2^30, unknown size (RFC 8878, 3.1.1.1)
    bomb = header + b"\x03\x00\x00\x00"
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(b"")]}}
    ).encode()
    document = {
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "size": len(config), "digest": hostile.put_blob("app", config)},
        "layers": [{"mediaType": DOCKER_LAYER, "size": len(bomb), "digest": hostile.put_blob("app", bomb)}],
    }  # fmt: skip
    hostile.put_manifest("app", "1", json.dumps(document).encode(), DOCKER_MANIFEST)
    with pytest.raises(InvalidInput, match=r"zstd: invalid data: .*memory"):
        await engine.pull(f"{hostile.host}/app:1")
    nothing_stays(engine)


@pytest.mark.parametrize("what", ["manifest", "config"])
async def test_a_small_body_that_always_breaks_off(
    engine: Engine, hostile: HostileRegistry, what: str
) -> None:
    """A half document is none: tried again, then told."""
    image = hostile.put_image("app", "1", [BASE])
    content = image.manifest if what == "manifest" else image.config
    part = f"/manifests/{image.digest}" if what == "manifest" else f"/blobs/{digest_of(image.config)}"
    hostile.tricks.append(torn(part, content, len(content) - 5))
    with pytest.raises(EngineFailure, match="unexpected EOF"):
        await engine.pull(f"{hostile.host}/app:1")
    assert len(hostile.asked("GET", part)) == 4
    nothing_stays(engine)
