"""Streams between pipes and sockets, on a real loop: patience, spilling, stalling, and who waits for whom."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ketchd.shim import clients
from ketchd.shim import spill as spilling
from ketchd.shim.loop import Loop
from ketchd.shim.streams import Streams

SPEC: dict[str, Any] = {
    "stdin": False, "stdout": True, "stderr": True, "multiplexed": False, "detach_keys": b"", "initial": b"",
}  # fmt: skip


class Bench:
    """Streams over one pipe, driven by hand."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.streams = Streams(self.loop, terminal=False, stdin_once=True, log=None, spill_directory=-1)
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.drained = False
        self.streams.on_drained = self.note
        self.streams.connect_pipes(-1, {reader: 1})
        self.sockets: list[socket.socket] = []

    def note(self) -> None:
        """The output ended."""
        self.drained = True

    def attach(self, **given: Any) -> socket.socket:
        """One more client."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.sockets.append(ours)
        self.streams.attach(theirs.detach(), SPEC | given)
        return ours

    def run_until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Run the loop until it holds."""
        failed = [False]

        def give_up() -> None:
            failed[0] = True

        limit = self.loop.later(seconds, give_up)

        def look() -> None:
            if condition() or failed[0]:
                self.loop.stop()
            else:
                self.loop.later(0.001, look)

        self.loop._running = True
        self.loop.later(0.0, look)
        self.loop.run()
        limit.cancel()
        assert not failed[0]

    def write_all(self, data: bytes) -> None:
        """Through the pipe, however small it is."""
        view = memoryview(data)

        def more() -> bool:
            nonlocal view
            try:
                view = view[os.write(self.writer, view) :]
            except BlockingIOError:
                return False
            return not view

        self.run_until(more)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Closed afterwards."""
    made = Bench()
    yield made
    os.close(made.writer)
    for one in made.sockets:
        one.close()
    if not made.drained:
        made.run_until(lambda: made.drained)
    made.streams.finish()
    made.run_until(lambda: not made.streams.has_clients)
    made.loop.close()


def receive_all(bench: Bench, client: socket.socket, size: int) -> bytes:
    """`size` bytes, while the loop runs."""
    got = bytearray()

    def more() -> bool:
        try:
            got.extend(client.recv(1 << 20))
        except BlockingIOError:
            pass
        return len(got) >= size

    bench.run_until(more)
    return bytes(got)


def test_a_stuck_client_holds_nothing_up_and_misses_nothing(bench: Bench) -> None:
    stuck, data = bench.attach(), os.urandom(4 << 20)

    bench.write_all(data)

    assert receive_all(bench, stuck, len(data)) == data


def test_when_the_file_is_full_the_process_waits_for_a_client_that_moves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "Spill", lambda directory: spilling.Spill(directory, 3 << 20))
    slow, data = bench.attach(), os.urandom(8 << 20)
    view = memoryview(data)
    got = bytearray()

    def both() -> bool:
        nonlocal view
        try:
            view = view[os.write(bench.writer, view) :]
        except BlockingIOError:
            try:
                got.extend(slow.recv(4096))  # a little, only when the process waits
            except BlockingIOError:
                pass
        return not view

    bench.run_until(both, 60)

    assert bytes(got) + receive_all(bench, slow, len(data) - len(got)) == data


def test_one_that_takes_nothing_while_everybody_waits_is_cut_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "Spill", lambda directory: spilling.Spill(directory, 2 << 20))
    monkeypatch.setattr(clients, "STALL_SECONDS", 0.05)
    bench.attach()

    bench.write_all(os.urandom(6 << 20))

    bench.run_until(lambda: not bench.streams.has_clients)


def test_a_client_that_leaves_is_forgotten(bench: Bench) -> None:
    bench.attach().close()

    bench.run_until(lambda: not bench.streams.has_clients)
    bench.write_all(b"nobody listens")


def test_a_half_closed_client_goes_on_reading(bench: Bench) -> None:
    client = bench.attach()
    client.shutdown(socket.SHUT_WR)
    bench.write_all(b"still here")

    assert receive_all(bench, client, 10) == b"still here"
    assert bench.streams.has_clients


def test_the_end_comes_without_a_reset_though_input_was_never_read(bench: Bench) -> None:
    """A socket closed with unread input resets the connection, and the peer loses the rest of its output."""
    client = bench.attach(stdin=False)
    client.send(b"nobody reads this")
    bench.write_all(b"the last words")
    os.close(bench.writer)
    bench.writer = os.open("/dev/null", os.O_WRONLY)
    bench.run_until(lambda: bench.drained)
    bench.streams.finish()

    assert client.recv(100) == b"the last words"
    assert client.recv(100) == b""


class Reader:
    """A process that reads its input when it likes, beside a bench: `streams` give it what `client` sends; it writes into
    `writer`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._source, sink = os.pipe()
        output, self.writer = os.pipe()
        os.set_blocking(self._source, False)
        self.streams = Streams(bench.loop, terminal=False, stdin_once=True, log=None, spill_directory=-1)
        self.streams.connect_pipes(sink, {output: 1})
        self.client, theirs = socket.socketpair()
        self.streams.attach(theirs.detach(), SPEC | {"stdin": True})
        self.arrived = bytearray()

    def stop_reading(self) -> bytes:
        """What the client has sent; half of it fills the pipe, and the rest waits in the socket."""
        data = os.urandom(160_000)
        self.client.sendall(data)
        passes = iter(range(10))
        self._bench.run_until(lambda: next(passes) == 9)
        return data

    def read(self) -> bool:
        """Take what is there; whether the end has come."""
        try:
            while piece := os.read(self._source, 65536):
                self.arrived.extend(piece)
        except BlockingIOError:
            return False
        return True

    def write_until_it_waits(self) -> None:
        """The client takes nothing: some of the output waits in a file."""
        os.set_blocking(self.writer, False)

        def write() -> bool:
            try:
                os.write(self.writer, bytes(65536))
            except BlockingIOError:
                pass
            return self.streams._clients[0]._spill is not None

        self._bench.run_until(write)
        os.set_blocking(self.writer, True)

    def close(self) -> None:
        """The process ends."""
        os.close(self._source)
        os.close(self.writer)
        self.client.close()
        self._bench.run_until(lambda: not self.streams.has_output)
        self.streams.finish()
        self._bench.run_until(lambda: not self.streams.has_clients)


