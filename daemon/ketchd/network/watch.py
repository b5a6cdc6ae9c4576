"""Being told when somebody changes what we need: packet rules flushed, a chain put beside them that drops, a bridge deleted.

Source: netlink(7), rtnetlink(7), linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ketchd.network import rtnetlink

_SUBSYSTEM_NFTABLES = 10
_CHANGES = {
    (_SUBSYSTEM_NFTABLES << 8) | message for message in (2, 3, 5, 8, 11, 14)
}  # table gone, chain new or changed, chain gone, rule gone, set gone, element gone
_TABLE_ATTRIBUTE = 1  # the table's name, in all of them
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Source:
    """Who tells: a netlink protocol and its multicast groups. what: they are about, for the log."""

    protocol: int
    groups: tuple[int, ...]
    what: str


RULES = Source(12, (7,), "packet rules")  # NETLINK_NETFILTER, NFNLGRP_NFTABLES
LINKS = Source(socket.NETLINK_ROUTE, (1, 5), "links")  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR


def changed_tables(datagram: bytes) -> set[str]:
    """Tables that the notifications in `datagram` take something from, or change a chain's policy in."""
    return {
        rtnetlink.text(rtnetlink.attributes(one.payload, 4).get(_TABLE_ATTRIBUTE, b""))
        for one in rtnetlink.answers(datagram)
        if one.kind in _CHANGES
    }


def changed_links(datagram: bytes) -> set[str]:
    """Links that are gone, have left their bridge, or lost or got an address, and bridges that are down, as `datagram`'s notifications tell.

    A container's link goes down with the container, and nothing is to be put back then.
    """
    found = set()
    for one in rtnetlink.answers(datagram):
        if one.kind == rtnetlink.RTM_DELLINK:
            found.add(rtnetlink.link_name(one))
        elif one.kind == rtnetlink.RTM_NEWLINK:
            link = rtnetlink.read_link(one)
            if link.kind == "bridge" and not link.up:
                found.add(link.name)
        elif one.kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
            found.add(rtnetlink.address_label(one))
    return found


class Watch:
    """Calls `check` when `source` told something that `concerns` us, or may have. `start`, then `close`.

    Our own changes are told as well, so a check looks first and changes only what is missing; one runs at a time, and a storm
    of changes by another program is looked at twenty times a second at most.
    """

    def __init__(
        self, source: Source, concerns: Callable[[bytes], bool], check: Callable[[], Awaitable[None]]
    ) -> None:
        self.source = source
        self._concerns = concerns
        self._check = check
        self._socket: socket.socket | None = None
        self._touched = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to be looked at."""
        return not self._touched and (self._task is None or self._task.done())

    def start(self) -> None:
        """Listen. Raises OSError where the kernel has no such source."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        made = socket.socket(socket.AF_NETLINK, kind, self.source.protocol)
        try:
            made.bind((0, sum(1 << (group - 1) for group in self.source.groups)))
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
                    datagram = self._socket.recv(1 << 18)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._touched = True  # some notifications were lost
                else:
                    self._touched = self._touched or self._concerns(datagram)
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
