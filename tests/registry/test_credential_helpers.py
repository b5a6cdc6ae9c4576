"""Credential helpers as programs, through the real clients, a real ketchd and Debian's docker-registry."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from registry.conftest import Run

from ketch_testing.machine import Machine
from ketch_testing.tokenserver import TokenServer

pytestmark = pytest.mark.root

# The protocol of docker/docker-credential-helpers: a verb, its input on stdin, its answer or error on stdout.
HELPER = """#!{python}
import json, pathlib, sys
shelf = pathlib.Path(__file__).with_suffix(".json")
kept = json.loads(shelf.read_text()) if shelf.exists() else {{}}
verb, said = sys.argv[1], sys.stdin.read()
with open(pathlib.Path(__file__).with_suffix(".log"), "a") as log:
    log.write(verb + "\\n")
if verb == "get":
    if said.strip() not in kept:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps(kept[said.strip()]))
elif verb == "store":
    one = json.loads(said)
    kept[one["ServerURL"]] = one
elif verb == "erase":
    kept.pop(said.strip(), None)
elif verb == "list":
    print(json.dumps({{key: one["Username"] for key, one in kept.items()}}))
shelf.write_text(json.dumps(kept))
"""

# As docker-credential-ecr-login and -gcloud: credentials come from elsewhere, nothing is stored.
CLOUD = """#!{python}
import json, sys
if sys.argv[1] != "get":
    print("not implemented")
    sys.exit(1)
print(json.dumps({{"ServerURL": sys.stdin.read().strip(), "Username": {user!r}, "Secret": {secret!r}}}))
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory of PATH with `docker-credential-shelf`."""
    directory = tmp_path / "bin"
    directory.mkdir()
    add(directory, "shelf", HELPER)
    return directory


def add(directory: Path, suffix: str, text: str, **values: str) -> None:
    program = directory / f"docker-credential-{suffix}"
    program.write_text(text.format(python=sys.executable, **values))
    program.chmod(0o755)


@pytest.fixture
def run(machine: Machine, programs: Path, tmp_path: Path) -> Run:
    """A client with its own config.json and the helpers in its PATH."""
    environment = {**machine.env, "DOCKER_CONFIG": str(tmp_path / "client")}
    environment["PATH"] = f"{programs}:{environment['PATH']}"

    def call(*words: str, stdin: str = "", fails: bool = False) -> str:
        done = subprocess.run(
            words, env=environment, input=stdin, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert (done.returncode != 0) == fails, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return call


def configure(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "client" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("client", ["ketch", "docker"])
def test_a_store_for_every_registry(
    guarded_registry: str, run: Run, programs: Path, tmp_path: Path, client: str
) -> None:
    """`credsStore`: store at login, get for pulls and pushes, list for a build's base, erase at logout; never in the file."""
    if shutil.which(client) is None and client == "docker":
        pytest.skip("docker (the client) is not installed")
    path = configure(tmp_path, {"credsStore": "shelf"})
    name = f"{guarded_registry}/{client}/kept:1"

    said = run(client, "login", "-u", "me", "--password-stdin", guarded_registry, stdin="secret")
    assert "Login Succeeded" in said and "unencrypted" not in said
    assert "secret" not in path.read_text()
    assert json.loads(path.read_text())["auths"] == {guarded_registry: {}}
    kept = json.loads((programs / "docker-credential-shelf.json").read_text())
    assert kept == {guarded_registry: {"ServerURL": guarded_registry, "Username": "me", "Secret": "secret"}}
    run(client, "tag", "busybox", name)
    run(client, "push", name)
    run(client, "rmi", name)
    run(client, "pull", name)
    run(client, "rmi", name)
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text(f"FROM {name}\nENV A=b\n")
    run("ketch", "build", "-t", f"{client}-on-kept", "context")
    run("ketch", "rmi", f"{client}-on-kept")
    verbs = (programs / "docker-credential-shelf.log").read_text().split()
    assert {"store", "get", "list"} <= set(verbs) and "erase" not in verbs

    run(client, "logout", guarded_registry)
    assert json.loads((programs / "docker-credential-shelf.json").read_text()) == {}
    assert "no basic auth credentials" in run(client, "pull", name, fails=True)


def test_a_helper_for_one_registry(
    guarded_registry: str, open_registry: str, run: Run, programs: Path, tmp_path: Path
) -> None:
    """`credHelpers`, of the kind that clouds give out: only that registry's credentials come from there."""
    add(programs, "cloud", CLOUD, user="me", secret="secret")
    add(programs, "broken", "#!/bin/sh\necho asked for what is not its own; exit 1\n")
    configure(tmp_path, {"credHelpers": {guarded_registry: "cloud", "elsewhere.example": "broken"}})
    for name in (f"{guarded_registry}/cloud/app:1", f"{open_registry}/cloud/app:1"):
        run("ketch", "tag", "busybox", name)
        run("ketch", "push", name)
        run("ketch", "rmi", name)
        run("ketch", "pull", name)


def test_an_identity_token_from_a_helper(
    machine: Machine, tokened: str, tokens: TokenServer, run: Run, programs: Path, tmp_path: Path
) -> None:
    """User `<token>`: the secret is exchanged for a bearer token, and no password exists. A login stores such a one."""
    path = configure(tmp_path, {"credsStore": "shelf"})
    name = f"{tokened}/me/identity:1"
    run("ketch", "login", "-u", "me", "--password-stdin", tokened, stdin="sesame")
    (kept,) = json.loads((programs / "docker-credential-shelf.json").read_text()).values()
    assert kept["Username"] == "<token>" and kept["Secret"] in tokens.refresh_tokens
    assert "sesame" not in path.read_text() and kept["Secret"] not in path.read_text()
    tokens.asked.clear()

    run("ketch", "tag", "busybox", name)
    run("ketch", "push", name)

    assert {(asked.method, asked.grant, asked.user) for asked in tokens.asked} == {
        ("POST", "refresh_token", "me")
    }
    assert [asked.scopes for asked in tokens.asked] == [["repository:me/identity:pull,push"]]
