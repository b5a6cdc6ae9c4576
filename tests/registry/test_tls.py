"""TLS against Debian's docker-registry: own authorities, client certificates, and what goes wrong in Go's words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry.conftest import Engine, engine_below, need

from ketch_testing.certificates import Authority
from ketch_testing.machine import registry
from ketch_testing.rooms import image_of, layer_of
from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.registry import endpoints
from ketchd.registry.endpoints import Settings


@pytest.fixture
def secure(tmp_path: Path, authority: Authority) -> Iterator[str]:
    """docker-registry behind TLS, as localhost:PORT."""
    need("docker-registry")
    certificate, key = authority.issue("localhost")
    lines = f"  tls:\n    certificate: {certificate}\n    key: {key}\n"
    with registry(tmp_path / "registry", http=lines) as host:
        yield host.replace("127.0.0.1", "localhost")


@pytest.fixture(autouse=True)
def loopback_counts_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback may be asked without verification, so here it is no loopback."""
    monkeypatch.setattr(endpoints, "_LOOPBACK", ())


async def built(engine: Engine, name: str) -> str:
    layer = await layer_of(engine.rooms, {"a": b"content"})
    await image_of(engine.rooms, [layer], name)
    return name


def settings(directory: Path, **more: tuple[str, ...]) -> Settings:
    return Settings(certificate_directories=(str(directory),), **more)


async def test_an_own_authority_is_trusted_where_it_is_named(
    tmp_path: Path, secure: str, authority: Authority
) -> None:
    """Without it nothing is sent; with it push and pull work; no restart in between."""
    async with engine_below(tmp_path / "data", settings(tmp_path / "certs.d")) as engine:
        name = await built(engine, f"{secure}/app:1")
        with pytest.raises(EngineFailure) as caught:
            await engine.push(name)
        assert caught.value.message == (
            f'Get "https://{secure}/v2/": tls: failed to verify certificate: x509: '
            "certificate signed by unknown authority"
        )
        directory = tmp_path / "certs.d" / secure
        directory.mkdir(parents=True)
        shutil.copy(authority.certificate, directory / "ca.crt")
        await engine.push(name)
        await engine.pull(name)


async def test_an_insecure_registry_is_not_verified(tmp_path: Path, secure: str) -> None:
    """By name and by network."""
    for number, named in enumerate((secure, "127.0.0.0/8")):
        wanted = settings(tmp_path, insecure=(named, "::1/128"))
        async with engine_below(tmp_path / f"data{number}", wanted) as engine:
            await engine.push(await built(engine, f"{secure}/app{number}:1"))


async def test_a_certificate_for_another_name(tmp_path: Path, secure: str, authority: Authority) -> None:
    """Trusted, but not this host's."""
    host = secure.replace("localhost", "127.0.0.1")
    directory = tmp_path / "certs.d" / host
    directory.mkdir(parents=True)
    shutil.copy(authority.certificate, directory / "ca.crt")
    async with engine_below(tmp_path / "data", settings(tmp_path / "certs.d")) as engine:
        with pytest.raises(EngineFailure, match=r"x509: certificate is not valid for 127\.0\.0\.1"):
            await engine.pull(f"{host}/app:1")


async def test_plain_text_where_tls_is_expected(tmp_path: Path, real: str) -> None:
    """Never a downgrade."""
    async with engine_below(tmp_path / "data", settings(tmp_path)) as engine:
        with pytest.raises(EngineFailure) as caught:
            await engine.pull(f"{real}/app:1")
        assert caught.value.message == (
            f'Get "https://{real}/v2/": http: server gave HTTP response to HTTPS client'
        )


async def test_client_certificates(tmp_path: Path, authority: Authority) -> None:
    """A registry that wants one gets it, if both halves are there."""
    need("docker-registry")
    certificate, key = authority.issue("localhost")
    client, client_key = authority.issue("client")
    lines = f"  tls:\n    certificate: {certificate}\n    key: {key}\n    clientcas:\n      - {authority.certificate}\n"
    with registry(tmp_path / "registry", http=lines) as found:
        host = found.replace("127.0.0.1", "localhost")
        directory = tmp_path / "certs.d" / host
        directory.mkdir(parents=True)
        shutil.copy(authority.certificate, directory / "ca.crt")
        async with engine_below(tmp_path / "data", settings(tmp_path / "certs.d")) as engine:
            name = await built(engine, f"{host}/app:1")
            with pytest.raises(EngineFailure, match=r"tls: .*certificate"):
                await engine.push(name)
            shutil.copy(client, directory / "client.cert")
            with pytest.raises(
                InvalidInput, match=r"missing key client\.key for client certificate client\.cert"
            ):
                await engine.push(name)
            shutil.copy(client_key, directory / "client.key")
            await engine.push(name)
            await engine.pull(name)
