"""Our streams and a container's: half-close, order, detach keys, and the terminal as it was."""

from __future__ import annotations

import os
import pty
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ketch.attach import Detached, DetachWatch, Relay, Signals, parse_keys
from ketch.faults import CommandFailed
from ketch_wire.stdcopy import STDERR, STDOUT, SYSTEM_ERROR, frame


@contextmanager
def as_stdin(handle: int) -> Iterator[None]:
    kept = os.dup(0)
    os.dup2(handle, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connection whose other end `serve` has, in a thread."""
    ours, theirs = socket.socketpair()
    failures: list[BaseException] = []

    def run() -> None:
        with theirs:
            try:
                serve(theirs)
            except BaseException as error:
                failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield ours
    thread.join()
    assert failures == []


def all_of(link: socket.socket) -> bytes:
    received = b""
    while part := link.recv(65536):
        received += part
    return received


def test_outputs_are_told_apart(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    def serve(link: socket.socket) -> None:
        wire = frame(STDOUT, b"one\n") + frame(STDERR, b"two\n") + frame(STDOUT, b"three\n")
        for at in range(0, len(wire), 5):
            link.sendall(wire[at : at + 5])

    with served(serve) as link, Relay(link, frame(STDOUT, b"early\n"), stdin=False, framed=True) as relay:
        relay.run()

    assert capfdbinary.readouterr() == (b"early\none\nthree\n", b"two\n")


def test_input_ends_and_output_goes_on(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """More than fits into any buffer goes both ways at once; the end of input is a half-close."""
    sent = os.urandom(3_000_000)
    got: list[bytes] = []

    def serve(link: socket.socket) -> None:
        got.append(all_of(link))
        link.sendall(frame(STDOUT, got[0]))

    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb") as file:
            file.write(sent)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with as_stdin(reader), served(serve) as link, Relay(link, b"", stdin=True, framed=True) as relay:
        relay.run()
    feeder.join()
    os.close(reader)

    assert got == [sent]
    assert capfdbinary.readouterr().out == sent


def test_a_fault_in_the_stream_is_told() -> None:
    with (
        served(lambda link: link.sendall(frame(SYSTEM_ERROR, b"boom"))) as link,
        Relay(link, b"", stdin=False, framed=True) as relay,
        pytest.raises(CommandFailed, match="error from daemon in stream: boom"),
    ):
        relay.run()


def test_detach_keys_end_it_and_the_terminal_is_as_before(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The engine gets every key and hangs up; we know why."""
    keyboard, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    typed: list[bytes] = []

    def serve(link: socket.socket) -> None:
        link.sendall(b"prompt")
        while termios.tcgetattr(terminal)[3] & termios.ICANON:
            time.sleep(0.001)  # typed into a cooked terminal, ctrl-q would be taken for XON
        os.write(keyboard, b"ls\n\x10\x11")
        received = b""
        while not received.endswith(b"\x10\x11"):
            received += link.recv(100)
        typed.append(received)

    try:
        with (
            as_stdin(terminal),
            served(serve) as link,
            Relay(link, b"", stdin=True, framed=False) as relay,
            pytest.raises(Detached),
        ):
            relay.run()
        assert typed == [b"ls\n\x10\x11"]
        assert capfdbinary.readouterr().out == b"prompt"
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(keyboard)
        os.close(terminal)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-@,x", b"\x00x"),
        ("", b""),
        ("ctrl-P", b""),
        ("ab", b""),
    ],
)
def test_keys(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        ([b"\x10\x11"], True),
        ([b"\x10", b"\x11"], True),
        ([b"\x10x\x11"], False),
        ([b"\x10\x10\x11"], True),
        ([b"\x10\x11x"], False),
    ],
)
def test_detach_watch(typed: list[bytes], seen: bool) -> None:
    """Only as the last thing that was typed: an engine that does not act on it goes on."""
    watch = DetachWatch("")

    for part in typed:
        watch.feed(part)

    assert watch.is_seen is seen


def test_signals_are_bytes_for_the_loop() -> None:
    import signal

    before = signal.getsignal(signal.SIGUSR1)
    with Signals((signal.SIGUSR1,)) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.read() == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before
