"""`run`, `create`, `start`, `exec`, `attach` against an engine that says what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.fakeengine import CONTAINER, Asked, FakeEngine, Reply, messages
from ketch_wire.stdcopy import STDERR, STDOUT, frame

Run = Callable[..., Any]

BOTH = frame(STDOUT, b"out\n") + frame(STDERR, b"err\n")
FOUND = {
    "Id": CONTAINER,
    "State": {"Running": True},
    "Config": {"Tty": False, "OpenStdin": True},
    "HostConfig": {"AutoRemove": False},
}
PULLED = messages(
    {"status": "Pulling from library/busybox", "id": "latest"},
    {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "id": "9ad6"},
    {"status": "Pull complete", "progressDetail": {}, "id": "9ad6"},
    {"status": "Status: Downloaded newer image for busybox:latest"},
)


def paths(engine: FakeEngine) -> list[str]:
    return [f"{one.method} {one.path.replace(CONTAINER, 'ID')}" for one in engine.asked]


def test_run_attaches_and_waits_before_it_starts(engine: FakeEngine, ketch: Run) -> None:
    """Nothing of the output is missed, nor a quick end."""
    engine.routes = [
        ("POST", ".*/attach", Reply(101, BOTH)),
        ("POST", ".*/wait", {"StatusCode": 42}),
    ]

    assert ketch("run", "busybox", "sh", "-c", "x") == (42, "out\n", "err\n")
    assert paths(engine) == [
        "POST /containers/create",
        "POST /containers/ID/attach",
        "POST /containers/ID/wait",
        "POST /containers/ID/start",
    ]
    assert engine.asked[2].query == {"condition": ["next-exit"]}


def test_run_rm_waits_for_the_removal(engine: FakeEngine, ketch: Run) -> None:
    assert ketch("run", "--rm", "busybox").code == 0
    assert engine.asked[0].json()["HostConfig"]["AutoRemove"] is True
    assert [one.query for one in engine.asked if one.path.endswith("/wait")] == [{"condition": ["removed"]}]


def test_detached_prints_the_id(engine: FakeEngine, ketch: Run) -> None:
    assert ketch("run", "-d", "busybox") == (0, CONTAINER + "\n", "")
    assert engine.asked[0].json()["AttachStdout"] is False


def test_a_missing_image_is_pulled(engine: FakeEngine, ketch: Run) -> None:
    tries: list[Asked] = []

    def create(asked: Asked) -> Reply:
        tries.append(asked)
        return (
            Reply(404, {"message": "No such image: busybox:latest"})
            if len(tries) == 1
            else Reply(201, {"Id": "x"})
        )

    engine.routes = [("POST", "/containers/create", create), ("POST", "/images/create", PULLED)]

    assert ketch("create", "busybox") == (
        0,
        "x\n",
        "Unable to find image 'busybox:latest' locally\nlatest: Pulling from library/busybox\n"
        "9ad6: Pull complete\nStatus: Downloaded newer image for busybox:latest\n",
    )
    pull = engine.asked[1]
    assert pull.query == {"fromImage": ["docker.io/library/busybox"], "tag": ["latest"]}
    assert pull.headers["x-registry-auth"] == "e30="


@pytest.mark.parametrize(("policy", "asked"), [("never", 1), ("always", 2)])
def test_pull_policies(engine: FakeEngine, ketch: Run, policy: str, asked: int) -> None:
    engine.routes = [
        ("POST", "/containers/create", Reply(404, {"message": "No such image: busybox:latest"})),
        ("POST", "/images/create", PULLED),
    ]

    outcome = ketch("run", "--pull", policy, "busybox")

    assert outcome.code == 125
    assert "No such image: busybox:latest" in outcome.err
    assert len(engine.asked) == asked


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec: "x": executable file not found in $PATH: unknown', 127),
        ('exec: "/x": stat /x: no such file or directory: unknown', 127),
        ('exec: "/etc": permission denied: unknown', 126),
        ('exec: "/etc": is a directory', 126),
        ("port is already allocated", 125),
    ],
)
@pytest.mark.parametrize("flags", [["-d"], [], ["--rm"]])
def test_exit_codes_of_a_failed_start(
    engine: FakeEngine, ketch: Run, message: str, code: int, flags: list[str]
) -> None:
    engine.routes = [("POST", ".*/start", Reply(400, {"message": message}))]

    assert ketch("run", *flags, "busybox") == (
        code,
        "",
        f"ketch: Error response from daemon: {message}\n\nRun 'ketch run --help' for more information\n",
    )


def test_no_engine(ketch: Run, tmp_path: Path) -> None:
    outcome = ketch("-H", f"unix://{tmp_path}/none", "run", "busybox")

    assert outcome.code == 125
    assert outcome.err.startswith(f"ketch: Cannot connect to the ketch daemon at unix://{tmp_path}/none. Is ")


def test_cidfile(engine: FakeEngine, ketch: Run, tmp_path: Path) -> None:
    path = tmp_path / "id"

    assert ketch("run", "-d", "--cidfile", str(path), "busybox").code == 0
    assert path.read_text() == CONTAINER
    again = ketch("run", "-d", "--cidfile", str(path), "busybox")
    assert again.code == 125 and "container ID file found" in again.err


def test_input_is_sent_and_half_closed(engine: FakeEngine, ketch: Run) -> None:
    """The program reads an end of input; what it still writes is shown."""
    engine.routes = [("POST", ".*/attach", Reply(101, BOTH))]

    assert ketch("run", "-i", "busybox", "cat", stdin=b"hello").out == "out\n"
    body = engine.asked[0].json()
    assert body["OpenStdin"] and body["StdinOnce"] and body["AttachStdin"]


def test_a_terminal_is_wanted_on_both_sides(ketch: Run, engine: FakeEngine) -> None:
    assert ketch("run", "-it", "busybox") == (1, "", "the input device is not a TTY\n")
    assert engine.asked == []


def test_exec(engine: FakeEngine, ketch: Run) -> None:
    engine.routes = [
        ("GET", "/containers/c/json", FOUND),
        ("POST", "/containers/c/exec", Reply(201, {"Id": "e1"})),
        ("POST", "/exec/e1/start", Reply(101, BOTH)),
        ("GET", "/exec/e1/json", {"ExitCode": 3}),
    ]

    assert ketch("exec", "-u", "me", "-w", "/x", "-e", "A=1", "--privileged", "c", "ls", "-l") == (
        3,
        "out\n",
        "err\n",
    )
    assert engine.asked[1].json() == {
        "User": "me", "Privileged": True, "Tty": False, "AttachStdin": False, "AttachStderr": True,
        "AttachStdout": True, "DetachKeys": "", "Env": ["A=1"], "WorkingDir": "/x", "Cmd": ["ls", "-l"],
        "Detach": False,
    }  # fmt: skip


def test_exec_in_the_background(engine: FakeEngine, ketch: Run) -> None:
    engine.routes = [
        ("GET", "/containers/c/json", FOUND),
        ("POST", "/containers/c/exec", Reply(201, {"Id": "e1"})),
        ("POST", "/exec/e1/start", Reply(200)),
    ]

    assert ketch("exec", "-d", "c", "ls") == (0, "", "")
    assert engine.asked[2].json() == {"Detach": True, "Tty": False}


def test_attach_refuses_what_does_not_run(engine: FakeEngine, ketch: Run) -> None:
    engine.routes = [("GET", "/containers/c/json", {**FOUND, "State": {"Running": False}})]

    assert ketch("attach", "c") == (1, "", "You cannot attach to a stopped container, start it first\n")


def test_start_names_what_failed(engine: FakeEngine, ketch: Run) -> None:
    engine.routes = [("POST", "/containers/none/start", Reply(404, {"message": "No such container: none"}))]

    assert ketch("start", "a", "none", "b") == (
        1,
        "a\nb\n",
        "Error response from daemon: No such container: none\nError: failed to start containers: none\n",
    )


def test_an_engine_that_dies_while_we_wait(engine: FakeEngine, ketch: Run) -> None:
    """Nobody knows the exit code: 125."""
    engine.routes = [("POST", ".*/wait", b"")]

    outcome = ketch("run", "busybox")

    assert outcome.code == 125 and "error waiting for container" in outcome.err
