"""EndpointLease: a container's place on one network, and the book of addresses that are given out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from ketchd.catalogue.database import Catalogue
from ketchd.network import rtnetlink
from ketchd.network.addresses import check_address, choose_address
from ketchd.network.definition import Network
from ketchd.network.files import EMBEDDED_SERVER

_LISTS = ("names", "upstream", "links")
_FIRST_INDEX = 100  # behind every fallback tunnel that a kernel may put into a new namespace


@dataclass(frozen=True, slots=True)
class EndpointLease:
    """A container's endpoint on a bridge network, from its start to its end. Addresses are text.

    link: our end of its veth pair. interface: the container's end, `eth` and the position. default_route: its default
    gateway is this network's. has_names: the embedded DNS server answers on it. names: by which others find it there.
    default_gateway: where that route leads; empty for the gateway. upstream: DNS servers that the container asked for. links: `NAME:ALIAS`, by which it alone finds another there.
    """

    container_id: str
    network_id: str
    network_name: str
    endpoint_id: str
    address: str
    prefix: int
    gateway: str
    mac: str
    bridge: str
    mtu: int = 1500
    position: int = 0
    default_route: bool = True
    has_names: bool = False
    isolated: bool = False
    internal: bool = False
    names: tuple[str, ...] = ()
    upstream: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    default_gateway: str = ""

    @property
    def link(self) -> str:
        """`veth` and the first seven digits of the endpoint's id."""
        return "veth" + self.endpoint_id[:7]

    @property
    def interface(self) -> str:
        """Its name inside."""
        return f"eth{self.position}"

    @property
    def index(self) -> int:
        """Its interface index inside."""
        return _FIRST_INDEX + self.position

    def to_record(self) -> dict[str, Any]:
        """For the container's record."""
        return {**asdict(self), **{key: list(getattr(self, key)) for key in _LISTS}}

    @staticmethod
    def from_record(stored: Mapping[str, Any]) -> EndpointLease:
        """The lease again."""
        known = {one.name for one in fields(EndpointLease)}
        values = {key: value for key, value in stored.items() if key in known}
        values.update({key: tuple(values.get(key, ())) for key in _LISTS})
        return EndpointLease(**values)


def outward(leases: Sequence[EndpointLease]) -> EndpointLease | None:
    """The endpoint that published ports lead to, the one of the default route; None on internal networks alone."""
    return next((lease for lease in leases if lease.default_route), None)


def inside(leases: Sequence[EndpointLease], *, loopback: bool = True) -> list[bytes]:
    """rtnetlink messages for the container's own namespace, in order: loopback up, each interface, routes.

    On a network with names 127.0.0.11 is a route to the gateway, where the packet rules lead it to the embedded DNS server:
    so the server lives in ketchd alone, nothing listens or translates inside, and port 53 stays the container's.
    """
    messages = [rtnetlink.set_up(index=rtnetlink.LOOPBACK_INDEX)] if loopback else []
    for lease in leases:
        messages += [
            rtnetlink.no_link_local(lease.interface, route_localnet=lease.has_names),
            rtnetlink.set_up(name=lease.interface),
            rtnetlink.add_address(lease.index, IPv4Interface((lease.address, lease.prefix))),
        ]
    return rtnetlink.numbered(messages + routes(leases))


def routes(leases: Sequence[EndpointLease]) -> list[bytes]:
    """rtnetlink messages for the default route and the one to the embedded DNS server; what is there is replaced."""
    messages = []
    if (named := next((lease for lease in leases if lease.has_names), None)) is not None:
        server = IPv4Network(EMBEDDED_SERVER)
        gateway, source = IPv4Address(named.gateway), IPv4Address(named.address)
        messages.append(rtnetlink.add_route(gateway, to=server, index=named.index, local=True, source=source))
    if (leading := outward(leases)) is not None:
        messages.append(
            rtnetlink.add_route(IPv4Address(leading.default_gateway or leading.gateway), index=leading.index)
        )
    return rtnetlink.numbered(messages)


class LeaseBook:
    """Who has which address, in the catalogue's table `addresses` and in memory. Used on the event loop's thread only."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._owners: dict[str, dict[int, str]] = {}
        self._last: dict[str, int] = {}
        for row in catalogue.query("SELECT network_id, address, container_id FROM addresses"):
            number = int(IPv4Address(row["address"]))
            self._owners.setdefault(row["network_id"], {})[number] = row["container_id"]
            self._last[row["network_id"]] = max(self._last.get(row["network_id"], 0), number)

    def take(self, network: Network, container_id: str, wanted: str = "") -> IPv4Address:
        """An address on `network` for the container: `wanted`, or the next free one. Raises InvalidInput, Unavailable."""
        owners = self._owners.setdefault(network.id, {})
        taken = owners.keys() | network.reserved
        if wanted:
            address = check_address(network.network, taken, wanted)
        else:
            span = IPv4Network(network.ip_range) if network.ip_range else None
            address = choose_address(network.network, taken, self._last.get(network.id, 0), span)
            self._last[network.id] = int(address)
        with self._catalogue.transaction() as connection:
            connection.execute(
                # One that was given back on a full disk is in the table still.
                "INSERT OR REPLACE INTO addresses (network_id, address, container_id) VALUES (?, ?, ?)",
                (network.id, str(address), container_id),
            )
        owners[int(address)] = container_id
        return address

    def give_back(self, container_id: str, network_id: str = "") -> None:
        """The container's addresses (on one network, or all) are free again. May be called twice."""
        found = False
        for key, owners in self._owners.items():
            if network_id in ("", key):
                for number in [number for number, owner in owners.items() if owner == container_id]:
                    del owners[number]
                    found = True
        if found:
            with self._catalogue.transaction() as connection:
                connection.execute(
                    "DELETE FROM addresses WHERE container_id = ? AND (? = '' OR network_id = ?)",
                    (container_id, network_id, network_id),
                )

    def forget(self, network_id: str) -> None:
        """The network is no more."""
        self._owners.pop(network_id, None)
        self._last.pop(network_id, None)
        with self._catalogue.transaction() as connection:
            connection.execute("DELETE FROM addresses WHERE network_id = ?", (network_id,))

    def keep_only(self, leases: Iterable[EndpointLease]) -> None:
        """Give back every address but those of `leases`: also what a container that runs had taken and never got to use."""
        kept = {(one.network_id, int(IPv4Address(one.address)), one.container_id) for one in leases}
        gone = [
            (network_id, number)
            for network_id, owners in self._owners.items()
            for number, owner in owners.items()
            if (network_id, number, owner) not in kept
        ]
        with self._catalogue.transaction() as connection:
            for network_id, number in gone:
                del self._owners[network_id][number]
                connection.execute(
                    "DELETE FROM addresses WHERE network_id = ? AND address = ?",
                    (network_id, str(IPv4Address(number))),
                )

    def users(self, network_id: str) -> set[str]:
        """Containers that have an address on the network."""
        return set(self._owners.get(network_id, {}).values())

    @property
    def is_empty(self) -> bool:
        """Whether nobody has an address."""
        return not any(self._owners.values())
