"""Which engine a command speaks to, by docker's rules for hosts and contexts."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketch.cli import main
from ketch.dockercontexts import choose, endpoint
from ketch.engine import Tls
from ketch.faults import CommandFailed

HEADER = b"HTTP/1.1 200 OK\r\nApi-Version: 1.50\r\nContent-Type: application/json\r\nConnection: close\r\n"


def store(directory: Path, name: str, content: object) -> Path:
    number = hashlib.sha256(name.encode()).hexdigest()
    path = directory / "contexts" / "meta" / number / "meta.json"
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def at(host: str, **more: object) -> dict[str, object]:
    return {"Name": "x", "Metadata": {}, "Endpoints": {"docker": {"Host": host, **more}}}


@pytest.mark.parametrize(
    ("asked", "host", "environment", "current", "name"),
    [
        ("", "", {}, "", "default"),
        ("", "", {}, "current", "current"),
        ("", "", {"DOCKER_CONTEXT": "environment"}, "current", "environment"),
        ("", "", {"DOCKER_CONTEXT": "environment", "DOCKER_HOST": "unix:///x"}, "current", "default"),
        ("", "", {"KETCH_HOST": "unix:///x"}, "current", "default"),
        ("", "unix:///x", {"DOCKER_CONTEXT": "environment"}, "current", "default"),
        ("asked", "", {"DOCKER_CONTEXT": "environment", "DOCKER_HOST": "unix:///x"}, "current", "asked"),
        ("default", "", {"DOCKER_CONTEXT": "environment"}, "current", "default"),
    ],
)  # fmt: skip
def test_who_wins(asked: str, host: str, environment: dict[str, str], current: str, name: str) -> None:
    assert choose(asked, host, environment, current) == name


def test_a_host_and_a_context_are_a_conflict() -> None:
    with pytest.raises(CommandFailed, match="cannot specify both --host and --context"):
        choose("asked", "unix:///x", {}, "")


def test_endpoints(tmp_path: Path) -> None:
    store(tmp_path, "plain", at("unix:///x.sock", SkipTLSVerify=False))
    store(tmp_path, "skips", at("tcp://h:1", SkipTLSVerify=True))
    path = store(tmp_path, "secured", at("tcp://h:1"))
    files = tmp_path / "contexts" / "tls" / path.parent.name / "docker"
    files.mkdir(parents=True)
    assert endpoint(str(tmp_path), "plain") == ("unix:///x.sock", None)
    assert endpoint(str(tmp_path), "secured") == ("tcp://h:1", Tls(str(files), True))
    host, tls = endpoint(str(tmp_path), "skips")
    assert (host, tls is not None and tls.verify) == ("tcp://h:1", False)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "parsing "), ("[]", "parsing "), ({"Endpoints": {}}, "cannot find docker endpoint"), ({"Endpoints": None}, "cannot find docker endpoint")],
)  # fmt: skip
def test_what_cannot_be_read_is_said(tmp_path: Path, content: object, words: str) -> None:
    store(tmp_path, "broken", content)
    with pytest.raises(CommandFailed, match=f'unable to resolve docker endpoint: context "broken": {words}'):
        endpoint(str(tmp_path), "broken")


class Answering:
    """An engine that answers every request with an empty list."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.asked: list[str] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            with link:
                request = link.recv(65536).split(b"\r\n")[0].decode()
                self.asked.append(request)
                body = b"" if request.startswith("HEAD") else b"[]"
                link.sendall(HEADER + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Answering]:
    made = Answering(tmp_path / "e.sock")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("way", ["flag", "variable", "configuration"])
def test_a_command_goes_to_the_context(
    tmp_path: Path, engine: Answering, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KETCH_HOST", "DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    store(tmp_path, "mine", at(f"unix://{tmp_path}/e.sock"))
    if way == "variable":
        monkeypatch.setenv("DOCKER_CONTEXT", "mine")
    if way == "configuration":
        (tmp_path / "config.json").write_text('{"currentContext": "mine"}')
    if way == "flag":
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    assert main([*(["-c", "mine"] if way == "flag" else []), "ps"]) == 0
    assert engine.asked[-1].startswith("GET /v1.50/containers/json")


def test_a_context_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert main(["--context", "gone", "ps"]) == 1
    number = hashlib.sha256(b"gone").hexdigest()
    assert capfd.readouterr().err == (
        'Failed to initialize: unable to resolve docker endpoint: context "gone": context not found: open '
        f"{tmp_path}/contexts/meta/{number}/meta.json: no such file or directory\n"
    )
