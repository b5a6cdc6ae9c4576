"""Links to shims whose last words and ends come at once."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from ketch_wire.frames import pack
from ketch_wire.launch import LaunchPlan, ProcessPlan, RootPlan
from ketch_wire.shim import SOCKET_NAME
from ketchd.containers.shims import ExitRecord, ShimLink, Shims

STARTED = {"event": "started", "pid": 1, "start_time": 1}
EXIT = {"event": "exit", "code": 3, "oom": False, "ooms": 0, "finished_ns": 5}


class Log:
    """structlog's interface, remembering what its lines say."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda _, **values: self.lines.append({**structlog.contextvars.get_contextvars(), **values})


def shims_below(root: Path, connection: socket.socket | None = None) -> Shims:
    launcher: Any = SimpleNamespace(launch=lambda: connection)
    return Shims(launcher, root, Log(), lambda *_: None)


async def start(shims: Shims) -> ShimLink:
    """A container whose start was told."""

    async def on_pid(*_: int) -> None:
        return None

    plan = LaunchPlan("it", RootPlan((), "", ""), ProcessPlan(("true",)), "/run", "/state")
    return await shims.start(plan, attachments=[], port_fds=[], on_pid=on_pid)


@pytest.mark.parametrize(
    "said", [b"", pack({"event": "warning", "message": "the end is near"})], ids=["nothing", "a word"]
)
async def test_a_shim_that_ends_before_its_hello_is_not_waited_for(tmp_path: Path, said: bytes) -> None:
    """It was ending when somebody asked for it: ketchd's start does not wait as for one that sleeps."""
    (tmp_path / "it").mkdir()

    def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(answer, str(tmp_path / "it" / SOCKET_NAME))
    async with server, asyncio.timeout(10):
        assert await shims_below(tmp_path).adopt("it") is None


async def test_a_link_of_a_run_that_is_over_is_not_kept(tmp_path: Path) -> None:
    """Start and end may be told in one breath, and ketchd starts millions of containers."""
    ours, theirs = socket.socketpair()
    shims = shims_below(tmp_path, ours)
    theirs.sendall(pack(STARTED) + pack(EXIT))
    link = await start(shims)
    assert await link.wait() == ExitRecord(3, 0, 5)
    assert shims._links == set()
    link.close()
    theirs.close()


async def test_what_a_shim_says_is_not_signed_with_the_request_of_its_start(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    shims = shims_below(tmp_path, ours)
    theirs.sendall(pack(STARTED))
    with structlog.contextvars.bound_contextvars(request="that of the start"):
        link = await start(shims)
    theirs.sendall(pack({"event": "warning", "message": "oh"}) + pack(EXIT))
    await link.wait()
    assert shims.log.lines == [{"container": "it", "warning": "oh"}]
    link.close()
    theirs.close()
