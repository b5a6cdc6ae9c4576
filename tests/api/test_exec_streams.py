"""What an exec's stream looks like is said by the request that starts it, not by the exec's terminal."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import needs_root

from ketch_testing.eventscenarios import Api, drain
from ketch_testing.machine import Machine
from ketch_wire.stdcopy import StreamReader

pytestmark = [needs_root, pytest.mark.root]
NO_SIZE = b"stty: standard input"  # busybox's words for it
BOTH = ["sh", "-c", "echo out; echo err >&2"]


@pytest.fixture(scope="module")
def api(machine: Machine) -> Iterator[Api]:
    made = Api(str(machine.socket))
    made.run("streams", "sleep", "1000")
    yield made
    made.remove("streams")


def start(api: Api, command: list[str], *, terminal: bool, **begin: Any) -> bytes:
    """Every byte of the answer's stream."""
    wanted = {"Cmd": command, "AttachStdout": True, "AttachStderr": True, "Tty": terminal}
    made = api("POST", "/containers/streams/exec", wanted)["Id"]
    with api.hijacked(f"/exec/{made}/start", {"Detach": False, **begin}) as client:
        return drain(client)


def test_a_terminal_in_frames(api: Api) -> None:
    """A client that does not ask for a terminal reads frames: what comes off the terminal is all stdout."""
    for begin in ({}, {"Tty": False}):
        frames = StreamReader().feed(start(api, BOTH, terminal=True, **begin))
        assert {stream for stream, _ in frames} == {1}
        assert b"".join(piece for _, piece in frames) == b"out\r\nerr\r\n"


def test_a_terminal_as_it_is(api: Api) -> None:
    assert start(api, BOTH, terminal=True, Tty=True) == b"out\r\nerr\r\n"


def test_no_terminal_in_frames(api: Api) -> None:
    frames = StreamReader().feed(start(api, BOTH, terminal=False))
    assert sorted(frames) == [(1, b"out\n"), (2, b"err\n")]


def test_no_terminal_without_frames(api: Api) -> None:
    """There is no place for stderr then, as in dockerd."""
    assert start(api, BOTH, terminal=False, Tty=True) == b"out\n"


@pytest.mark.parametrize(
    ("version", "made", "begin", "size"),
    [
        ("v1.42", [20, 70], {"Tty": True}, b"20 70"), ("v1.42", None, {"Tty": True, "ConsoleSize": [30, 80]}, b"30 80"),
        ("v1.42", [20, 70], {"Tty": True, "ConsoleSize": [30, 80]}, b"30 80"),
        ("v1.42", [20, 70], {"ConsoleSize": [30, 80]}, b"20 70"),
        ("v1.41", [20, 70], {"Tty": True, "ConsoleSize": [30, 80]}, NO_SIZE),
    ],
)  # fmt: skip
def test_the_size_of_a_terminal(
    api: Api, version: str, made: list[int] | None, begin: dict[str, Any], size: bytes
) -> None:
    """The start's, if it asks for a terminal, before the creation's; older clients have none."""
    wanted = {"Cmd": ["stty", "size"], "AttachStdout": True, "Tty": True, "ConsoleSize": made}
    exec_id = api("POST", f"/{version}/containers/streams/exec", wanted)["Id"]
    with api.hijacked(f"/{version}/exec/{exec_id}/start", begin) as client:
        assert size + b"\r\n" in drain(client)


def test_a_size_without_a_terminal(api: Api) -> None:
    """It means nothing, and is no reason to refuse."""
    assert sorted(StreamReader().feed(start(api, BOTH, terminal=False, ConsoleSize=[30, 80]))) == [
        (1, b"out\n"),
        (2, b"err\n"),
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_cannot_start_is_told_as_the_client_reads(api: Api, terminal: bool) -> None:
    words = b"executable file not found in $PATH"
    ((stream, said),) = StreamReader().feed(start(api, ["nope"], terminal=terminal))
    assert stream == 1 and words in said and said.endswith(b"\r\n")
    raw = start(api, ["nope"], terminal=terminal, Tty=True)
    assert words in raw and raw[:1] != b"\1"


def test_the_head_of_an_answer_comes_alone(machine: Machine, api: Api) -> None:
    """docker-py reads it through a buffer and the stream below that: what came in one piece with the head would be lost."""
    wanted = {"Cmd": BOTH, "AttachStdout": True, "AttachStderr": True}
    made = api("POST", "/containers/streams/exec", wanted)["Id"]
    body = b'{"Detach": false, "Tty": false}'
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(machine.socket))
        client.sendall(
            f"POST /exec/{made}/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        time.sleep(0.3)  # long enough for the process to have spoken
        head = client.recv(65536)
        assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n") and head.endswith(b"\r\n\r\n")
        frames = StreamReader().feed(drain(client))
    assert sorted(frames) == [(1, b"out\n"), (2, b"err\n")]


def test_the_start_of_one_in_a_paused_container_is_refused(api: Api, machine: Machine) -> None:
    """With a status, as in dockerd, and not with an error amid a stream. It may be started afterwards."""
    made = api("POST", "/containers/streams/exec", {"Cmd": ["true"], "AttachStdout": True})["Id"]
    api("POST", "/containers/streams/pause")
    try:
        for detached in (False, True):
            status, answer = machine.request("POST", f"/exec/{made}/start", {"Detach": detached})
            assert status == 409 and b"is paused, unpause the container before exec" in answer
    finally:
        api("POST", "/containers/streams/unpause")
    with api.hijacked(f"/exec/{made}/start", {"Detach": False}) as client:
        assert drain(client) == b""
