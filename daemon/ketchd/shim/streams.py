"""A process's standard streams, the shim's ends: output to log and clients, clients' input to the process."""

from __future__ import annotations

import os
import struct

from ketchd.kernel import pty
from ketchd.shim.clients import Client
from ketchd.shim.loop import GONE, READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ketchd.shim.logs import Log

_CHUNK = 65536
_PIPE_CHUNKS = 16  # pipe(7): what a pipe holds at most, unless root has raised /proc/sys/fs/pipe-max-size
_NAMES = {1: b"stdout", 2: b"stderr"}
_FRAME = struct.Struct(">B3xI")


class Streams:
    """The streams of one process.

    outputs: fd -> 1 or 2. sink: where input goes, -1 for nowhere; for a terminal both are its master. `on_drained()` is
    called once, when every output has ended.
    """

    def __init__(
        self, loop: Loop, *, terminal: bool, stdin_once: bool, log: Log | None, spill_directory: int
    ) -> None:
        self._loop = loop
        self._terminal = terminal
        self._stdin_once = stdin_once
        self._log = log
        self._spill_directory = spill_directory
        self._clients: list[Client] = []
        self._outputs: dict[int, int] = {}
        self._sink = -1
        self._input: list[bytes] = []
        self._connected = self._held_up = self._finished = self._eof_waits = False
        self.on_drained: Callable[[], None] = lambda: None
        self.on_detach: Callable[[], None] = lambda: None
        self.on_clients_gone: Callable[[], None] = lambda: None

    @property
    def has_output(self) -> bool:
        """Whether some output has not ended."""
        return bool(self._outputs)

    @property
    def is_held_up(self) -> bool:
        """Whether output waits for a slow client."""
        return self._held_up

    @property
    def has_clients(self) -> bool:
        """Whether somebody is attached."""
        return bool(self._clients)

    def connect_pipes(self, sink: int, outputs: dict[int, int]) -> None:
        """The process stands: `sink` is its input or -1, `outputs` fd -> stream number."""
        self._connected = True
        self._sink, self._outputs = sink, dict(outputs)
        if sink >= 0:
            os.set_blocking(sink, False)
            self._loop.watch(sink, 0, self._sink_ready)
        for fd in outputs:
            os.set_blocking(fd, False)
            self._loop.watch(fd, READ, self._reader_of(fd))
        self._write_input()

    def connect_terminal(self, master: int) -> None:
        """The same with a terminal's master."""
        os.set_blocking(master, False)
        self._connected = True
        self._sink, self._outputs = master, {master: 1}
        self._loop.watch(master, READ, self._terminal_ready)
        self._write_input()

    def resize(self, height: int, width: int) -> None:
        """The terminal's size, in characters. Raises OSError."""
        if self._terminal and self._sink >= 0:
            pty.set_size(self._sink, height, width)

    def attach(self, fd: int, spec: dict[str, Any]) -> None:
        """One more client on the socket `fd`, which is ours from now on."""
        client = Client(self._loop, fd, spec, self._spill_directory)
        client.on_room = self._room
        client.on_detach = lambda: self.on_detach()
        client.on_end = self._client_ended
        if client.gives:
            client.on_input = self._type
            client.on_eof = self.close_input
        self._clients.append(client)
        if client.initial:
            client.give(client.initial)
        if self._input:
            client.pause_input(True)
        if self._finished:
            client.finish()

    # output

    def _reader_of(self, fd: int) -> Callable[[int], None]:
        def ready(events: int) -> None:
            self._read(fd)

        return ready

    def _terminal_ready(self, events: int) -> None:
        if events & WRITE:
            self._write_input()
        if events & (READ | GONE):
            self._read(self._sink)

    def _read(self, fd: int) -> bool:
        """Hand on what `fd` has, a piece of it; False when there is nothing more now."""
        stream = self._outputs.get(fd)
        if stream is None or self._held_up:
            return False
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # EIO: nobody holds the terminal's other side any more
        if not data:
            self._output_ended(fd)
            return False
        if self._clients:
            header = _FRAME.pack(stream, len(data))
            for client in list(self._clients):
                client.send(stream, header, data)
        if self._log is not None:
            self._log.write(_NAMES[stream], data)
        if self._clients and any(client.holds_up for client in self._clients):
            self._hold_up(True)
        return True

    def _hold_up(self, held: bool) -> None:
        if held == self._held_up:
            return
        self._held_up = held
        for fd in self._outputs:
            if held:
                self._loop.forget(fd)  # not "no events": a hang-up would be told again and again
            elif self._terminal:
                self._loop.watch(fd, READ | (WRITE if self._input else 0), self._terminal_ready)
            else:
                self._loop.watch(fd, READ, self._reader_of(fd))

    def _room(self) -> None:
        if self._held_up and not any(client.holds_up for client in self._clients):
            self._hold_up(False)

    def _output_ended(self, fd: int) -> None:
        stream = self._outputs.pop(fd)
        if self._log is not None:
            self._log.finish(_NAMES[stream])
        self._loop.forget(fd)
        os.close(fd)
        if fd == self._sink:
            self._sink = -1
        if not self._outputs:
            self.on_drained()

    def give_up_output(self) -> bool:
        """The process is gone and something else still holds its output: take what lies there, and wait for no more.

        False: a client has to be waited for first.
        """
        for fd in list(self._outputs):
            for _ in range(_PIPE_CHUNKS):
                if not self._read(fd):
                    break
            if self._held_up:
                return False
            if fd in self._outputs:
                self._output_ended(fd)
        return True

    def finish(self) -> None:
        """Everything was read: clients get what they have not taken yet, then their end."""
        self._finished = True
        self._close_sink()
        for client in list(self._clients):
            client.finish()

    def abandon(self) -> None:
        """The start failed: let go of the clients' sockets, which ketchd still answers on."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.abandon()
        self._room()

    # input

    def _type(self, data: bytes) -> None:
        if not self._finished:
            self._input.append(data)
            self._write_input()

    def _write_input(self) -> None:
        """Give the process what waits; clients are not read while something does."""
        if not self._connected:
            self._pause(bool(self._input))
            return
        try:
            while self._input and self._sink >= 0:
                sent = os.write(self._sink, self._input[0])
                if sent == len(self._input[0]):
                    del self._input[0]
                else:
                    self._input[0] = self._input[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._close_sink()
        if self._sink < 0:
            self._input.clear()  # the process has closed its input: what is typed now goes nowhere
        self._pause(bool(self._input))
        if self._eof_waits and not self._input:
            self._close_sink()

    def _pause(self, paused: bool) -> None:
        if self._sink >= 0 and not (self._terminal and self._held_up):
            wanted = READ if self._terminal else 0
            self._loop.change(self._sink, wanted | (WRITE if paused else 0))
        for client in self._clients:
            client.pause_input(paused)

    def _sink_ready(self, events: int) -> None:
        if events & GONE:
            self._close_sink()
            self._write_input()
        else:
            self._write_input()

    def close_input(self) -> None:
        """Nobody will give input any more: the process sees its end, unless the next client may go on (no StdinOnce)."""
        if not self._stdin_once or self._terminal:
            return
        self._eof_waits = True
        if self._connected:
            self._write_input()

    def _close_sink(self) -> None:
        if self._sink >= 0 and not self._terminal:
            self._loop.forget(self._sink)
            os.close(self._sink)
            self._sink = -1
        self._input.clear()

    def _client_ended(self, client: Client, detached: bool) -> None:
        if client in self._clients:
            self._clients.remove(client)
        if client.gives and not detached:
            self.close_input()
        if not self._clients:
            self.on_clients_gone()
