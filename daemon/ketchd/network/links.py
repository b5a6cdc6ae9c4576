"""Bridges and veth pairs, through one rtnetlink socket a call. Blocking: called on the network thread only.

The kernel takes the rtnl lock for each message, and another's clean-up may hold it for tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from ketchd.network import rtnetlink
from ketchd.network.rtnetlink import Answer, Link

_INDEX_TRIES = 8


class LinkError(OSError):
    """What the kernel answered to an rtnetlink message: errno, its own explanation when it gave one, and about what."""


@contextlib.contextmanager
def _open() -> Iterator[socket.socket]:
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as channel:
        channel.setsockopt(270, 11, 1)  # SOL_NETLINK, NETLINK_EXT_ACK: errors come with words
        channel.bind((0, 0))
        yield channel


def send(messages: list[bytes], what: str) -> None:
    """Have the kernel carry out `messages` in order, in one datagram.

    Raises LinkError for the first that failed; those behind it were carried out all the same.
    """
    with _open() as channel:
        channel.send(b"".join(rtnetlink.numbered(messages)))
        failure: Answer | None = None
        waiting = len(messages)
        while waiting:
            for answer in rtnetlink.answers(channel.recv(1 << 16)):
                if answer.error is None:
                    continue
                waiting -= 1
                if answer.error and failure is None:
                    failure = answer
    if failure is not None:
        number = failure.error or 0
        raise LinkError(number, failure.text or os.strerror(number), what)


def _dump(request: bytes) -> list[Answer]:
    found: list[Answer] = []
    with _open() as channel:
        channel.send(request)
        while True:
            for answer in rtnetlink.answers(channel.recv(1 << 18)):
                if answer.kind == rtnetlink.NLMSG_DONE:
                    return found
                if answer.error:
                    raise LinkError(answer.error, os.strerror(answer.error), "dump")
                found.append(answer)


def links() -> list[Link]:
    """Every link of the host."""
    return [
        rtnetlink.read_link(one) for one in _dump(rtnetlink.dump_links()) if one.kind == rtnetlink.RTM_NEWLINK
    ]


def addresses() -> list[tuple[int, IPv4Interface]]:
    """Every IPv4 address of the host with its link's index."""
    return [rtnetlink.read_address(one) for one in _dump(rtnetlink.dump_addresses())]


def subnets_in_use(but: int = 0) -> list[IPv4Network]:
    """What the routes and addresses of the host cover, those of the link with index `but` left out."""
    routes = [rtnetlink.read_route(one) for one in _dump(rtnetlink.dump_routes())]
    found = [network for index, network in routes if index != but]
    return found + [interface.network for index, interface in addresses() if index != but]


@contextlib.contextmanager
def subnet_lock() -> Iterator[None]:
    """Held by whoever chooses a subnet, so that two ketchd do not choose the same: a lock on the network namespace itself."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make_bridge(name: str, alias: str, mtu: int, mac: str) -> Link:
    """A bridge of ours, up and without address. Raises LinkError (EEXIST when there is such a link)."""
    messages = [
        rtnetlink.new_bridge(name, mac, mtu), rtnetlink.set_alias(name, alias), rtnetlink.no_link_local(name),
    ]  # fmt: skip
    send(messages, f"bridge {name}")
    return next(link for link in links() if link.name == name)


def add_address(link: Link, interface: IPv4Interface) -> None:
    """Give `link` an address. Raises LinkError."""
    send([rtnetlink.add_address(link.index, interface)], f"address {interface} of {link.name}")


def delete_address(link: Link, interface: IPv4Interface) -> None:
    """Take an address from `link`. Raises LinkError."""
    send([rtnetlink.delete_address(link.index, interface)], f"address {interface} of {link.name}")


def set_up(link: Link) -> None:
    """Bring `link` up. Raises LinkError."""
    send([rtnetlink.set_up(index=link.index)], link.name)


def allow_loopback(name: str) -> None:
    """net.ipv4.conf.NAME.route_localnet: connections to the host's 127.0.0.1 may leave, translated, by this link."""
    Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")


def connect(
    *, name: str, bridge: int, mtu: int, pid: int, peer_name: str, peer_index: int, peer_mac: str, isolated: bool
) -> None:  # fmt: skip
    """A veth pair: `name` in the bridge with index `bridge`, `peer_name` in the network namespace of `pid`.

    isolated: the bridge does not forward between such ports. Raises LinkError; the pair is then gone.
    """
    what = f"veth {name}"
    for attempt in range(_INDEX_TRIES):
        index = 0x100000 + secrets.randbelow(0x7FF00000 - 0x100000)
        made = rtnetlink.new_veth(
            name=name, index=index, master=bridge, mtu=mtu, peer_name=peer_name, peer_index=peer_index,
            peer_mac=peer_mac, peer_pid=pid,
        )  # fmt: skip
        settings = [rtnetlink.port_settings(name, isolated=isolated), rtnetlink.no_link_local(name)]
        try:
            send([made, *settings], what)
            return
        except LinkError as error:
            taken = error.errno in (errno.EBUSY, errno.EEXIST) and not exists(name)
            if not taken or attempt == _INDEX_TRIES - 1:
                delete_named(name)
                raise


def index_of(name: str) -> int:
    """The link's index. Raises OSError (ENODEV)."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise LinkError(errno.ENODEV, os.strerror(errno.ENODEV), name) from error


def set_master(name: str, bridge: int, *, isolated: bool) -> None:
    """Put a link into a bridge, as a container's. Raises LinkError."""
    send([rtnetlink.set_master(name, bridge), rtnetlink.port_settings(name, isolated=isolated)], name)


def exists(name: str) -> bool:
    """Whether there is a link called `name`."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def delete_named(name: str) -> None:
    """Delete the link `name`; none is as good."""
    try:
        send([rtnetlink.delete_link_named(name)], name)
    except LinkError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise


def delete(link: Link) -> None:
    """Delete `link`; gone is as good."""
    try:
        send([rtnetlink.delete_link(link.index)], link.name)
    except LinkError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise
