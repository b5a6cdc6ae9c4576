"""How the registries that people use speak: their challenges, their token answers, and odd but legal ways to serve an image."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import zstandard
from aiohttp import web
from registry.conftest import Engine

from ketch_testing.hostile import DOCKER_MANIFEST, HostileRegistry, digest_of, hostile_registry, on
from ketch_testing.rooms import image_of, layer_of, tar_of
from ketch_wire.faults import Fault
from ketchd.model.digest import Digest
from ketchd.registry import caller
from ketchd.registry.tokens import Credentials

BASE = tar_of({"a": b"base"})
LONG = base64.b64encode(bytes(range(256)) * 8).decode()  # as ECR's and Google's passwords are


@dataclass(frozen=True, slots=True)
class Dialect:
    """challenge: with {host} for the registry's. answer: of the token server, T being the token; None for basic. user, password:
    as its users log in."""

    challenge: tuple[str, ...]
    answer: dict[str, Any] | None
    user: str = "me"
    password: str = "sesame"


DIALECTS = {
    "hub": Dialect(
        ('Bearer realm="http://{host}/token",service="registry.docker.io",scope="repository:me/app:pull"',),
        {"token": "T", "access_token": "T", "expires_in": 300, "issued_at": "2026-01-01T00:00:00.123456789Z"},
    ),
    "ghcr": Dialect(('Bearer realm="http://{host}/token",service="ghcr.io",scope="repository:user/image:pull"',), {"token": "T"}),
    "quay": Dialect(('Bearer realm="http://{host}/v2/auth",service="quay.io"',), {"token": "T"}, user="me+robot"),
    "harbor": Dialect(
        ('Bearer realm="http://{host}/service/token",service="harbor-registry"',),
        {"token": "T", "access_token": "", "expires_in": 1800, "issued_at": "2026-01-01T00:00:00Z"}, user="robot$me",
    ),
    "google": Dialect(
        ('Bearer realm="http://{host}/v2/token",service="europe-docker.pkg.dev"',),
        {"token": "T", "expires_in": 43200, "issued_at": "2026-01-01T00:00:00Z"}, user="oauth2accesstoken", password=LONG,
    ),
    "azure": Dialect(
        ('Bearer realm="http://{host}/oauth2/token",service="me.azurecr.io"', 'Basic realm="me.azurecr.io"'), {"access_token": "T"}
    ),
    "amazon": Dialect(('Basic realm="http://{host}/",service="ecr.amazonaws.com"',), None, user="AWS", password=LONG),
    "gitlab": Dialect(
        ('Bearer realm="http://{host}/jwt/auth",service="container_registry",error="invalid_token"',),
        {"token": "T", "expires_in": 900},
    ),
    "artifactory": Dialect(('Basic realm="Artifactory Realm", Bearer realm="http://{host}/token",service="{host}"',), {"token": "T"}),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
async def test_every_registrys_way_to_ask(engine: Engine, hostile: HostileRegistry, dialect: Dialect) -> None:
    """Login, push and pull with its kind of credentials; the password goes to the token server alone where there is one."""
    basic = "Basic " + base64.b64encode(f"{dialect.user}:{dialect.password}".encode()).decode()
    wanted = basic if dialect.answer is None else "Bearer T"
    given: list[str] = []

    async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
        if not request.path.startswith("/v2/") or request.path in ("/v2/auth", "/v2/token"):
            assert dialect.answer is not None
            given.append(request.headers.get("Authorization", ""))
            return web.json_response(dialect.answer)
        if request.headers.get("Authorization") == wanted:
            return None
        answer = web.Response(status=401)
        for challenge in dialect.challenge:
            answer.headers.add("WWW-Authenticate", challenge.replace("{host}", hostile.host))
        return answer

    hostile.tricks.append(guarded)
    credentials = Credentials(dialect.user, dialect.password)
    await engine.rooms.registry.login(replace(credentials, server=hostile.host))
    name = f"{hostile.host}/me/app:1"
    image_id = await image_of(engine.rooms, [await layer_of(engine.rooms, {"a": b"1"})], name)
    await engine.push(name, credentials)
    engine.rooms.images.remove(image_id)
    assert await engine.pull(name, credentials) == image_id
    assert set(given) == (set() if dialect.answer is None else {basic})
    shown = {seen.headers.get("Authorization", "") for seen in hostile.seen if "/me/app/" in seen.path}
    assert shown == {wanted}


PAGE = b"<html>\r\n<head><title>403 Forbidden</title></head>\r\n<body>" + b"x" * 200_000


@pytest.mark.parametrize(
    ("status", "body", "pulled"),
    [
        (401, b"", 'unauthorized: authentication required (the token server {host} answered 401 Unauthorized)'),
        (401, b"go\naway", 'unauthorized: authentication required (the token server {host} answered 401 Unauthorized: "go away")'),
        (403, b"", "the token server {host} answered 403 Forbidden"),
        (403, PAGE, 'the token server {host} answered 403 Forbidden: "403 Forbidden"'),
        (403, b'{"details":"not you"}', "denied: not you"),
        (404, PAGE, 'the token server {host} answered 404 Not Found: "403 Forbidden"'),
        (200, PAGE, 'the token server {host} gave what is not JSON instead of a token: "403 Forbidden"'),
        (200, b"", 'the token server {host} gave what is not JSON instead of a token: ""'),
    ],
)  # fmt: skip
async def test_a_token_server_that_speaks_no_json(
    engine: Engine, hostile: HostileRegistry, status: int, body: bytes, pulled: str
) -> None:
    """One line that names it, with its status and what it said; for a login too."""

    async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.Response(status=status, body=body, content_type="text/html")
        challenge = f'Bearer realm="http://{hostile.host}/token",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    hostile.tricks.append(guarded)
    line = pulled.format(host=hostile.host)
    with pytest.raises(Fault) as refused:
        await engine.pull(f"{hostile.host}/a:1")
    assert refused.value.message.removeprefix(f'Head "http://{hostile.host}/v2/a/manifests/1": ') == line
    with pytest.raises(Fault) as refused:
        await engine.rooms.registry.login(Credentials("me", "sesame", server=hostile.host))
    own = line.replace("authentication required", "incorrect username or password")
    assert refused.value.message.removeprefix(f'Get "http://{hostile.host}/v2/": ') == own


async def test_a_registry_hears_for_whom_it_is_asked(engine: Engine, hostile: HostileRegistry) -> None:
    """The registry and its token server, in the User-Agent, as from dockerd; X-Meta- headers are for the registry alone."""

    async def guarded(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"token": "T"})
        challenge = f'Bearer realm="http://{hostile.host}/token",service="s"'
        ok = request.headers.get("Authorization") == "Bearer T"
        return None if ok else web.Response(status=401, headers={"WWW-Authenticate": challenge})

    hostile.tricks.append(guarded)
    hostile.put_image("a", "1", [BASE])
    caller.ask_for({"User-Agent": "Docker-Client/28.2.2 (linux)", "X-Meta-Team": "a", "X-Other": "b"})
    await engine.pull(f"{hostile.host}/a:1")
    assert {seen.path.split("/")[1] for seen in hostile.seen} == {"v2", "token"}
    wanted = rf"{caller.USER_AGENT} UpstreamClient(Docker-Client/28.2.2 \(linux\))"
    assert {seen.headers["User-Agent"] for seen in hostile.seen} == {wanted}
    for seen in hostile.seen:
        assert seen.headers.get("X-Meta-Team") == (None if seen.path == "/token" else "a")
        assert "X-Other" not in seen.headers


# -- odd, and legal


def _no_head(registry: HostileRegistry) -> None:
    registry.tricks.append(on("HEAD", "/manifests/", lambda _: web.Response(status=405)))


def _head_finds_nothing(registry: HostileRegistry) -> None:
    registry.tricks.append(on("HEAD", "/manifests/", lambda _: web.Response(status=404)))


def _no_digest_header(registry: HostileRegistry) -> None:
    async def bare(request: web.BaseRequest) -> web.StreamResponse | None:
        if "/manifests/" not in request.path:
            return None
        content, media_type = registry.manifests["app"][request.path.rpartition("/")[2]]
        return web.Response(body=content, headers={"Content-Type": media_type})

    registry.tricks.append(bare)


def _typed(text: str) -> Callable[[HostileRegistry], None]:
    def change(registry: HostileRegistry) -> None:
        content, _ = registry.manifests["app"]["1"]
        registry.put_manifest("app", "1", content, text)

    return change


def _rewritten(**changes: Any) -> Callable[[HostileRegistry], None]:
    """Other keys of the manifest; None takes one away."""

    def change(registry: HostileRegistry) -> None:
        content, media_type = registry.manifests["app"]["1"]
        document = {**json.loads(content), **changes}
        kept = {key: value for key, value in document.items() if value is not None}
        registry.put_manifest("app", "1", json.dumps(kept).encode(), media_type)

    return change


def _packed(pack: Callable[[bytes], bytes]) -> Callable[[HostileRegistry], None]:
    """The layer in another compression than its media type says: its bytes decide."""

    def change(registry: HostileRegistry) -> None:
        document = json.loads(registry.manifests["app"]["1"][0])
        blob = pack(BASE)
        document["layers"][0] |= {"digest": registry.put_blob("app", blob), "size": len(blob)}
        registry.put_manifest("app", "1", json.dumps(document).encode(), DOCKER_MANIFEST)

    return change


def _without_length(registry: HostileRegistry) -> None:
    async def chunked(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "GET" or "/blobs/" not in request.path:
            return None
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(registry.blobs["app"][request.path.rpartition("/")[2]])
        return response

    registry.tricks.append(chunked)


def _index_without_platforms(registry: HostileRegistry) -> None:
    content, _ = registry.manifests["app"]["1"]
    entry = {"mediaType": DOCKER_MANIFEST, "size": len(content), "digest": digest_of(content)}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    registry.put_manifest("app", "1", json.dumps(index).encode(), index["mediaType"])  # type: ignore[arg-type]


ODD = {
    "no HEAD": _no_head,
    "HEAD finds nothing": _head_finds_nothing,
    "no digest in the headers": _no_digest_header,
    "charset": _typed(f"{DOCKER_MANIFEST}; charset=utf-8"),
    "application/json": _typed("application/json"),
    "text/plain": _typed("text/plain; charset=utf-8"),
    "capitals": _typed(DOCKER_MANIFEST.upper()),
    "no media type": _rewritten(mediaType=None),
    "keys of the future": _rewritten(future={"layers2": []}, annotations={"a": "b"}),
    "large": _rewritten(annotations={f"key{number}": "v" * 1000 for number in range(3800)}),
    "zstd called gzip": _packed(zstandard.ZstdCompressor().compress),
    "plain called gzip": _packed(bytes),
    "two gzip members": _packed(
        lambda tar: gzip.compress(tar[:1000], mtime=0) + gzip.compress(tar[1000:], mtime=0)
    ),
    "no lengths": _without_length,
    "an index without platforms": _index_without_platforms,
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
async def test_odd_but_legal(
    engine: Engine, hostile: HostileRegistry, change: Callable[[HostileRegistry], None]
) -> None:
    """The image comes, and what was served is kept and pushed again byte for byte."""
    image = hostile.put_image("app", "1", [BASE])
    change(hostile)
    name = f"{hostile.host}/app:1"

    image_id = await engine.pull(name)

    assert image_id == Digest.of(image.config)
    assert engine.rooms.images.get(image_id).layers == (Digest.of(BASE),)
    async with hostile_registry() as target:
        engine.tag(image_id, f"{target.host}/copy:1")
        await engine.push(f"{target.host}/copy:1")
        served = hostile.manifests["app"]["1"][0]
        if b'"manifests"' in served:
            served = image.manifest  # another name is one of the image
        assert target.manifests["copy"]["1"][0] == served
