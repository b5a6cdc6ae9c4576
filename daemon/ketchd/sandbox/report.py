"""The half-born child's way home: one message a packet, and a descriptor or two with it.

The socket closes with execve: that it ended without `failed` is the success.
"""

from __future__ import annotations

import _socket
import os

from ketch_wire.frames import FrameReader, pack
from ketchd.kernel import rights
from ketchd.sandbox.failures import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PACKET = 1 << 16


class Report:
    """The child's end."""

    def __init__(self, channel: _socket.socket) -> None:
        self._channel = channel

    @property
    def channel(self) -> _socket.socket:
        """The socket, for what comes the other way."""
        return self._channel

    def fileno(self) -> int:
        """Its descriptor."""
        return self._channel.fileno()

    def say(self, message: dict[str, Any], fd: int = -1) -> None:
        """Tell the shim."""
        self._channel.sendmsg([pack(message)], rights.packed([fd] if fd >= 0 else []))

    def warn(self, text: str) -> None:
        """Something is not quite as asked, and the start goes on."""
        self.say({"warning": text})

    def failed(self, error: LaunchError) -> None:
        """The last word."""
        try:
            self.say({"failed": error.to_wire()})
        except OSError:
            pass  # the shim is gone, and with it everybody who would listen

    def wait_for_go(self) -> None:
        """Until the shim says that the network stands. Without a shim nothing must go on: the process ends."""
        if not self._channel.recv(16):
            os._exit(1)


def read_packet(channel: _socket.socket) -> tuple[list[dict[str, Any]], int]:
    """The shim's end: the messages of one packet (none at its end) and the descriptor that came along, or -1."""
    data, ancillary, _, _ = channel.recvmsg(_PACKET, rights.room_for(1), _socket.MSG_CMSG_CLOEXEC)
    return FrameReader().feed(data), next(iter(rights.taken(ancillary)), -1)
