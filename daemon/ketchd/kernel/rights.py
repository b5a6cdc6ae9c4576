"""Descriptors in the messages of a unix socket: packed for sendmsg, and taken out of what recvmsg gave. Source: unix(7), SCM_RIGHTS."""

from __future__ import annotations

import _socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SIZE = 4  # of an int


def packed(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Ancillary data that carries `fds`; none for none."""
    if not fds:
        return []
    return [
        (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(fd.to_bytes(_SIZE, sys.byteorder) for fd in fds))
    ]


def room_for(count: int) -> int:
    """The size of ancillary data with `count` descriptors."""
    return _socket.CMSG_SPACE(count * _SIZE)


def taken(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came, which are the caller's."""
    return [
        int.from_bytes(payload[at : at + _SIZE], sys.byteorder)
        for level, kind, payload in ancillary
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        for at in range(0, len(payload) - _SIZE + 1, _SIZE)
    ]
