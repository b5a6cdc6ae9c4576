"""Flows that the kernel still leads to a container which has ended: forgotten, or a peer that keeps its source port
(WireGuard, syslog, a DNS forwarder) would talk to the dead address for as long as it talks. The same when it talks on while
nobody publishes the port: its flow is the host's then, and would stay so. A TCP connection ends by itself: its packets come back
as unreachable.

Messages are pure; `forget` acts, blocking: called on a thread of its own.
Source: linux/netfilter/nfnetlink_conntrack.h; moby libnetwork/iptables/conntrack.go for why.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from ketchd.network import links, rtnetlink
from ketchd.network.files import EMBEDDED_SERVER

_NETLINK_NETFILTER, _SUBSYSTEM = 12, 1
_GET, _DELETE = (_SUBSYSTEM << 8) | 1, (_SUBSYSTEM << 8) | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _IP_V4_SRC, _IP_V4_DST = 1, 1, 2
_TUPLE_PROTO, _PROTO_NUMBER, _PROTO_DST_PORT = 2, 1, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS, _BY_SOURCE, _BY_PROTO_AND_PORT = 1, 2, 0x1, 0x8 | 0x20
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


def listing_port(port: int) -> bytes:
    """Ask for the UDP flows that began towards `port`, on any address. A kernel before 5.8 does not filter and sends all."""
    wanted = _attribute(_PROTO_NUMBER, bytes([socket.IPPROTO_UDP]))
    wanted += _attribute(_PROTO_DST_PORT, struct.pack("!H", port))
    chosen = _attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _BY_PROTO_AND_PORT))
    tuple_ = _attribute(_TUPLE_PROTO | _NESTED, wanted)
    return _message(
        _GET, _DUMP, 1, _attribute(_TUPLE_ORIG | _NESTED, tuple_) + _attribute(_FILTER | _NESTED, chosen)
    )


def led_elsewhere(
    payload: bytes, local: Callable[[IPv4Address], bool], port: int, address: IPv4Address
) -> bytes | None:
    """The original direction of a listed UDP flow to `port` of an address that is `local`, when another than `address` answers."""
    found = rtnetlink.attributes(payload, len(_FAMILY))
    original = rtnetlink.attributes(found.get(_TUPLE_ORIG, b""))
    protocol = rtnetlink.attributes(original.get(_TUPLE_PROTO, b""))
    target = rtnetlink.attributes(original.get(_TUPLE_IP, b"")).get(_IP_V4_DST, b"")
    if (
        protocol.get(_PROTO_NUMBER) != bytes([socket.IPPROTO_UDP])
        or protocol.get(_PROTO_DST_PORT) != struct.pack("!H", port)
        or len(target) != 4
        or not local(IPv4Address(target))
    ):
        return None
    return found[_TUPLE_ORIG] if answered_by(payload, address) is None else None


def deletion(original: bytes, sequence: int) -> bytes:
    """Forget one connection."""
    return _message(_DELETE, _ACK, sequence, _attribute(_TUPLE_ORIG | _NESTED, original))


def forget(address: IPv4Address) -> int:
    """Forget every connection that `address` answers; how many. Raises OSError."""
    return _forget(listing(address), lambda payload: answered_by(payload, address))


def forget_port(host_ip: str, port: int, address: IPv4Address) -> int:
    """Forget UDP flows to a port that leads to `address` now and lead elsewhere; how many. Raises OSError.

    host_ip: where it is published, `0.0.0.0` for every address of the host.
    """
    if host_ip == "0.0.0.0":
        ours = {interface.ip for _, interface in links.addresses()}
    else:
        ours = {IPv4Address(host_ip)}

    def local(target: IPv4Address) -> bool:
        return target in ours or (host_ip == "0.0.0.0" and target.is_loopback)

    return _forget(listing_port(port), lambda payload: led_elsewhere(payload, local, port, address))


def forget_questions(gateway: IPv4Address) -> int:
    """Forget flows to the embedded DNS server that `gateway` answers; how many. Raises OSError.

    A client that keeps its source port would be led to where the server listened before ketchd started anew.
    """

    def asked(payload: bytes) -> bytes | None:
        original = answered_by(payload, gateway)
        tuple_ = rtnetlink.attributes(original or b"")
        target = rtnetlink.attributes(tuple_.get(_TUPLE_IP, b"")).get(_IP_V4_DST)
        return original if target == IPv4Address(EMBEDDED_SERVER).packed else None

    return _forget(listing(gateway), asked)


def _forget(request: bytes, choose: Callable[[bytes], bytes | None]) -> int:
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as channel:
        channel.bind((0, 0))
        channel.send(request)
        found: list[bytes] = []
        listed = False
        while not listed:
            for answer in rtnetlink.answers(channel.recv(1 << 18)):
                if answer.kind == rtnetlink.NLMSG_DONE or answer.error is not None:
                    listed = True
                elif (original := choose(answer.payload)) is not None:
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


def forget_ports_quietly(ports: Iterable[tuple[str, int, str]]) -> None:
    """`forget_port` each (host address, port, container address); a kernel that cannot is as good."""
    for host_ip, port, address in ports:
        with contextlib.suppress(OSError):
            forget_port(host_ip, port, IPv4Address(address))


def forget_questions_quietly(gateways: Iterable[str]) -> None:
    """`forget_questions` each; a kernel that cannot is as good."""
    for gateway in gateways:
        with contextlib.suppress(OSError):
            forget_questions(IPv4Address(gateway))
