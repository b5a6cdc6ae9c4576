"""Addresses of engines as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ketch.cli import GLOBAL, tls_of
from ketch.engine import Engine, Tls, connect
from ketch.faults import CommandFailed
from ketch.hosts import parse_host, split_tcp
from ketch.options import parse
from ketch_wire.defaults import DEFAULT_SOCKET


@pytest.mark.parametrize(
    ("typed", "host"),
    [
        ("", f"unix://{DEFAULT_SOCKET}"),
        ("unix://", f"unix://{DEFAULT_SOCKET}"),
        ("unix:///x", "unix:///x"),
        ("/x", "unix:///x"),
        ("foo", "tcp://foo:2375"),
        (":1", "tcp://localhost:1"),
        ("tcp://", "tcp://localhost:2375"),
        ("tcp://h/path/", "tcp://h:2375/path"),
        ("h:5/path", "tcp://h:5/path"),
        ("[::1]", "tcp://[::1]:2375"),
        ("tcp://[::1]:5", "tcp://[::1]:5"),
        (" tcp://h:1 ", "tcp://h:1"),
        ("ssh://me@h", "ssh://me@h"),
    ],
)
def test_hosts(typed: str, host: str) -> None:
    assert parse_host(typed) == host


def test_tls_has_a_port_of_its_own() -> None:
    assert parse_host("h", secure=True) == "tcp://h:2376"


@pytest.mark.parametrize("typed", ["foo://", "fd://", "tcp://h:x", "tcp://h:99999", "tcp://::1:1", "tcp://[::1", "npipe:////./x"])  # fmt: skip
def test_hosts_that_are_none(typed: str) -> None:
    with pytest.raises(CommandFailed, match="invalid bind address format: "):
        parse_host(typed)


def test_a_context_s_host_may_be_wrong_as_well() -> None:
    """It was stored by any client, and is not looked at before."""
    with pytest.raises(CommandFailed, match="invalid bind address format: tcp://h:x"):
        Engine("tcp://h:x").get("/info")
    assert split_tcp("tcp://h", "h", 2375) == ("h", 2375, "")


@pytest.mark.parametrize(
    ("words", "environment", "found"),
    [
        ("", {}, None),
        ("--tls", {}, Tls("/config", False)),
        ("--tlsverify", {}, Tls("/config", True)),
        ("--tlsverify --tlscacert=/dev/null", {}, Tls("/config", True, (("ca.pem", "/dev/null"),))),
        ("", {"DOCKER_TLS_VERIFY": "1"}, Tls("/config", True)),
        ("", {"DOCKER_TLS": "1", "DOCKER_CERT_PATH": "/certs"}, Tls("/certs", False)),
        ("--tls", {"DOCKER_CERT_PATH": "/certs"}, Tls("/certs", False)),
        ("--tlsverify=false", {"DOCKER_TLS_VERIFY": "1"}, Tls("/config", False)),
        ("--tlsverify=false", {}, Tls("/config", False)),
        ("--tls=false --tlsverify=false", {"DOCKER_TLS_VERIFY": "1"}, Tls("/config", False)),
        ("--tls=false", {"DOCKER_TLS_VERIFY": "1"}, Tls("/config", True)),
        ("--tls=false", {"DOCKER_TLS": "1"}, None),
    ],
)
def test_tls_by_options_and_environment(
    words: str, environment: dict[str, str], found: Tls | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tls_of(parse(GLOBAL, "ketch", [*words.split(), "ps"]), "/config") == found


def test_a_named_certificate_must_be_there() -> None:
    with pytest.raises(CommandFailed, match="open /nosuch: no such file or directory"):
        tls_of(parse(GLOBAL, "ketch", ["--tlsverify", "--tlskey", "/nosuch", "ps"]), "/config")


@pytest.mark.parametrize("name", ["a..b", "a" * 70, "\udcff"])
def test_what_cannot_be_a_name_is_no_host(name: str) -> None:
    with pytest.raises(CommandFailed, match=r"^error during connect: tcp://.*: lookup .*: no such host$"):
        connect(f"tcp://{name}:1", None)


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """It is no word about the engine, which was not asked."""
    (tmp_path / "ca.pem").mkdir()
    with pytest.raises(
        CommandFailed, match=f"resolve docker endpoint: open {tmp_path}/ca.pem: is a directory"
    ):
        connect("tcp://127.0.0.1:1", Tls(str(tmp_path), True))
