"""Our standard streams on one side, a container's hijacked stream on the other, and signals in between. Acting.

One loop over file descriptors: no thread, constant memory, and backpressure both ways: input is only read when what was
read before is gone, output is only read when it has been written.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

from ketch import terminal
from ketch.engine import Engine
from ketch.faults import CommandFailed, EngineAnswer, EngineAway
from ketch.http import Answer, Link, half_close
from ketch_wire.defaults import DETACH_KEYS
from ketch_wire.stdcopy import STDERR, SYSTEM_ERROR, BadStream, StreamReader

CHUNK = 256 * 1024

# Passed on to the container's program. Not: those that only concern the client itself.
FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT,
    signal.SIGTSTP, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
)  # fmt: skip

# After the exit is known, the rest of the output is at most this far behind.
DRAIN_SECONDS = 10.0


class Detached(Exception):
    """The user left with the detach keys; the container runs on."""


class DetachWatch:
    """Recognises the detach keys in what is typed. The engine acts on them; we only want to know why the stream ended."""

    def __init__(self, keys: str) -> None:
        self._keys = parse_keys(keys) or DETACH_KEYS
        self._at = 0
        self.is_seen = False

    def feed(self, typed: bytes) -> None:
        """Look at typed bytes."""
        for byte in typed:
            if byte == self._keys[self._at]:
                self._at += 1
                if self._at == len(self._keys):
                    self.is_seen, self._at = True, 0
            else:
                self._at = int(byte == self._keys[0])
                self.is_seen = False


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q,x` as bytes; empty when the text is empty or the engine will refuse it."""
    found = bytearray()
    for part in text.split(",") if text else ():
        letter = part.removeprefix("ctrl-")
        if len(part) == 1 and part.isascii():
            found += part.encode()
        elif part.startswith("ctrl-") and len(letter) == 1 and letter in "abcdefghijklmnopqrstuvwxyz@[\\]^_":
            found.append(ord(letter.upper()) & 0x1F)
        else:
            return b""
    return bytes(found)