@pytest.fixture
def reader(bench: Bench) -> Iterator[Reader]:
    """Ended afterwards, with its clients."""
    made = Reader(bench)
    yield made
    made.close()


def test_a_client_that_leaves_while_the_process_begins_to_read_again_loses_no_input(
    bench: Bench, reader: Reader
) -> None:
    """Both are seen in one look at the kernel: the room in the pipe first, the hang-up, known without the input, second."""
    data = reader.stop_reading()
    reader.read()
    reader.client.close()

    bench.run_until(reader.read)
    assert bytes(reader.arrived) == data


@pytest.mark.parametrize("waits", [False, True], ids=["none waits", "some waits"])
def test_output_that_nobody_takes_loses_no_input(bench: Bench, reader: Reader, waits: bool) -> None:
    """A process that answers while it reads, to a client that has sent everything and is gone. waits: output is held for it."""
    data = reader.stop_reading()
    if waits:
        reader.write_until_it_waits()
    else:
        os.write(reader.writer, b"an answer")
    reader.client.close()

    bench.run_until(reader.read)
    assert bytes(reader.arrived) == data


def test_a_client_that_only_writes_loses_no_input(bench: Bench, reader: Reader) -> None:
    """It has shut its reading side; what the process says goes nowhere, what the client types arrives."""
    reader.client.shutdown(socket.SHUT_RD)
    os.write(reader.writer, b"nobody reads this")
    passes = iter(range(10))
    bench.run_until(lambda: next(passes) == 9)
    reader.client.sendall(b"typed later")
    reader.client.shutdown(socket.SHUT_WR)

    bench.run_until(reader.read)
    assert bytes(reader.arrived) == b"typed later"


def test_a_client_that_left_its_input_unread_and_its_output_untaken_ends_with_the_process(
    bench: Bench, reader: Reader
) -> None:
    """Nothing of it is waited for: the shim could not end."""
    reader.stop_reading()
    reader.write_until_it_waits()
    reader.client.close()
    passes = iter(range(10))
    bench.run_until(lambda: next(passes) == 9)
    assert reader.streams.has_clients

    reader.streams.finish()
    assert not reader.streams.has_clients


def test_what_lies_in_a_pipe_is_taken_before_its_output_is_given_up(bench: Bench) -> None:
    """Somebody else holds it still: what was written reaches the client, who is waited for as long as it takes something."""
    client = bench.attach()
    size = fcntl.fcntl(bench.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    data = os.urandom(size)
    assert os.write(bench.writer, data) == size

    assert not bench.streams.give_up_output()
    assert receive_all(bench, client, size) == data
    assert bench.streams.give_up_output() and bench.drained


def test_a_full_disk_cuts_off_who_needs_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning of a frame: its head finds no room. The process goes on."""

    class Full(spilling.Spill):
        """A file that takes what waited, and no more."""

        def put(self, data: bytes | bytearray | memoryview) -> None:
            if self.size:
                raise OSError(errno.ENOSPC, "no space left on device")
            super().put(data)

    monkeypatch.setattr(clients, "Spill", Full)
    bench.attach(multiplexed=True)

    bench.write_all(os.urandom(4 << 20))

    bench.run_until(lambda: not bench.streams.has_clients)
