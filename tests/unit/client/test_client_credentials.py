"""config.json: credentials in the file and in helper programs, and what is left alone."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ketch.credentials import HUB_KEY, ConfigFile, domain_of
from ketch.faults import CommandFailed
from ketch.references import parse_name
from ketch_testing.fakeengine import FakeEngine, Reply, messages

Run = Callable[..., Any]

HELPER = """#!/bin/sh
dir=$(dirname "$0")
key=$(cat)
case $1 in
get) [ -f "$dir/kept" ] && cat "$dir/kept" || { echo "credentials not found in native keychain"; exit 1; } ;;
store) printf '%s' "$key" > "$dir/kept" ;;
erase) rm -f "$dir/kept"; printf '%s' "$key" > "$dir/erased" ;;
list) echo '{"reg:5000":"u"}' ;;
esac
"""


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`docker-credential-fake`, which keeps one secret in a file beside it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "docker-credential-fake"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def config(path: Path, values: object) -> ConfigFile:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))
    return ConfigFile.read(str(path))


def test_kept_in_the_file(path: Path) -> None:
    """Only for its owner, in docker's shape; what we do not know stays."""
    found = config(path, {"plugins": {"x": {"y": "z"}}, "auths": {"other": {"auth": basic("a:b")}}})

    found.store("reg:5000", {"username": "u", "password": "p:w"})

    kept = json.loads(path.read_text())
    assert kept["plugins"] == {"x": {"y": "z"}}
    assert kept["auths"]["reg:5000"] == {"auth": basic("u:p:w")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ConfigFile.read(str(path)).auth_for("reg:5000") == {
        "username": "u", "password": "p:w", "serveraddress": "reg:5000",
    }  # fmt: skip
    assert [one.name for one in path.parent.iterdir()] == ["config.json"]


def test_a_linked_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "real.json").write_text("{}")
    path.symlink_to(tmp_path / "real.json")

    ConfigFile.read(str(path)).store("r", {"username": "u", "password": "p"})

    assert path.is_symlink() and "auths" in json.loads((tmp_path / "real.json").read_text())


def test_docker_hub_has_a_key_of_its_own(path: Path) -> None:
    found = config(path, {})

    found.store("docker.io", {"username": "u", "password": "p"})

    assert list(json.loads(path.read_text())["auths"]) == [HUB_KEY]
    assert found.auth_for("docker.io")["serveraddress"] == HUB_KEY


def test_stored_addresses_are_found_by_their_host(path: Path) -> None:
    found = config(path, {"auths": {"https://reg:5000/v1/": {"auth": basic("u:p\0\0")}}})

    assert found.auth_for("reg:5000")["password"] == "p"
    assert found.auth_for("reg") == {}


def test_helper(path: Path, helper: Path) -> None:
    found = config(path, {"credsStore": "fake"})

    assert found.auth_for("reg:5000") == {}
    found.store("reg:5000", {"username": "u", "password": "secret"})
    assert "secret" not in path.read_text()
    assert found.auth_for("reg:5000") == {"username": "u", "password": "secret", "serveraddress": "reg:5000"}
    assert found.all_auths() == {
        "reg:5000": {"username": "u", "password": "secret", "serveraddress": "reg:5000"}
    }
    found.erase("reg:5000")
    assert (helper / "erased").read_text() == "reg:5000"
    assert found.auth_for("reg:5000") == {}


def test_a_helper_for_one_registry(path: Path, helper: Path) -> None:
    found = config(path, {"credHelpers": {"reg:5000": "fake"}, "auths": {"other": {"auth": basic("a:b")}}})

    found.store("reg:5000", {"identitytoken": "token"})

    assert found.auth_for("reg:5000") == {"identitytoken": "token", "serveraddress": "reg:5000"}
    assert found.auth_for("other")["username"] == "a"


def test_a_helper_that_is_missing_or_fails(path: Path, helper: Path) -> None:
    with pytest.raises(CommandFailed, match="executable file not found"):
        config(path, {"credsStore": "none"}).auth_for("x")
    (helper / "docker-credential-fake").write_text("#!/bin/sh\necho locked; exit 1\n")
    with pytest.raises(CommandFailed, match="exit status 1, out: `locked`"):
        config(path, {"credsStore": "fake"}).auth_for("x")


