"""rtnetlink: requests of the right length, and answers read whatever comes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from ketchd.network import conntrack, rtnetlink, watch
from ketchd.network.leases import EndpointLease, inside, routes

LEASE = EndpointLease(
    container_id="c", network_id="n", network_name="shop", endpoint_id="abcdef0123", address="10.0.0.5", prefix=24,
    gateway="10.0.0.1", mac="02:42:0a:00:00:05", bridge="br-shop", has_names=True,
)  # fmt: skip


def header(message: bytes) -> tuple[int, int, int, int, int]:
    found: tuple[int, int, int, int, int] = struct.unpack_from("=IHHII", message)
    return found


def test_requests_say_their_length_and_ask_for_an_answer() -> None:
    messages = rtnetlink.numbered(
        [
            rtnetlink.new_bridge("br0", "02:42:00:00:00:01", 1500),
            rtnetlink.new_veth(
                name="veth1234567", index=7, master=3, mtu=1400, peer_name="eth0", peer_index=100,
                peer_mac="02:42:ac:11:00:02", peer_pid=4242,
            ),
            rtnetlink.port_settings("veth1234567", isolated=True),
            rtnetlink.no_link_local("eth0", route_localnet=True),
            rtnetlink.add_address(100, IPv4Interface("10.0.0.5/24")),
            rtnetlink.add_route(IPv4Address("10.0.0.1"), to=IPv4Network("127.0.0.11"), index=100, local=True),
            rtnetlink.delete_link(5),
        ]
    )  # fmt: skip
    for number, message in enumerate(messages, 1):
        length, _, flags, sequence, _ = header(message)
        assert length == len(message) and length % 4 == 0 and flags & 0x5 == 0x5 and sequence == number


def test_inside_messages() -> None:
    """Loopback, the interface, its address, the DNS server's route, the default route; without a lease loopback alone."""
    assert [header(one)[1] for one in inside([])] == [rtnetlink.RTM_NEWLINK]
    kinds = [header(one)[1] for one in inside([LEASE])]
    assert kinds == [16, 16, 16, rtnetlink.RTM_NEWADDR, rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_NEWROUTE]
    assert len(routes([LEASE])) == 2 and EndpointLease.from_record(LEASE.to_record()) == LEASE


def test_changed_links_are_seen() -> None:
    """Gone, out of their bridge, without an address or with another: by name. A link that comes is none."""
    name = struct.pack("=HH", 4 + 8, 3) + b"ketch00\0"  # IFLA_IFNAME, and IFA_LABEL
    for kind, head, seen in ((17, 16, True), (16, 16, False), (21, 8, True), (20, 8, True)):
        body = bytes(head) + name
        data = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
        assert watch.changed_links(data) == ({"ketch00"} if seen else set())


@given(st.binary(max_size=300))
def test_any_datagram_can_be_read(data: bytes) -> None:
    """From the kernel or not: no exception, no endless loop."""
    for answer in rtnetlink.answers(data):
        rtnetlink.attributes(answer.payload)
    watch.changed_tables(data)
    watch.changed_links(data)


def test_an_error_is_read() -> None:
    message = struct.pack("=IHHII", 36, 2, 0, 9, 0) + struct.pack("=i", -17) + bytes(16)
    (answer,) = rtnetlink.answers(message)
    assert (answer.error, answer.sequence) == (17, 9)


def test_changed_tables_are_seen() -> None:
    name = b"ketch-ketch0\0"
    attribute = struct.pack("=HH", 4 + len(name), 1) + name + bytes(-len(name) % 4)
    body = b"\1\0\0\0" + attribute
    for kind, seen in (
        ((10 << 8) | 2, True),
        ((10 << 8) | 3, True),
        ((10 << 8) | 8, True),
        ((10 << 8) | 14, True),
        ((10 << 8) | 12, False),
    ):
        data = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
        assert watch.changed_tables(data) == ({"ketch-ketch0"} if seen else set())


def test_connections_are_known_by_who_answers() -> None:
    """Only those of the address; whatever the kernel sends is read."""
    address = IPv4Address("172.17.0.2")

    def attribute(kind: int, payload: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)

    def listed(source: str) -> bytes:
        reply = attribute(2, attribute(1, attribute(1, IPv4Address(source).packed)))
        return bytes(4) + attribute(1, b"original") + reply

    assert conntrack.answered_by(listed("172.17.0.2"), address) == b"original"
    assert conntrack.answered_by(listed("172.17.0.3"), address) is None
    for message in (conntrack.listing(address), conntrack.deletion(b"original", 3)):
        assert header(message)[0] == len(message)


@given(st.binary(max_size=200))
def test_any_connection_can_be_read(payload: bytes) -> None:
    conntrack.answered_by(payload, IPv4Address("172.17.0.2"))
    conntrack.led_elsewhere(payload, lambda _: True, 53, IPv4Address("172.17.0.2"))
