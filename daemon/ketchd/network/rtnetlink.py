"""rtnetlink messages as bytes, and the kernel's answers as values. Pure.

Every request asks for an acknowledgement; a sequence of them may go out in one datagram and is carried out in order.
Source: netlink(7), rtnetlink(7), linux/if_link.h, linux/if_addr.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_NESTED = 0x8000
_AF_INET, _AF_INET6 = 2, 10
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_NET_NS_PID, _IFLA_IFALIAS, _IFLA_AF_SPEC = 19, 20, 26
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER, _BRPORT_MODE, _BRPORT_ISOLATED = 1, 4, 33
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_INET_CONF, _DEVCONF_ROUTE_LOCALNET = 1, 26
_IFA_LABEL = 3
_IFF_UP = 0x1
_TABLE_LOCAL, _TABLE_MAIN = 255, 254
_PROTO_STATIC, _SCOPE_UNIVERSE, _RTN_UNICAST = 4, 0, 1
LOOPBACK_INDEX = 1  # of every network namespace

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _name(text: str) -> bytes:
    return _attribute(_IFLA_IFNAME, text.encode() + b"\0")


def _mac(text: str) -> bytes:
    return _attribute(_IFLA_ADDRESS, bytes.fromhex(text.replace(":", "")))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _request(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 0, 0) + body


def _link(kind: int, flags: int, attributes: bytes, *, index: int = 0, up: bool = False) -> bytes:
    state = _IFF_UP if up else 0
    return _request(kind, _ACK | flags, _LINK.pack(0, 0, index, state, state) + attributes)


def numbered(messages: list[bytes]) -> list[bytes]:
    """The messages with sequence numbers 1, 2, 3 …, so that an answer names its question."""
    return [one[:8] + struct.pack("=I", number) + one[12:] for number, one in enumerate(messages, 1)]


def new_bridge(name: str, mac: str, mtu: int) -> bytes:
    """Make a bridge, up. Its own MAC: else it would take the lowest of its ports', and change under its neighbours."""
    kind = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"bridge"))
    return _link(
        RTM_NEWLINK,
        _CREATE | _EXCL,
        _name(name) + _mac(mac) + _number(_IFLA_MTU, mtu) + kind,
        up=True,
    )


def new_veth(
    *,
    name: str,
    index: int,
    master: int,
    mtu: int,
    peer_name: str,
    peer_index: int,
    peer_mac: str,
    peer_pid: int,
) -> bytes:
    """Make a veth pair at once: our end up and in the bridge `master`, the other down in the namespace of `peer_pid`.

    The kernel takes the peer's index only together with ours; the two must differ, or the carrier is noticed late
    (net/core/link_watch.c, linkwatch_urgent_event).
    """
    peer = (
        _LINK.pack(0, 0, peer_index, 0, 0)
        + _name(peer_name)
        + _mac(peer_mac)
        + _number(_IFLA_MTU, mtu)
        + _number(_IFLA_NET_NS_PID, peer_pid)
    )
    info = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, peer))
    attributes = (
        _name(name)
        + _number(_IFLA_MTU, mtu)
        + _number(_IFLA_MASTER, master)
        + _attribute(_IFLA_LINKINFO, info)
    )
    return _link(RTM_NEWLINK, _CREATE | _EXCL, attributes, index=index, up=True)


def port_settings(name: str, *, isolated: bool = False) -> bytes:
    """Of a bridge port: it may send back to where a frame came from; an isolated one reaches no other isolated one.

    With bridge-nf-call-iptables on, a port published by the very container that asks for it is translated inside the bridge.
    """
    settings = _attribute(_BRPORT_MODE, b"\1") + _attribute(_BRPORT_ISOLATED, b"\1" if isolated else b"\0")
    info = _attribute(_INFO_SLAVE_KIND, b"bridge") + _attribute(_INFO_SLAVE_DATA, settings)
    return _link(RTM_NEWLINK, 0, _name(name) + _attribute(_IFLA_LINKINFO, info))


def no_link_local(name: str, *, route_localnet: bool = False) -> bytes:
    """No automatic IPv6 address on `name`: no duplicate detection, no multicast chatter on a network without IPv6.

    route_localnet: 127.0.0.0/8 may come in and go out there, as net.ipv4.conf.NAME.route_localnet.
    """
    spec = _attribute(_AF_INET6, _attribute(_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE])))
    if route_localnet:
        values = _attribute(_DEVCONF_ROUTE_LOCALNET, struct.pack("=I", 1))
        spec += _attribute(_AF_INET | _NESTED, _attribute(_INET_CONF | _NESTED, values))
    return _link(RTM_NEWLINK, 0, _name(name) + _attribute(_IFLA_AF_SPEC, spec))


def set_alias(name: str, alias: str) -> bytes:
    """The link's alias: how we know our own again."""
    return _link(RTM_NEWLINK, 0, _name(name) + _attribute(_IFLA_IFALIAS, alias.encode()))


def set_master(name: str, bridge: int) -> bytes:
    """Put a link into a bridge, up."""
    return _link(RTM_NEWLINK, 0, _name(name) + _number(_IFLA_MASTER, bridge), up=True)


def set_up(*, name: str = "", index: int = 0) -> bytes:
    """Bring a link up, by name or index."""
    return _link(RTM_NEWLINK, 0, _name(name) if name else b"", index=index, up=True)


def delete_link(index: int) -> bytes:
    """Delete a link and, for a veth, its other end."""
    return _link(RTM_DELLINK, 0, b"", index=index)


def delete_link_named(name: str) -> bytes:
    """Delete a link whose index is not known."""
    return _link(RTM_DELLINK, 0, _name(name))


