"""Mirrors of any registry by hosts.toml, and docker-registry as a pull-through cache."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from aiohttp import web
from registry.conftest import Engine, engine_below, need, noise

from ketch_testing.certificates import Authority
from ketch_testing.hostile import HostileRegistry, digest_of, hostile_registry, on
from ketch_testing.machine import registry
from ketch_testing.rooms import image_of, layer_of, tar_of
from ketch_wire.faults import EngineFailure
from ketchd.registry.endpoints import Settings
from ketchd.registry.tokens import Credentials

BASE = tar_of({"a": b"base"})
ME = Credentials("me", "sesame")


@pytest.fixture
async def mirror() -> AsyncIterator[HostileRegistry]:
    """The mirror."""
    async with hostile_registry() as made:
        yield made


@pytest.fixture
async def mirrored(
    tmp_path: Path, hostile: HostileRegistry, mirror: HostileRegistry
) -> AsyncIterator[Engine]:
    """An engine for which `mirror` is asked before `hostile`."""
    write(tmp_path, hostile.host, mirror.host, '["pull"]')
    async with engine_below(
        tmp_path / "data", Settings(certificate_directories=(str(tmp_path / "certs.d"),))
    ) as made:
        yield made


def write(root: Path, host: str, mirror: str, capabilities: str) -> None:
    directory = root / "certs.d" / host
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text(
        f'server = "http://{host}"\n[host."http://{mirror}"]\ncapabilities = {capabilities}\n'
    )


def copy(source: HostileRegistry, target: HostileRegistry) -> None:
    target.blobs, target.manifests = dict(source.blobs), dict(source.manifests)


async def test_tags_are_resolved_upstream_and_content_comes_from_the_mirror(
    mirrored: Engine, hostile: HostileRegistry, mirror: HostileRegistry
) -> None:
    """A mirror that is not trusted to resolve cannot say what a tag is; it gets no credentials, but the namespace."""
    image = hostile.put_image("app", "1", [BASE])
    copy(hostile, mirror)
    mirror.manifests["app"] = {**mirror.manifests["app"], "1": (b"{}", "text/plain")}

    await mirrored.pull(f"{hostile.host}/app:1", ME)

    assert [(seen.method, seen.path) for seen in hostile.seen] == [("HEAD", "/v2/app/manifests/1")]
    assert {seen.path for seen in mirror.seen} == {
        f"/v2/app/manifests/{image.digest}",
        f"/v2/app/blobs/{digest_of(image.config)}",
        f"/v2/app/blobs/{image.layer_digests[0]}",
    }
    assert all(seen.query == f"ns={hostile.host.replace(':', '%3A')}" for seen in mirror.seen)
    assert all("Authorization" not in seen.headers for seen in mirror.seen)


async def test_a_trusted_mirror_resolves_tags(
    tmp_path: Path, hostile: HostileRegistry, mirror: HostileRegistry
) -> None:
    """Then upstream is not asked at all."""
    write(tmp_path, hostile.host, mirror.host, '["pull", "resolve"]')
    mirror.put_image("app", "1", [BASE])
    settings = Settings(certificate_directories=(str(tmp_path / "certs.d"),))
    async with engine_below(tmp_path / "data", settings) as engine:
        await engine.pull(f"{hostile.host}/app:1")
    assert hostile.seen == []


@pytest.mark.parametrize("trouble", ["empty", "down", "false", "refuses", "errors", "truncated"])
async def test_whatever_ails_the_mirror_upstream_helps(
    mirrored: Engine, hostile: HostileRegistry, mirror: HostileRegistry, trouble: str
) -> None:
    """Missing, gone, lying, refusing, failing: the pull succeeds."""
    image = hostile.put_image("app", "1", [BASE, tar_of({"big": noise(1_500_000)})])
    copy(hostile, mirror)
    if trouble == "empty":
        mirror.blobs, mirror.manifests = {}, {}
    elif trouble == "false":
        mirror.blobs = {"app": {digest: content[::-1] for digest, content in mirror.blobs["app"].items()}}
    elif trouble == "truncated":
        mirror.blobs = {"app": {digest: content[:-9] for digest, content in mirror.blobs["app"].items()}}

    async def trick(request: web.BaseRequest) -> web.StreamResponse | None:
        if trouble == "down":
            assert request.transport is not None
            request.transport.abort()
        if trouble in ("refuses", "errors", "down"):
            return web.Response(status=401 if trouble == "refuses" else 500)
        return None

    mirror.tricks.append(trick)

    image_id = await mirrored.pull(f"{hostile.host}/app:1")

    assert str(image_id) == digest_of(image.config)


async def test_a_push_never_goes_to_a_mirror(
    mirrored: Engine, hostile: HostileRegistry, mirror: HostileRegistry
) -> None:
    """Unless it may take pushes."""
    hostile.put_image("app", "1", [BASE])
    image_id = await mirrored.pull(f"{hostile.host}/app:1")
    mirror.seen.clear()
    mirrored.tag(image_id, f"{hostile.host}/app:2")

    await mirrored.push(f"{hostile.host}/app:2")

    assert mirror.seen == []


async def test_a_broken_hosts_file_is_told(
    mirrored: Engine, tmp_path: Path, hostile: HostileRegistry
) -> None:
    """With its path, instead of being passed over."""
    (tmp_path / "certs.d" / hostile.host / "hosts.toml").write_text("nonsense")

    with pytest.raises(Exception, match=r"hosts\.toml"):
        await mirrored.pull(f"{hostile.host}/app:1")


@contextlib.asynccontextmanager
async def on_a_thread(made: AbstractContextManager[str]) -> AsyncIterator[str]:
    """The cache asks its upstream as it starts, and that one answers from this loop."""
    host = await asyncio.to_thread(made.__enter__)
    try:
        yield host
    finally:
        await asyncio.to_thread(made.__exit__, None, None, None)


async def test_a_pull_through_cache(tmp_path: Path, hostile: HostileRegistry) -> None:
    """Debian's docker-registry in front of an upstream that then goes away: what was pulled once still comes."""
    need("docker-registry")
    image = hostile.put_image("me/app", "1", [BASE])
    proxy = f"proxy:\n  remoteurl: http://{hostile.host}\n"
    async with on_a_thread(registry(tmp_path / "cache", more=proxy)) as cache:
        write(tmp_path, hostile.host, cache, '["pull", "resolve"]')
        settings = Settings(certificate_directories=(str(tmp_path / "certs.d"),))
        async with engine_below(tmp_path / "one", settings) as engine:
            await engine.pull(f"{hostile.host}/me/app:1")

        async def gone(_: web.BaseRequest) -> web.StreamResponse | None:
            return web.Response(status=503)

        hostile.tricks.append(gone)
        async with engine_below(tmp_path / "two", settings) as engine:
            image_id = await engine.pull(f"{hostile.host}/me/app:1")
            assert str(image_id) == digest_of(image.config)
            with pytest.raises(EngineFailure):
                await engine.pull(f"{hostile.host}/me/other:1")


