"""Sending prepared rtnetlink messages in the caller's network namespace. Source: netlink(7)."""

from __future__ import annotations

import _socket
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_AF_NETLINK, _NETLINK_ROUTE, _NLM_F_ACK, _NLMSG_ERROR = 16, 0, 4, 2
_HEADER = struct.Struct("=IHHII")


def send_messages(messages: Sequence[bytes]) -> None:
    """Send each and read its acknowledgement. Raises OSError with the kernel's refusal.

    EEXIST is no failure: the address, route or state is there, as wanted.
    """
    if not messages:
        return
    channel = _socket.socket(_AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        for sequence, message in enumerate(messages, 1):
            length, kind, flags, _, _ = _HEADER.unpack_from(message)
            channel.send(
                _HEADER.pack(length, kind, flags | _NLM_F_ACK, sequence, 0) + message[_HEADER.size :]
            )
            _acknowledged(channel, sequence)
    finally:
        channel.close()


def _acknowledged(channel: _socket.socket, sequence: int) -> None:
    while True:
        data = channel.recv(65536)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, answered, _ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_ERROR and answered == sequence:
                (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                if code and -code != errno.EEXIST:
                    raise OSError(-code, os.strerror(-code), f"netlink message {sequence}")
                return
            offset += (length + 3) & ~3
