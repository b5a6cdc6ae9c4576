"""Which subnet a network gets, and which address a container gets in it. Pure.

Source: moby libnetwork/ipamutils (the default pools) and ipam (next-fit allocation).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from ketch_wire.faults import InvalidInput, Unavailable


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses that networks get subnets of, each with prefix length `size`."""

    base: IPv4Network
    size: int


# 172.17.0.0/16 … 172.31.0.0/16, then 192.168.0.0/20 … 192.168.240.0/20.
DEFAULT_POOLS = (
    *(Pool(IPv4Network(f"172.{second}.0.0/16"), 16) for second in range(17, 32)),
    Pool(IPv4Network("192.168.0.0/16"), 20),
)


def parse_pool(base: str, size: int) -> Pool:
    """A pool as `default-address-pools` has it. Raises InvalidInput."""
    try:
        network = IPv4Network(base, strict=False)
    except ValueError:
        raise InvalidInput(f"invalid default address pool: {base[:60]!r} is no IPv4 subnet") from None
    if not network.prefixlen <= size <= 30:
        raise InvalidInput(f"invalid default address pool {network}: it has no subnets of size {size}")
    return Pool(network, size)


def choose_subnet(taken: Iterable[IPv4Network], pools: Iterable[Pool] = DEFAULT_POOLS) -> IPv4Network:
    """The first subnet that touches nothing in `taken` (routes, addresses, networks). Raises Unavailable.

    A default route (0.0.0.0/0) says nothing about what is in use and is left out.
    """
    used = [one for one in taken if one.prefixlen > 0]
    for pool in pools:
        start = int(pool.base.network_address)
        while start <= int(pool.base.broadcast_address):
            subnet = IPv4Network((start, pool.size))
            in_the_way = next((one for one in used if one.overlaps(subnet)), None)
            if in_the_way is None:
                return subnet
            # Behind all of it: a route may cover more subnets than can be looked at one by one.
            start = max(int(subnet.broadcast_address), int(in_the_way.broadcast_address)) + 1
    raise Unavailable(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
    )


def overlapping(subnet: IPv4Network, taken: Iterable[IPv4Network]) -> IPv4Network | None:
    """The first of `taken` that shares an address with `subnet`; default routes are left out."""
    return next((one for one in taken if one.prefixlen > 0 and one.overlaps(subnet)), None)


def first_usable(subnet: IPv4Network) -> IPv4Address:
    """The gateway's address unless somebody chose one."""
    return subnet.network_address + (1 if subnet.prefixlen < 31 else 0)


def choose_address(
    subnet: IPv4Network, taken: Collection[int], after: int, span: IPv4Network | None = None
) -> IPv4Address:
    """A free host address of `span` (the whole subnet by default): the next one behind `after`, round the end.

    taken, after: addresses as integers. So an address that was just given back is the last to be given again, and a peer's
    connections to its former owner do not meet the new one. Raises Unavailable when none is free.
    """
    low, high = _host_bounds(subnet)
    if span is not None:
        low = max(low, int(span.network_address))
        high = min(high, int(span.broadcast_address))
    size = high - low + 1
    begin = after + 1 if low <= after < high else low
    for step in range(size):
        candidate = low + (begin - low + step) % size
        if candidate not in taken:
            return IPv4Address(candidate)
    raise Unavailable(f"no available IPv4 addresses on this network's address pools: {subnet}")


def check_address(subnet: IPv4Network, taken: Collection[int], wanted: str) -> IPv4Address:
    """`wanted`, when the subnet has it and it is free. Raises InvalidInput, Unavailable."""
    try:
        address = IPv4Address(wanted)
    except ValueError:
        raise InvalidInput(f"invalid IPv4 address: {wanted[:60]}") from None
    if address not in subnet:
        raise InvalidInput(f"no configured subnet contains IP address {address}")
    low, high = _host_bounds(subnet)
    if int(address) in taken or not low <= int(address) <= high:  # the subnet's own address, or broadcast
        raise Unavailable("Address already in use")
    return address


def _host_bounds(subnet: IPv4Network) -> tuple[int, int]:
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    return (first + 1, last - 1) if subnet.prefixlen < 31 else (first, last)


def mac_of(address: IPv4Address) -> str:
    """`02:42:` and the address.

    Made from it and not at random, so that whoever still has the address in its neighbour table reaches the new owner.
    """
    return "02:42:" + address.packed.hex(":")


def bridge_mac_of(network_id: str) -> str:
    """`02:42:` and the network's id: a bridge that is made again is the gateway that its containers know."""
    return "02:42:" + bytes.fromhex(network_id[:8]).hex(":")