async def test_docker_hubs_mirror(tmp_path: Path, mirror: HostileRegistry) -> None:
    """`--registry-mirror`: a name without a registry comes from there, tag and all; the Hub's credentials stay here."""
    image = mirror.put_image("library/app", "1", [BASE])
    settings = Settings(mirrors=(f"http://{mirror.host}",), certificate_directories=())
    async with engine_below(tmp_path / "data", settings) as engine:
        image_id = await engine.pull("app:1", ME)
        assert engine.rooms.images.get(image_id).repo_tags == ["app:1"]
        assert engine.rooms.images.get(image_id).repo_digests == [f"app@{image.digest}"]
    assert all("Authorization" not in seen.headers for seen in mirror.seen)


async def test_docker_hubs_mirror_is_a_pull_through_cache(tmp_path: Path, hostile: HostileRegistry) -> None:
    """Debian's docker-registry in between."""
    need("docker-registry")
    image = hostile.put_image("library/app", "1", [BASE])
    proxy = f"proxy:\n  remoteurl: http://{hostile.host}\n"
    async with on_a_thread(registry(tmp_path / "cache", more=proxy)) as cache:
        settings = Settings(mirrors=(f"http://{cache}",), certificate_directories=())
        async with engine_below(tmp_path / "data", settings) as engine:
            assert str(await engine.pull("app:1")) == digest_of(image.config)
    assert hostile.asked("GET", image.layer_digests[0])


async def test_a_mirror_over_tls_with_what_its_table_says(tmp_path: Path, authority: Authority) -> None:
    """`ca` and `client` of hosts.toml; it holds for every registry by `_default`."""
    need("docker-registry")
    certificate, key = authority.issue("localhost")
    client, client_key = authority.issue("client")
    lines = f"  tls:\n    certificate: {certificate}\n    key: {key}\n    clientcas:\n      - {authority.certificate}\n"
    with registry(tmp_path / "mirror", http=lines) as found:
        host = found.replace("127.0.0.1", "localhost")
        directories = tmp_path / "certs.d"
        (directories / host).mkdir(parents=True)
        for source, name in ((authority.certificate, "ca.crt"), (client, "c.cert"), (client_key, "c.key")):
            shutil.copy(source, directories / host / name)
        settings = Settings(certificate_directories=(str(directories),))
        async with engine_below(tmp_path / "one", settings) as engine:
            layer = await layer_of(engine.rooms, {"a": b"1"})
            image_id = await image_of(engine.rooms, [layer], f"{host}/app:1")
            await engine.push(f"{host}/app:1")
        shutil.rmtree(directories / host)
        (directories / "_default").mkdir()
        (directories / "_default" / "hosts.toml").write_text(
            f'[host."https://{host}"]\ncapabilities = ["pull", "resolve"]\nca = "{authority.certificate}"\n'
            f'client = [["{client}", "{client_key}"]]\n'
        )
        async with engine_below(tmp_path / "two", settings) as engine:
            assert await engine.pull("registry.invalid/app:1") == image_id


async def test_a_mirrors_headers_are_its_own(
    tmp_path: Path, hostile: HostileRegistry, mirror: HostileRegistry
) -> None:
    """`header` of hosts.toml; neither the registry itself nor a host that the mirror leads to gets them."""
    hostile.put_image("app", "1", [BASE])
    copy(hostile, mirror)
    write(tmp_path, hostile.host, mirror.host, '["pull"]')
    with (tmp_path / "certs.d" / hostile.host / "hosts.toml").open("a") as file:
        file.write(f'[host."http://{mirror.host}".header]\nx-mine = "yes"\n')
    async with hostile_registry() as storage:
        storage.blobs = hostile.blobs
        moved = f"http://{storage.host}"
        mirror.tricks.append(
            on(
                "GET",
                "/blobs/",
                lambda request: web.Response(status=307, headers={"Location": moved + request.path}),
            )
        )
        settings = Settings(certificate_directories=(str(tmp_path / "certs.d"),))
        async with engine_below(tmp_path / "data", settings) as engine:
            await engine.pull(f"{hostile.host}/app:1")

        def given(registry: HostileRegistry) -> set[str | None]:
            return {seen.headers.get("x-mine") for seen in registry.seen}

        assert (given(mirror), given(hostile), given(storage)) == ({"yes"}, {None}, {None})
