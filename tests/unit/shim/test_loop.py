"""The shim's loop, its link to ketchd and what comes over it: who owns a descriptor, and what is for one who is gone."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any, NoReturn

import pytest

from ketch_wire.frames import pack
from ketch_wire.launch import ProcessPlan
from ketch_wire.shim import ExecPlan
from ketchd.shim import execs
from ketchd.shim.link import Link
from ketchd.shim.loop import GONE, READ, WRITE, Loop


def test_what_happened_to_a_closed_descriptor_is_not_told_to_the_next_of_its_number() -> None:
    """One look at the kernel finds both hung up; the first's handler closes the other and opens a new one in its place."""
    loop = Loop()
    pairs = [socket.socketpair() for _ in range(2)]
    new, peer = socket.socketpair()
    numbers = [ours.fileno() for ours, _ in pairs]
    told: list[int] = []

    def replace(number: int) -> None:
        for one in numbers:
            loop.forget(one)
        os.dup2(new.fileno(), number)
        loop.watch(number, READ | WRITE, note)

    def note(events: int) -> None:
        told.append(events)
        loop.stop()

    for (ours, theirs), other in zip(pairs, reversed(numbers), strict=True):
        loop.watch(ours.fileno(), READ, lambda _, other=other: replace(other))  # type: ignore[misc]
        theirs.close()

    loop.run()

    assert told == [WRITE]
    told.clear()
    peer.close()
    loop._running = True
    loop.run()
    assert told[0] & GONE
    loop.close()
    new.close()
    for ours, _ in pairs:
        ours.close()


def test_a_ketchd_that_is_gone_wants_nothing_more() -> None:
    """It sent two requests and died before the first was answered: the second is not begun, and its socket is closed."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    given, kept = socket.socketpair()
    asked: list[dict[str, Any]] = []
    closed: list[Link] = []

    def answer(message: dict[str, Any], fds: list[int]) -> None:
        asked.append(message)
        link.send({"seq": message["seq"]})

    def ended(link: Link) -> None:
        closed.append(link)
        loop.stop()

    link = Link(loop, ours, answer, ended)
    requests = pack({"op": "resize", "seq": 1}) + pack({"op": "attach", "seq": 2, "fds": 1})
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", given.fileno()))
    theirs.sendmsg([requests], [rights])
    theirs.close()
    given.close()
    loop.run()

    assert asked == [{"op": "resize", "seq": 1}] and closed == [link]
    assert kept.recv(1) == b""
    kept.close()
    loop.close()


def test_an_exec_that_gets_no_descriptors_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's socket is let go of, so that it ends when ketchd has answered."""
    loop = Loop()
    given, client = socket.socketpair()

    def spawn(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(execs, "spawn", spawn)
    stream = {
        "stdin": True, "stdout": True, "stderr": True, "multiplexed": False, "detach_keys": b"", "initial": b"",
    }  # fmt: skip
    running = execs.Execs(loop, (), -1, lambda _: True)
    with pytest.raises(OSError, match="too many open files"):
        running.start(
            -1, ExecPlan("e", ProcessPlan(("true",), ())).to_wire(), stream, given.detach(), lambda _: True
        )

    client.settimeout(10)
    assert client.recv(1) == b"" and running.are_over
    client.close()
    loop.close()