def _address_message(kind: int, flags: int, index: int, interface: IPv4Interface) -> bytes:
    body = _ADDRESS.pack(_AF_INET, interface.network.prefixlen, 0, _SCOPE_UNIVERSE, index)
    body += _attribute(1, interface.ip.packed) + _attribute(2, interface.ip.packed)
    if interface.network.prefixlen < 31:
        body += _attribute(4, interface.network.broadcast_address.packed)
    return _request(kind, _ACK | flags, body)


def add_address(index: int, interface: IPv4Interface) -> bytes:
    """Give the link an address; the route to its subnet comes with it."""
    return _address_message(RTM_NEWADDR, _CREATE | _REPLACE, index, interface)


def delete_address(index: int, interface: IPv4Interface) -> bytes:
    """Take an address away."""
    return _address_message(RTM_DELADDR, 0, index, interface)


def add_route(
    gateway: IPv4Address, *, to: IPv4Network | None = None, index: int = 0, local: bool = False,
    source: IPv4Address | None = None,
) -> bytes:  # fmt: skip
    """A route by `gateway`: the default one, or that `to` a network.

    local: in the table that is asked first, where it beats 127.0.0.0/8 on the loopback link.
    """
    table = _TABLE_LOCAL if local else _TABLE_MAIN
    prefix = to.prefixlen if to is not None else 0
    body = _ROUTE.pack(_AF_INET, prefix, 0, 0, table, _PROTO_STATIC, _SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    if to is not None:
        body += _attribute(1, to.network_address.packed)
    body += _attribute(5, gateway.packed)
    if index:
        body += _number(4, index)
    if source is not None:
        body += _attribute(7, source.packed)
    return _request(RTM_NEWROUTE, _ACK | _CREATE | _REPLACE, body)


def dump_links() -> bytes:
    """Ask for every link."""
    return _request(RTM_GETLINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0))


def dump_addresses() -> bytes:
    """Ask for every IPv4 address."""
    return _request(RTM_GETADDR, _DUMP, _ADDRESS.pack(_AF_INET, 0, 0, 0, 0))


def dump_routes() -> bytes:
    """Ask for every IPv4 route."""
    return _request(RTM_GETROUTE, _DUMP, _ROUTE.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class Answer:
    """One message of the kernel. error: errno, 0 for an acknowledgement; None when it is neither."""

    kind: int
    sequence: int
    error: int | None
    payload: bytes
    text: str = ""


def answers(datagram: bytes) -> Iterator[Answer]:
    """The messages of one datagram. Ends at what is cut short."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > len(datagram):
            return
        payload = datagram[offset + _HEADER.size : offset + length]
        error, text = None, ""
        if kind == NLMSG_ERROR and len(payload) >= 4:
            error = -struct.unpack_from("=i", payload)[0]
            text = _explanation(payload, flags)
        yield Answer(kind, sequence, error, payload, text)
        offset += (length + 3) & ~3


def _explanation(payload: bytes, flags: int) -> str:
    """The extended acknowledgement's words, when the kernel sent any (NETLINK_EXT_ACK)."""
    if not flags & 0x200 or len(payload) < 20:
        return ""
    quoted = struct.unpack_from("=I", payload, 4)[0] if not flags & 0x100 else 16
    return text(attributes(payload, 4 + ((quoted + 3) & ~3)).get(1, b""))


def attributes(payload: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attribute type -> payload, from `offset`; the last of a type wins."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


@dataclass(frozen=True, slots=True)
class Link:
    """One link. master: index of its bridge, 0 for none. up: nobody has set it down."""

    index: int
    name: str
    kind: str
    master: int
    alias: str
    up: bool


def read_link(answer: Answer) -> Link:
    """A link out of RTM_NEWLINK."""
    found = attributes(answer.payload, _LINK.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    return Link(
        index=_LINK.unpack_from(answer.payload)[2],
        name=text(found.get(_IFLA_IFNAME, b"")),
        kind=text(info.get(_INFO_KIND, b"")),
        master=struct.unpack("=I", found[_IFLA_MASTER])[0] if _IFLA_MASTER in found else 0,
        alias=text(found.get(_IFLA_IFALIAS, b"")),
        up=bool(_LINK.unpack_from(answer.payload)[3] & _IFF_UP),
    )


def link_name(answer: Answer) -> str:
    """The name in an RTM_NEWLINK or RTM_DELLINK."""
    return text(attributes(answer.payload, _LINK.size).get(_IFLA_IFNAME, b""))


def address_label(answer: Answer) -> str:
    """The label in an RTM_NEWADDR or RTM_DELADDR: its link's name, unless somebody chose another."""
    return text(attributes(answer.payload, _ADDRESS.size).get(_IFA_LABEL, b""))


def text(name: bytes) -> str:
    """An attribute that is a name."""
    return name.rstrip(b"\0").decode(errors="replace")


def read_address(answer: Answer) -> tuple[int, IPv4Interface]:
    """(link's index, address) out of RTM_NEWADDR."""
    _, prefix, _, _, index = _ADDRESS.unpack_from(answer.payload)
    found = attributes(answer.payload, _ADDRESS.size)
    return index, IPv4Interface((found.get(2, found.get(1, bytes(4))), prefix))


def read_route(answer: Answer) -> tuple[int, IPv4Network]:
    """(outgoing link's index, destination) out of RTM_NEWROUTE; 0.0.0.0/0 for a default route."""
    prefix = answer.payload[1]
    found = attributes(answer.payload, _ROUTE.size)
    index = struct.unpack("=I", found[4])[0] if 4 in found else 0
    return index, IPv4Network((found.get(1, bytes(4)), prefix), strict=False)
