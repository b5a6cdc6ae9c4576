"""Client programs against a machine, and the fixtures that give them to a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ketch_testing.machine import BIN, Machine


class Client:
    """One client program against one machine."""

    def __init__(self, machine: Machine, program: str) -> None:
        self.machine = machine
        self.program = program
        self.name = program.rsplit("/", 1)[-1]

    def __call__(self, *words: str, code: int = 0, stdin: bytes | None = None) -> str:
        """What the command prints on stdout; it must exit with `code`."""
        done = self.machine.run(self.program, *words, check=False, stdin=stdin)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def inside(self, *options: str, script: str, image: str = "busybox") -> str:
        """What `script` prints in a container made with `options`, without the last newline."""
        return self("run", "--rm", *options, image, "sh", "-c", script).removesuffix("\n")

    def says(self, *words: str, code: int) -> str:
        """What the command prints on stderr when it fails with `code`."""
        done = self.machine.run(self.program, *words, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stderr

    def warned(self, *words: str) -> str:
        """What the command, which succeeds, prints on stderr."""
        return self.says(*words, code=0)

    def inspect(self, name: str) -> Any:
        """The container as the daemon shows it."""
        return json.loads(self("inspect", name))[0]


def _client(machine: Machine, name: str) -> Client:
    if name == "ketch":
        return Client(machine, str(BIN / "ketch"))
    if shutil.which("docker") is None:
        pytest.skip("the docker CLI is not installed (apt-get install docker-cli)")
    return Client(machine, "docker")


@pytest.fixture(params=["ketch", "docker"])
def client(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Client]:
    """Each of both clients. Containers that the test leaves are removed."""
    yield _client(machine, request.param)
    _clear(machine)


@pytest.fixture
def ketch(machine: Machine) -> Iterator[Client]:
    """Our own client, for what does not depend on the client."""
    yield _client(machine, "ketch")
    _clear(machine)


@pytest.fixture
def ask(machine: Machine) -> Iterator[Callable[..., tuple[int, Any]]]:
    """(status, JSON) of an API request; an attach is refused in text, which is as a message here. Containers that the test leaves are removed."""

    def request(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, answer = machine.request(method, path, body)
        if status >= 400 and not answer.startswith(b"{"):
            return status, {"message": answer.decode().strip()}
        return status, json.loads(answer) if answer.strip() else None

    yield request
    _clear(machine)


def _clear(machine: Machine) -> None:
    for row in machine.json("GET", "/containers/json?all=1"):
        machine.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