@pytest.mark.parametrize("text", ['{"auths": {"r": {"auth": "%%"}}}', '{"auths": {"r": {"auth": "bm8="}}}'])
def test_credentials_that_are_wrong_are_named(path: Path, text: str) -> None:
    """An entry that cannot be read is said, whatever it is for."""
    path.parent.mkdir()
    path.write_text(text)

    with pytest.raises(CommandFailed, match="auth configuration"):
        ConfigFile.read(str(path)).auth_for("r")


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_file_that_is_wrong_stops_nothing_and_stays(path: Path, text: str) -> None:
    """As docker takes it: an empty configuration and a warning; but what the user has there is not written over."""
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    config = ConfigFile.read(str(path))

    assert config.auth_for("r") == {}
    assert config.problem.startswith(f"Error parsing config file ({path}): ")
    with pytest.raises(CommandFailed, match="is left as it is"):
        config.store("r", {"username": "u", "password": "p"})
    assert path.read_text(encoding="latin-1") == text


def test_login_keeps_what_the_registry_accepts(engine: FakeEngine, ketch: Run, path: Path) -> None:
    engine.routes = [("POST", "/auth", {"Status": "Login Succeeded", "IdentityToken": ""})]

    outcome = ketch("login", "-u", "me", "--password-stdin", "https://reg:5000/v1/", stdin=b"secret\n")

    assert (outcome.code, outcome.out) == (0, "Login Succeeded\n")
    assert "stored unencrypted" in outcome.err
    assert engine.asked[0].json() == {"username": "me", "password": "secret", "serveraddress": "reg:5000"}
    assert json.loads(path.read_text())["auths"] == {"reg:5000": {"auth": basic("me:secret")}}
    assert ketch("logout", "reg:5000").out == "Removing login credentials for reg:5000\n"
    assert json.loads(path.read_text())["auths"] == {}


def test_login_keeps_nothing_that_is_refused(engine: FakeEngine, ketch: Run, path: Path) -> None:
    engine.routes = [
        ("POST", "/auth", Reply(401, {"message": "unauthorized: incorrect username or password"}))
    ]

    outcome = ketch("login", "-u", "me", "-p", "wrong", "reg:5000")

    assert outcome.code == 1
    assert "Error response from daemon: unauthorized: incorrect username or password" in outcome.err
    assert not path.exists()


def test_push_and_pull_carry_the_credentials_of_their_registry_alone(
    engine: FakeEngine, ketch: Run, path: Path
) -> None:
    config(path, {"auths": {"reg:5000": {"auth": basic("u:p")}}})
    engine.routes = [("POST", "/images/.*", messages({"status": "1: digest: sha256:1 size: 5"}))]

    ketch("push", "reg:5000/a:1")
    ketch("pull", "other:5000/a:1")

    mine, others = (
        json.loads(base64.urlsafe_b64decode(one.headers["x-registry-auth"])) for one in engine.asked
    )
    assert mine == {"username": "u", "password": "p", "serveraddress": "reg:5000"}
    assert others == {}


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("me/x:1", "docker.io/me/x:1", "me/x:1"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("reg:5000/a/b:c", "reg:5000/a/b:c", "reg:5000/a/b:c"),
        ("index.docker.io/a", "docker.io/library/a:latest", "a:latest"),
        ("x@sha256:" + "a" * 64, "docker.io/library/x@sha256:" + "a" * 64, "x@sha256:" + "a" * 64),
    ],
)
def test_names(text: str, canonical: str, familiar: str) -> None:
    name = parse_name(text).with_default_tag()

    assert (name.canonical, name.familiar) == (canonical, familiar)
    assert domain_of(text) == name.domain


@pytest.mark.parametrize(
    "text", ["", "Busybox", "a//b", "x:", "x@sha256:1", "-x", "x:" + "a" * 200, "a" * 64, "x y"]
)
def test_wrong_names(text: str) -> None:
    with pytest.raises(CommandFailed):
        parse_name(text)
