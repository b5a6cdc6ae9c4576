"""Flows that the kernel still leads to a container which has ended: forgotten, or a peer that keeps its source port
(WireGuard, syslog, a DNS forwarder) would talk to the dead address for as long as it talks. A TCP connection ends by itself: its
packets come back as unreachable.

Messages are pure; `forget` acts, blocking: called on a thread of its own.
Source: linux/netfilter/nfnetlink_conntrack.h; moby libnetwork/iptables/conntrack.go for why.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address

from ketchd.network import rtnetlink

_NETLINK_NETFILTER, _SUBSYSTEM = 12, 1
_GET, _DELETE = (_SUBSYSTEM << 8) | 1, (_SUBSYSTEM << 8) | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _IP_V4_SRC = 1, 1
_FILTER_REPLY_FLAGS, _BY_SOURCE = 2, 1
_NESTED = 0x8000
_FAMILY = struct.pack("=BBH", socket.AF_INET, 0, 0)
_BATCH = 64


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _message(kind: int, flags: int, sequence: int, attributes: bytes) -> bytes:
    body = _FAMILY + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, sequence, 0) + body


def listing(address: IPv4Address) -> bytes:
    """Ask for the connections that `address` answers. A kernel before 5.8 does not filter and sends all."""
    source = _attribute(_TUPLE_IP | _NESTED, _attribute(_IP_V4_SRC, address.packed))
    chosen = _attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", _BY_SOURCE))
    return _message(
        _GET, _DUMP, 1, _attribute(_TUPLE_REPLY | _NESTED, source) + _attribute(_FILTER | _NESTED, chosen)
    )


def answered_by(payload: bytes, address: IPv4Address) -> bytes | None:
    """The original direction of a listed connection, for its deletion; None when another answers it."""
    found = rtnetlink.attributes(payload, len(_FAMILY))
    reply = rtnetlink.attributes(found.get(_TUPLE_REPLY, b""))
    source = rtnetlink.attributes(reply.get(_TUPLE_IP, b"")).get(_IP_V4_SRC)
    return found.get(_TUPLE_ORIG) if source == address.packed else None


def deletion(original: bytes, sequence: int) -> bytes:
    """Forget one connection."""
    return _message(_DELETE, _ACK, sequence, _attribute(_TUPLE_ORIG | _NESTED, original))


def forget(address: IPv4Address) -> int:
    """Forget every connection that `address` answers; how many. Raises OSError."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as channel:
        channel.bind((0, 0))
        channel.send(listing(address))
        found: list[bytes] = []
        listed = False
        while not listed:
            for answer in rtnetlink.answers(channel.recv(1 << 18)):
                if answer.kind == rtnetlink.NLMSG_DONE or answer.error is not None:
                    listed = True
                elif (original := answered_by(answer.payload, address)) is not None:
                    found.append(original)
        for begin in range(0, len(found), _BATCH):
            batch = found[begin : begin + _BATCH]
            channel.send(b"".join(deletion(original, number) for number, original in enumerate(batch, 1)))
            waiting = len(batch)
            while waiting:  # one that ended by itself meanwhile is acknowledged as missing
                waiting -= sum(
                    answer.error is not None for answer in rtnetlink.answers(channel.recv(1 << 16))
                )
        return len(found)


def forget_quietly(addresses: Iterable[str]) -> None:
    """`forget` each; a kernel that cannot is as good."""
    for address in addresses:
        with contextlib.suppress(OSError):
            forget(IPv4Address(address))
