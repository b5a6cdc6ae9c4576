"""The shim's connection to ketchd: frames both ways, descriptors coming in. At most one at a time."""

from __future__ import annotations

import _socket
import os

from ketch_wire.frames import FrameReader, pack
from ketchd.kernel import rights
from ketchd.shim.loop import GONE, READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CHUNK = 262144
_BACKLOG_LIMIT = 4 * 1024 * 1024
_RIGHTS = 256


class Link:
    """One connection. `on_message(message, fds)` for each frame; `on_close()` once, when the peer is gone."""

    def __init__(
        self,
        loop: Loop,
        channel: _socket.socket,
        on_message: Callable[[dict[str, Any], list[int]], None],
        on_close: Callable[[Link], None],
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._on_message = on_message
        self._on_close = on_close
        self._reader = FrameReader()
        self._fds: list[int] = []
        self._unsent = bytearray()
        self._writing = False
        channel.setblocking(False)
        loop.watch(channel.fileno(), READ, self._ready)

    def send(self, message: dict[str, Any]) -> None:
        """Send, now or as soon as ketchd reads. A ketchd that does not is cut off."""
        if self._channel.fileno() < 0:
            return
        self._unsent += pack(message)
        self._flush()
        if len(self._unsent) > _BACKLOG_LIMIT:
            self._lost()

    def close(self) -> None:
        """End it without a word. May be called twice."""
        if self._channel.fileno() >= 0:
            self._loop.forget(self._channel.fileno())
            self._channel.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._channel.send(self._unsent, _socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self._lost()
            return
        if self._writing != bool(self._unsent):
            self._writing = bool(self._unsent)
            self._loop.change(self._channel.fileno(), READ | (WRITE if self._writing else 0))

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & (READ | GONE) and self._channel.fileno() >= 0:
            self._receive()

    def _receive(self) -> None:
        try:
            data, ancillary, _, _ = self._channel.recvmsg(
                _CHUNK, rights.room_for(_RIGHTS), _socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        self._fds += rights.taken(ancillary)
        messages = self._reader.take(data)
        if messages is None:
            self._lost()
            return
        for message in messages:
            if self._channel.fileno() < 0:
                return  # it broke while we answered: what it had asked for besides is nobody's wish now, and its files are closed
            if message.get("op") == "fds":
                continue  # they lie ready for the message that counts them
            count = int(message.get("fds", 0))
            fds, self._fds = self._fds[:count], self._fds[count:]
            self._on_message(message, fds)

    def _lost(self) -> None:
        if self._channel.fileno() >= 0:
            self.close()
            self._on_close(self)
