"""A fake engine, and the client run against it in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ketch import cli
from ketch_testing.fakeengine import FakeEngine


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    """Answers as if all were well, unless a test gives it routes."""
    with FakeEngine(tmp_path / "e.sock") as made:
        yield made


@pytest.fixture
def ketch(
    engine: FakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Run:
    """Run one command line in this process: its exit code and what it wrote. `stdin`: what it can read."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    monkeypatch.delenv("KETCH_HOST", raising=False)
    monkeypatch.delenv("DOCKER_API_VERSION", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str, stdin: bytes = b"") -> Outcome:
        source = tmp_path / "stdin"
        source.write_bytes(stdin)
        kept = os.dup(0)
        try:
            with source.open("rb") as file, open(0, encoding="utf-8", closefd=False) as text:
                os.dup2(file.fileno(), 0)
                monkeypatch.setattr("sys.stdin", text)
                code = cli.main(list(words))
        finally:
            os.dup2(kept, 0)
            os.close(kept)
        written = capfdbinary.readouterr()
        return Outcome(code, written.out.decode(), written.err.decode())

    return run