class Signals:
    """Signals as bytes on a file descriptor, for the loop. Everything is as before after `with`."""

    def __init__(self, wanted: tuple[int, ...]) -> None:
        self._wanted = wanted
        self._kept: dict[int, object] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> Signals:
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in self._wanted:
            self._kept[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        """Readable when a signal came."""
        return self._reader.fileno()

    def read(self) -> list[int]:
        """The signals that came."""
        try:
            return list(self._reader.recv(4096))
        except BlockingIOError:
            return []


class Relay:
    """One attached stream until it ends, used in a `with`, which closes it.

    `framed`: the two outputs come multiplexed (no terminal in the container).
    """

    def __init__(self, link: Link, early: bytes, *, stdin: bool, framed: bool, detach_keys: str = "") -> None:
        self._link = link
        self._early = early
        self._frames = StreamReader() if framed else None
        self._stdin = stdin
        self._watch = DetachWatch(detach_keys) if stdin and not framed else None
        self._unsent = b""
        self._is_end_owed = False  # that of our input, to the engine
        self.on_signal: Callable[[int], None] = lambda number: None
        self.waiting: WaitAnswer | None = None

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def run(self, signals: Signals | None = None) -> None:
        """Until the stream ends, or the exit is known and the output drained. Raises Detached, CommandFailed."""
        self._link.setblocking(False)
        with terminal.raw(0) if self._watch is not None else contextlib.nullcontext():
            self._loop(signals)
        if self._watch is not None and self._watch.is_seen:
            raise Detached()

    def _loop(self, signals: Signals | None) -> None:
        poll = select.poll()
        if signals is not None:
            poll.register(signals, select.POLLIN)
        if self._early and self._output(self._early):
            return
        deadline: float | None = None
        while True:
            self._register(poll)
            if self.waiting is not None and deadline is None and self.waiting.is_known(poll):
                deadline = time.monotonic() + DRAIN_SECONDS
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = poll.poll(timeout)
            if not ready and deadline is not None:
                return
            for handle, events in ready:
                if handle == self._link.fileno():
                    if events & ~select.POLLOUT and self._receive():
                        return
                    if events & select.POLLOUT and self._unsent:
                        self._send()
                    elif events & select.POLLOUT and self._is_end_owed:
                        self._is_end_owed = not half_close(self._link)
                elif handle == 0:
                    self._read_input()
                elif signals is not None and handle == signals.fileno():
                    for number in signals.read():
                        self.on_signal(number)

    def _register(self, poll: select.poll) -> None:
        poll.register(
            self._link, select.POLLIN | (select.POLLOUT if self._unsent or self._is_end_owed else 0)
        )
        if self._stdin and not self._unsent:
            poll.register(0, select.POLLIN)
        else:
            with contextlib.suppress(KeyError):
                poll.unregister(0)

    def _receive(self) -> bool:
        """Whether the stream has ended."""
        while True:
            try:
                received = self._link.recv(CHUNK)
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            if not received or self._output(received):
                return True
            # What TLS has decrypted ahead does not wake the poll.
            pending = getattr(self._link, "pending", None)
            if pending is None or not pending():
                return False

    def _output(self, received: bytes) -> bool:
        if self._frames is None:
            write_all(1, received)
            return False
        try:
            for stream, payload in self._frames.feed(received):
                if stream == SYSTEM_ERROR:
                    raise CommandFailed(f"error from daemon in stream: {payload.decode('utf-8', 'replace')}")
                write_all(2 if stream == STDERR else 1, payload)
        except BadStream as error:
            raise CommandFailed(str(error)) from error
        return False

    def _read_input(self) -> None:
        try:
            typed = os.read(0, 64 * 1024)
        except BlockingIOError:
            return
        except OSError:
            typed = b""
        if not typed:
            self._stdin = False
            self._is_end_owed = not half_close(self._link)
            return
        if self._watch is not None:
            self._watch.feed(typed)
        self._unsent = typed
        self._send()

    def _send(self) -> None:
        try:
            sent = self._link.send(self._unsent)
        except BlockingIOError:
            return
        except ConnectionError:
            # Nobody reads any more; the end of the output tells the rest.
            self._unsent, self._stdin = b"", False
            return
        self._unsent = self._unsent[sent:]


class WaitAnswer:
    """A running POST /wait: its headers are here, so the engine counts us as waiting; the exit comes when it comes.

    Used in a `with`, which stops waiting.
    """

    def __init__(self, engine: Engine, container: str, condition: str = "") -> None:
        query = {"condition": condition}
        self._answer: Answer = engine.request("POST", f"/containers/{container}/wait", query)
        self._registered = False
        self._code: int | None = None

    def is_known(self, poll: select.poll) -> bool:
        """Whether the exit is there; else `poll` wakes up when it is."""
        if self._code is not None:
            return True
        if self._answer.is_ready():
            if self._registered:
                poll.unregister(self._answer)
            self.code()
            return True
        if not self._registered:
            poll.register(self._answer, select.POLLIN)
            self._registered = True
        return False

    def code(self) -> int:
        """The exit code, as soon as there is one; 125 when the engine could not wait."""
        if self._code is None:
            with self._answer:
                try:
                    told = json.loads(self._answer.read() or b"{}")
                except (EngineAway, ValueError) as error:
                    raise CommandFailed(f"error waiting for container: {error}", 125) from error
            message = (told.get("Error") or {}).get("Message")
            if message or "StatusCode" not in told:
                raise CommandFailed(f"error waiting for container: {message or 'unexpected EOF'}", 125)
            self._code = int(told["StatusCode"])
        return self._code

    def __enter__(self) -> WaitAnswer:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()


def write_all(handle: int, content: bytes) -> None:
    """All of `content` on a file descriptor, even on one that another program made non-blocking."""
    view = memoryview(content)
    while view:
        try:
            view = view[os.write(handle, view) :]
        except BlockingIOError:
            select.select((), (handle,), ())


@contextlib.contextmanager
def watching(
    resize: Callable[[], None] | None, forward: Callable[[str], None] | None
) -> Iterator[tuple[Signals, Callable[[int], None]]]:
    """Signals to be passed on (`forward` by name), and the terminal's size to be told (`resize`) when it changes."""
    wanted: tuple[int, ...] = FORWARDED if forward is not None else ()
    if resize is not None:
        wanted += (signal.SIGWINCH,)

    def act(number: int) -> None:
        if number == signal.SIGWINCH and resize is not None:
            resize()
        elif forward is not None and number in FORWARDED:
            forward(signal.Signals(number).name)

    with Signals(wanted) as signals:
        yield signals, act


def forwarder(engine: Engine, container: str) -> Callable[[str], None]:
    """Passes signals on to a container's program; one that has ended gets none."""

    def forward(name: str) -> None:
        with contextlib.suppress(EngineAnswer):
            engine.call("POST", f"/containers/{container}/kill", {"signal": name.removeprefix("SIG")})

    return forward


def resizer(engine: Engine, path: str) -> Callable[[], None]:
    """Tells the engine the terminal's size. `path`: `/containers/ID` or `/exec/ID`. What has ended has no size."""

    def resize() -> None:
        rows, columns = terminal.size(1)
        if rows or columns:
            with contextlib.suppress(EngineAnswer):
                engine.call("POST", f"{path}/resize", {"h": rows, "w": columns})

    return resize
