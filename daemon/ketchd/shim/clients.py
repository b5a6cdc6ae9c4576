"""A client that is attached to a process: its socket gets output, and may give input.

A client that does not take its output has a moment's patience, then its share waits in a file, and the process goes on.
Only when SPILL_LIMIT waits there is the process held up, and only as long as the client takes something now and then;
one that does not is cut off. So nobody loses a byte for being slow, and nobody stops a container for being stuck. When
the process has ended nobody is held up any more, and a client may take its time.
"""

from __future__ import annotations

import _socket

from ketchd.shim.detachkeys import DetachKeys
from ketchd.shim.loop import GONE, READ, WRITE, Loop, Timer
from ketchd.shim.spill import Spill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PATIENCE_SECONDS = 0.02
STALL_SECONDS = 10.0
_INPUT = 65536


class Client:
    """One attached socket. `on_input(data)`; `on_eof()` at the end of its input; `on_detach()` before its
    socket is closed, if it detached; `on_end(detached)` once."""

    def __init__(self, loop: Loop, fd: int, spec: dict[str, Any], spill_directory: int) -> None:
        self._loop = loop
        self._channel = _socket.socket(fileno=fd)
        self._channel.setblocking(False)
        self._fd = fd
        self._spill_directory = spill_directory
        self._keys = DetachKeys(spec["detach_keys"])
        self.wants = {1: bool(spec["stdout"]), 2: bool(spec["stderr"])}
        self.gives = bool(spec["stdin"])
        self.initial: bytes = spec["initial"]
        self._framed = bool(spec["multiplexed"])
        self._pending = memoryview(b"")
        self._spill: Spill | None = None
        self._timer: Timer | None = None
        self._moved = 0
        self._reading = True
        self._parked = False
        self._ended = self._input_over = self._output_over = self._closing = False
        self.on_input: Callable[[bytes], None] = lambda data: None
        self.on_eof: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_detach: Callable[[], None] = lambda: None
        self.on_end: Callable[[Client, bool], None] = lambda client, detached: None
        self._mask = READ
        loop.watch(fd, READ, self._ready)

    @property
    def holds_up(self) -> bool:
        """Whether the process has to wait for this client now."""
        if self._ended:
            return False
        if self._spill is not None:
            return self._spill.room < (1 << 20)
        return bool(self._pending)

    def send(self, stream: int, header: bytes, data: bytes) -> None:
        """Output of `stream` (1, 2). header: the frame's, used when the client wants frames."""
        if self._ended or self._output_over or not self.wants[stream]:
            return
        if self._spill is not None:
            self._put(header if self._framed else b"")
            self._put(data)
            return
        try:
            if self._framed:
                sent = self._channel.sendmsg((header, data), (), _socket.MSG_NOSIGNAL)
            else:
                sent = self._channel.send(data, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_output()
            return
        whole = len(data) + (len(header) if self._framed else 0)
        if sent < whole:
            self._pending = memoryview((header + data if self._framed else data)[sent:])
            self._timer = self._loop.later(PATIENCE_SECONDS, self._impatient)
            self._update()

    def _put(self, data: bytes | memoryview) -> None:
        if self._spill is None:
            return  # it has been cut off over the first part
        try:
            self._spill.put(data)
        except OSError:
            self._end(False)  # the disk is full: this client's output cannot be kept

    def _impatient(self) -> None:
        """It did not read in time: what it misses goes to a file."""
        if self._ended or not self._pending:
            return
        try:
            self._spill = Spill(self._spill_directory)
        except OSError:
            self._timer = self._loop.later(STALL_SECONDS, self._stalled)
            return  # no place for a file: the process waits, as with dockerd
        self._put(self._pending)
        self._pending = memoryview(b"")
        self._moved = 0
        self._timer = self._loop.later(STALL_SECONDS, self._stalled)
        self.on_room()

    def _stalled(self) -> None:
        """Every STALL_SECONDS: one that holds the process up and took nothing since is cut off."""
        if self._ended:
            return
        if not self._moved and self.holds_up and not self._closing:
            self._end(False)
            return
        self._moved = 0
        self._timer = self._loop.later(STALL_SECONDS, self._stalled)

    def finish(self) -> None:
        """Everything was sent to this client: close when it has taken it."""
        self._closing = True
        if not self._pending and self._spill is None:
            self._end(False)

    def pause_input(self, paused: bool) -> None:
        """Take no more input for now: the process does not read it."""
        self._reading = not paused
        if self._parked and not paused and not self._ended:
            self._parked = False
            self._loop.watch(self._fd, self._mask, self._ready)
        self._update()

    def abandon(self) -> None:
        """Let go of the socket without a sign to the peer: somebody else still holds it."""
        if not self._ended:
            self._ended = True
            self._release()

    def _update(self) -> None:
        if self._ended or self._parked:
            return
        waiting = bool(self._pending) or self._spill is not None
        mask = (READ if self._reading and not self._input_over else 0) | (WRITE if waiting else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.change(self._fd, mask)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._drain()
        if self._ended:
            return
        if events & READ:
            self._take()
        elif events & GONE:
            self._peer_gone()

    def _lose_output(self) -> None:
        """The peer takes no more. What it has given before lies in the socket, and is still for the process."""
        if not self.gives or self._input_over or self._closing:
            self._end(False)
            return
        self._output_over = True
        self._drop_output()
        self._update()
        self.on_room()

    def _drop_output(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._spill is not None:
            self._spill.close()
            self._spill = None
        self._pending = memoryview(b"")

    def _peer_gone(self) -> None:
        """The peer has hung up; input of its may lie in the socket."""
        self._lose_output()
        if self._ended:
            return
        if self._reading:
            self._take()  # the process has begun to read again since this was seen
        else:
            self._parked = True
            self._loop.forget(self._fd)

    def _drain(self) -> None:
        try:
            if self._pending:
                sent = self._channel.send(self._pending, _socket.MSG_NOSIGNAL)
                self._moved += sent
                self._pending = self._pending[sent:]
                if self._pending:
                    return
                if self._timer is not None:
                    self._timer.cancel()
            elif self._spill is not None:
                self._moved += self._spill.send(self._fd)
                if self._spill.size:
                    self.on_room()
                    return
                self._spill.close()
                self._spill = None
                if self._timer is not None:
                    self._timer.cancel()
        except BlockingIOError:
            return
        except ConnectionError:
            self._lose_output()
            return
        except OSError:
            self._end(False)  # the file cannot be read
            return
        if self._closing:
            self._end(False)
            return
        self._update()
        self.on_room()

    def _take(self) -> None:
        try:
            data = self._channel.recv(_INPUT)
        except BlockingIOError:
            return
        except OSError:
            self._end(False)
            return
        if not data:
            self._input_over = True
            if self._output_over:
                self._end(False)
                return
            self._update()
            self.on_eof()
            return
        self.give(data)

    def give(self, data: bytes) -> None:
        """Take `data` as if it had come from the socket: what a client has sent with its request."""
        if not self.gives:
            return
        data, detached = self._keys.feed(data)
        if data:
            self.on_input(data)
        if detached:
            self._end(True)

    def _end(self, detached: bool) -> None:
        if self._ended:
            return
        self._ended = True
        if detached:
            self.on_detach()  # while the peer cannot know: nothing that it does next comes before
        try:
            # After this the peer can send no more, so that draining once is enough: a socket closed with unread
            # input resets the connection, and the peer would lose what it has not read yet.
            self._channel.shutdown(_socket.SHUT_RDWR)
            while self._channel.recv(_INPUT):
                pass
        except OSError:
            pass
        self._release()
        self.on_end(self, detached)
        self.on_room()

    def _release(self) -> None:
        self._loop.forget(self._fd)
        self._channel.close()
        self._drop_output()
