"""A contained process's end as the shim sees it: order of what is told, and whom the last output waits for."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from ketchd.sandbox.failures import LaunchError
from ketchd.sandbox.report import Report
from ketchd.shim import clients, contained
from ketchd.shim import spill as spilling
from ketchd.shim.contained import Contained
from ketchd.shim.loop import Loop
from ketchd.shim.spawn import Spawned
from ketchd.shim.streams import Streams

SPEC = {
    "stdin": False, "stdout": True, "stderr": True, "multiplexed": False, "detach_keys": b"", "initial": b"",
}  # fmt: skip


class Child:
    """A process of its own with a pipe of ours as its output, and what it says while it is half born."""

    def __init__(self, *argv: str) -> None:
        self.loop = Loop()
        self.streams = Streams(self.loop, terminal=False, stdin_once=True, log=None, spill_directory=-1)
        reader, self.writer = os.pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.report = Report(theirs)
        self.theirs = theirs
        process = subprocess.Popen(argv, stdin=subprocess.PIPE)
        self.process = process
        self.told: list[str] = []
        spawned = Spawned(process.pid, socket.socket(fileno=ours.detach()), -1, {reader: 1})
        self.contained = made = Contained(self.loop, self.streams, spawned)
        made.on_namespaces = lambda: self.told.append("namespaces")
        made.on_started = lambda: self.told.append("started")
        made.on_warning = lambda text: self.told.append(f"warning {text}")
        made.on_failed = self.failed
        made.on_ended = self.ended
        made.connect()

    def failed(self, error: LaunchError) -> None:
        """It could not start."""
        self.told.append(f"failed {error.message}")
        self.loop.stop()

    def ended(self, code: int) -> None:
        """It has ended."""
        self.told.append(f"ended {code}")
        self.loop.stop()

    def let_it_end(self) -> None:
        """`cat` ends with its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        """Nothing stays open."""
        self.theirs.close()
        self.streams.give_up_output()
        self.streams.finish()
        self.let_it_end()
        self.process.returncode = 0  # reaped by the loop
        self.loop.close()


def test_what_it_said_comes_before_its_end() -> None:
    """All at once: messages, the end of its socket, the end of the process, the end of its output."""
    child = Child("cat")
    for message in ({"namespaces": True}, {"warning": "low"}, {"ready": True}):
        child.report.say(message)
    child.theirs.close()
    os.close(child.writer)
    child.let_it_end()

    child.loop.run()

    child.close()
    assert child.told == ["namespaces", "warning low", "started", "ended 0"]


@pytest.mark.parametrize("ready", [False, True])
def test_a_failure_is_told_even_when_our_go_was_never_read(ready: bool) -> None:
    """A socket that is closed with something unread says so first, and only then gives what lies in it."""
    child = Child("cat")
    child.contained.go()
    if ready:
        child.report.say({"ready": True})
    child.report.failed(LaunchError("no such thing"))
    child.theirs.close()
    os.close(child.writer)
    child.let_it_end()

    child.loop.run()

    child.close()
    assert child.told == ["failed no such thing"]


def test_one_that_dies_without_a_word() -> None:
    child = Child("sh", "-c", "kill -9 $$")
    child.theirs.close()
    os.close(child.writer)

    child.loop.run()

    child.close()
    assert child.told == ["failed container init died before it could execute anything (signal 9)"]


def test_what_a_slow_client_has_not_taken_outlives_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is gone, its pipe is full, its client is slow and has much to catch up: not a byte is lost."""
    monkeypatch.setattr(clients, "Spill", lambda directory: spilling.Spill(directory, 2 << 20))
    monkeypatch.setattr(contained, "DRAIN_SECONDS", 0.01)
    child = Child("cat")
    child.report.say({"ready": True})
    child.theirs.close()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    child.streams.attach(theirs.detach(), SPEC)
    os.set_blocking(child.writer, False)
    written = bytearray()

    def fill() -> None:
        if child.streams.is_held_up and child.streams._clients[0]._spill is not None:
            child.loop.stop()
            return
        part = os.urandom(4096)
        try:
            written.extend(part[: os.write(child.writer, part)])
        except BlockingIOError:
            pass
        child.loop.later(0.0, fill)

    child.loop.later(0.0, fill)
    child.loop.run()
    written += (last := os.urandom(30000))[: os.write(child.writer, last)]
    os.close(child.writer)
    child.let_it_end()
    child.loop._running = True
    child.loop.later(0.2, child.loop.stop)  # many times as long as output without a process is waited for
    child.loop.run()
    assert "ended 0" not in child.told

    got = bytearray()

    def take() -> None:
        try:
            got.extend(ours.recv(1 << 20))
        except BlockingIOError:
            pass
        child.loop.later(0.0, take)

    child.loop._running = True
    take()
    child.loop.run()
    child.streams.finish()
    child.loop._running = True
    child.loop.later(0.2, child.loop.stop)
    child.loop.run()

    ours.close()
    child.close()
    assert child.told == ["started", "ended 0"]
    assert bytes(got) == bytes(written)
