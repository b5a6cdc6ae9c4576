"""Being told when somebody changes packet rules that ours need: flushes them, or puts a chain beside them that drops.

Source: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable

_NETLINK_NETFILTER, _GROUP_NFTABLES = 12, 7
_SUBSYSTEM_NFTABLES = 10
_CHANGES = {
    (_SUBSYSTEM_NFTABLES << 8) | message for message in (2, 3, 5, 8, 11, 14)
}  # table gone, chain new or changed, chain gone, rule gone, set gone, element gone
_HEADER = struct.Struct("=IHHII")
_PAUSE_SECONDS = 0.05
_TABLE_ATTRIBUTE = 1  # the table's name, in all of them


def changed_tables(datagram: bytes) -> set[str]:
    """Tables that the notifications in `datagram` take something from, or change a chain's policy in."""
    found = set()
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            break
        if kind in _CHANGES:
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
    """Calls `check` when something changed in one of `tables`, or when that may have been missed. `start`, then `close`.

    Our own changes are told as well, so a check looks first and changes only what is missing; one runs at a time, and a storm
    of changes by another program is looked at twenty times a second at most.
    """

    def __init__(self, tables: set[str], check: Callable[[], Awaitable[None]]) -> None:
        self._tables = tables
        self._check = check
        self._socket: socket.socket | None = None
        self._touched = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen. Raises OSError where the kernel has no nftables."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        made = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        try:
            made.bind((0, 1 << (_GROUP_NFTABLES - 1)))
        except BaseException:
            made.close()
            raise
        self._socket = made
        asyncio.get_running_loop().add_reader(made, self._read)

    def _read(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._touched |= bool(self._tables & changed_tables(self._socket.recv(1 << 18)))
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._touched = True  # some notifications were lost
        if self._touched and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while self._touched:
            self._touched = False
            await self._check()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def close(self) -> None:
        """Listen no more; a check under way is cancelled. May be called twice."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
