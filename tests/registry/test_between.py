"""What stands between ketchd and a registry: proxies, plain and by CONNECT, and lines that break, to Debian's docker-registry."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import needs_root
from registry.conftest import Engine, engine_below, need, noise

from ketch_testing.certificates import Authority
from ketch_testing.hostile import HostileRegistry
from ketch_testing.machine import Machine, registry
from ketch_testing.proxies import BreakingLine, HttpProxy, listening
from ketch_testing.rooms import image_of, layer_of
from ketch_testing.tars import Member, make_tar
from ketch_wire.faults import EngineFailure
from ketchd.registry import endpoints, uploads
from ketchd.registry.endpoints import Settings


@pytest.fixture
def loopback_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy is asked for loopback addresses, and they may be asked without verification; here they are others'."""
    monkeypatch.setattr(endpoints, "_LOOPBACK", ())
    monkeypatch.setattr(endpoints, "_is_loopback", lambda _: False)


async def test_a_proxy_by_connect(tmp_path: Path, authority: Authority, loopback_is_far: None) -> None:
    """TLS goes through it end to end, with its password; push and pull, and a host that is not to go through it."""
    need("docker-registry")
    certificate, key = authority.issue("registry.invalid")
    lines = f"  tls:\n    certificate: {certificate}\n    key: {key}\n"
    with registry(tmp_path / "registry", http=lines) as host:
        directory = tmp_path / "certs.d" / "registry.invalid"
        directory.mkdir(parents=True)
        shutil.copy(authority.certificate, directory / "ca.crt")
        proxy = HttpProxy({"registry.invalid:443": host}, credentials="me:sesame")
        name = "registry.invalid/app:1"
        async with listening(proxy.serve) as address:

            def settings(user: str, bypass: str = "") -> Settings:
                environment = {"HTTPS_PROXY": f"http://{user}@{address}", "NO_PROXY": bypass}
                return Settings(certificate_directories=(str(tmp_path / "certs.d"),), environment=environment)

            async with engine_below(tmp_path / "one", settings("me:sesame")) as engine:
                image_id = await image_of(engine.rooms, [await layer_of(engine.rooms, {"a": b"1"})], name)
                await engine.push(name)
            async with engine_below(tmp_path / "two", settings("me:sesame")) as engine:
                assert await engine.pull(name) == image_id
            assert set(proxy.asked) == {"CONNECT registry.invalid:443"}

            async with engine_below(tmp_path / "three", settings("me:wrong")) as engine:
                with pytest.raises(EngineFailure, match="Proxy Authentication Required"):
                    await engine.pull(name)
            proxy.asked.clear()
            async with engine_below(
                tmp_path / "four", settings("me:sesame", "*.invalid, 10.0.0.0/8")
            ) as engine:
                with pytest.raises(EngineFailure, match=r"registry\.invalid"):
                    await engine.pull(name)
            assert proxy.asked == []


async def test_a_proxy_in_plain_text(tmp_path: Path, real: str) -> None:
    """By absolute URLs, for an insecure registry that only the proxy can find."""
    proxy = HttpProxy({"registry.invalid:5000": real})
    name = "registry.invalid:5000/app:1"
    async with listening(proxy.serve) as address:
        settings = Settings(
            insecure=("registry.invalid:5000",), certificate_directories=(),
            environment={"HTTP_PROXY": address, "HTTPS_PROXY": "http://127.0.0.1:1"},
        )  # fmt: skip
        async with engine_below(tmp_path / "one", settings) as engine:
            image_id = await image_of(engine.rooms, [await layer_of(engine.rooms, {"a": b"1"})], name)
            await engine.push(name)
        async with engine_below(tmp_path / "two", settings) as engine:
            assert await engine.pull(name) == image_id
    assert "GET http://registry.invalid:5000/v2/" in proxy.asked
    assert all(asked.split(" ")[1].startswith("http://registry.invalid:5000/v2/") for asked in proxy.asked)


@pytest.mark.parametrize("chunk", [uploads.CHUNK, 400_000], ids=["one PUT", "chunks"])
async def test_a_push_over_a_line_that_breaks(
    engine: Engine, real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Debian's registry is asked what it has, and has the whole blob in the end; another engine pulls the same image."""
    monkeypatch.setattr(uploads.Upload.__init__, "__kwdefaults__", {"source": "", "chunk": chunk})
    line = BreakingLine(real, most=700_000, breaks=3)
    async with listening(line.serve) as address:
        name = f"{address}/app:1"
        layer = await layer_of(engine.rooms, {"big": noise(2_000_000)})
        image_id = await image_of(engine.rooms, [layer], name)
        await engine.push(name)
        assert line.breaks == 0
        assert any(status.startswith("Retrying in") for status in engine.statuses())
    async with engine_below(tmp_path / "other") as other:
        assert await other.pull(f"{real}/app:1") == image_id


async def test_a_pull_over_a_line_that_breaks(engine: Engine, real: str, tmp_path: Path) -> None:
    """The rest is fetched over the next connection; the blob is whole and the image the same."""
    name = f"{real}/app:1"
    layer = await layer_of(engine.rooms, {"big": noise(6_000_000)})
    image_id = await image_of(engine.rooms, [layer], name)
    await engine.push(name)
    line = BreakingLine(real, most=2_000_000, breaks=2)
    async with listening(line.serve) as address, engine_below(tmp_path / "other") as other:
        assert await other.pull(f"{address}/app:1") == image_id
    assert line.breaks == 0


async def test_no_proxy_for_this_host(tmp_path: Path, hostile: HostileRegistry) -> None:
    """Whatever the environment says, as in Go."""
    hostile.put_image("app", "1", [])
    settings = Settings(certificate_directories=(), environment={"HTTP_PROXY": "http://127.0.0.1:1"})
    async with engine_below(tmp_path / "data", settings) as engine:
        await engine.pull(f"{hostile.host}/app:1")
    assert {seen.headers["Host"] for seen in hostile.seen} == {hostile.host}


@pytest.mark.root
@needs_root
async def test_proxies_by_configuration(tmp_path: Path, real: str) -> None:
    """`proxies` of daemon.json go before the environment's; `info` shows them without their password."""
    proxy = HttpProxy({"registry.invalid:5000": real}, credentials="me:sesame")
    name = "registry.invalid:5000/app:1"
    made = Machine(
        Path(tempfile.mkdtemp(prefix="ketch-test-")), flags=("--insecure-registry", "registry.invalid:5000")
    )
    async with listening(proxy.serve) as address:
        settings = {
            "http-proxy": f"http://me:sesame@{address}",
            "https-proxy": "http://127.0.0.1:1",
            "no-proxy": "a.example",
        }
        (made.base / "daemon.json").write_text(json.dumps({"proxies": settings}))
        try:
            await asyncio.to_thread(made.start)
            shown = await asyncio.to_thread(made.json, "GET", "/info")
            assert [shown[key] for key in ("HttpProxy", "HttpsProxy", "NoProxy")] == [
                f"http://xxxxx:xxxxx@{address}", "http://127.0.0.1:1", "a.example",
            ]  # fmt: skip
            tar = make_tar(Member("a", data=b"1"))
            await asyncio.to_thread(made.run, "ketch", "import", "-", name, stdin=tar)
            for words in (("push", name), ("rmi", name), ("pull", name)):
                await asyncio.to_thread(made.run, "ketch", *words)
        finally:
            await asyncio.to_thread(made.close)
    assert "GET http://registry.invalid:5000/v2/" in proxy.asked
    assert made.leftovers() == []
