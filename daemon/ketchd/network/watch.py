"""Being told when somebody deletes packet rules (`nft flush ruleset`, a firewall's restart). Source: linux/netfilter/nfnetlink.h."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable

_NETLINK_NETFILTER, _GROUP_NFTABLES = 12, 7
_SUBSYSTEM_NFTABLES = 10
_DELETED = {(_SUBSYSTEM_NFTABLES << 8) | message for message in (2, 5, 8)}  # a table, a chain, a rule
_HEADER = struct.Struct("=IHHII")
_TABLE_ATTRIBUTE = 1  # the table's name, in all three


def deleted_tables(datagram: bytes) -> set[str]:
    """Tables that the notifications in `datagram` take something from."""
    found = set()
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            break
        if kind in _DELETED:
            found.add(_table(datagram[offset + _HEADER.size + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def _table(attributes: bytes) -> str:
    offset = 0
    while offset + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, offset)
        if length < 4:
            break
        if kind & 0x3FFF == _TABLE_ATTRIBUTE:
            return attributes[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    return ""


class RuleWatch:
    """Calls `touched` on the event loop when something is deleted from `table`, or when that may have been missed.

    Our own changes are told as well: the listener looks whether anything is missing. Close it.
    """

    def __init__(self, table: str, touched: Callable[[], None]) -> None:
        """Raises OSError where the kernel has no nftables."""
        self._table = table
        self._touched = touched
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 1 << (_GROUP_NFTABLES - 1)))
            asyncio.get_running_loop().add_reader(self._socket, self._read)
        except BaseException:
            self._socket.close()
            raise

    def _read(self) -> None:
        touched = False
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    touched |= self._table in deleted_tables(self._socket.recv(1 << 18))
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    touched = True  # some notifications were lost
        if touched:
            self._touched()

    def close(self) -> None:
        """Listen no more. May be called twice."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
