"""The bridge of each network on the host: made, found again, swept, taken away. Blocking: called on the network thread only.

A bridge of ours carries the alias `ketch:DEFAULT-BRIDGE` (the default one) or `ketch:DEFAULT-BRIDGE:NETWORK`; whatever has
no such alias was there before us, is used as it is and never deleted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure
from ketchd.network import links
from ketchd.network.addresses import (
    DEFAULT_POOLS,
    Pool,
    bridge_mac_of,
    choose_subnet,
    first_usable,
    overlapping,
)
from ketchd.network.definition import Network, misplaced
from ketchd.network.leases import EndpointLease
from ketchd.network.rtnetlink import Link

_VETH = re.compile(r"veth[0-9a-f]{7}")
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def alias_of(instance: str, network: Network) -> str:
    """The alias of the network's bridge. instance: the default bridge's name."""
    return f"ketch:{instance}" if network.is_predefined else f"ketch:{instance}:{network.id[:12]}"


def ensure(
    network: Network, instance: str, others: Sequence[IPv4Network], in_use: bool, log: Any,
    pools: Sequence[Pool] = DEFAULT_POOLS,
) -> Network:  # fmt: skip
    """The network's bridge, up and with its address; the network as it is then.

    others: subnets of our other networks. in_use: containers have addresses of its subnet, which must not change then.
    pools: where a network without a subnet gets one. Raises EngineFailure; Unavailable when they have none.
    """
    try:
        found = next((one for one in links.links() if one.name == network.link), None)
        alias = alias_of(instance, network)
        if found is not None and found.kind != "bridge":
            raise EngineFailure(f"cannot use {network.link} for the network {network.name}: it is no bridge")
        if found is not None and found.alias != alias:
            network = _adopt(network, found, log)
        else:
            network = _own(network, found, alias, others, in_use, log, pools)
        links.allow_loopback(network.link)
        if reason := misplaced(network):
            raise EngineFailure(f"cannot use {network.link} for the network {network.name}: {reason}")
    except OSError as error:
        raise EngineFailure(
            f"cannot set up the bridge {network.link} of the network {network.name}: {error.strerror}: {error.filename}"
        ) from error
    return network


def _own(
    network: Network, found: Link | None, alias: str, others: Sequence[IPv4Network], in_use: bool, log: Any,
    pools: Sequence[Pool],
) -> Network:  # fmt: skip
    with links.subnet_lock():
        taken = [*links.subnets_in_use(found.index if found is not None else 0), *others]
        if network.subnet and (route := overlapping(network.network, taken)) is not None:
            if in_use or network.chosen:
                log.warning(
                    "a network overlaps with a route of this host",
                    network=network.name,
                    subnet=network.subnet,
                    route=str(route),
                )
            else:
                network = replace(network, subnet="", gateway="")
        if not network.subnet:
            subnet = choose_subnet(taken, pools)
            network = replace(network, subnet=str(subnet), gateway=str(first_usable(subnet)))
        link = found or links.make_bridge(network.link, alias, network.mtu, bridge_mac_of(network.id))
        wanted = network.gateway_interface
        present = [interface for index, interface in links.addresses() if index == link.index]
        if wanted not in present:
            links.add_address(link, wanted)
        for interface in present:
            if interface != wanted:
                links.delete_address(link, interface)
        links.set_up(link)
    return network


def _adopt(network: Network, found: Link, log: Any) -> Network:
    present = [interface for index, interface in links.addresses() if index == found.index]
    if not present:
        raise EngineFailure(f"the bridge {network.link} was not made by ketch and has no IPv4 address to use")
    links.set_up(found)
    if network.chosen and network.gateway_interface in present:
        return network
    span = IPv4Network(network.ip_range) if network.ip_range else None
    own = next((one for one in present if span is not None and span.subnet_of(one.network)), present[0])
    log.info("a bridge that was there is used as it is", bridge=network.link, address=str(own))
    return replace(network, subnet=str(own.network), gateway=str(own.ip))


def connect(lease: EndpointLease, pid: int) -> None:
    """The endpoint's veth pair, its other end in the network namespace of `pid`. Raises OSError."""
    links.connect(
        name=lease.link, bridge=links.index_of(lease.bridge), mtu=lease.mtu, pid=pid,
        peer_name=lease.interface, peer_index=lease.index, peer_mac=lease.mac, isolated=lease.isolated,
    )  # fmt: skip


def harmed(networks: Sequence[Network], leases: Sequence[EndpointLease]) -> list[Network]:
    """Those of `networks` whose bridge is gone, down or has lost its address, or the link of one of its endpoints. Raises OSError."""
    every = {one.name: one for one in links.links()}
    addresses = {(index, interface.ip) for index, interface in links.addresses()}

    def stands(network: Network) -> bool:
        bridge = every.get(network.link)
        return (
            bridge is not None
            and bridge.up
            and (bridge.index, network.gateway_interface.ip) in addresses
            and all(
                every[lease.link].master == bridge.index
                for lease in leases
                if lease.network_id == network.id and lease.link in every
            )
        )

    return [network for network in networks if not stands(network)]


def reattach(network: Network, leases: Iterable[EndpointLease]) -> None:
    """Put endpoints into the network's bridge, which was made again. One whose container ended meanwhile is left out."""
    index = links.index_of(network.link)
    for lease in leases:
        with contextlib.suppress(OSError):
            links.set_master(lease.link, index, isolated=lease.isolated)


def sweep(instance: str, networks: Sequence[Network], veths: Collection[str] | None) -> list[str]:
    """Delete bridges of ours that no network owns, and veths in our bridges that are not among `veths`; their names.

    veths None: leave them alone.
    """
    gone: list[str] = []
    known = {alias_of(instance, one) for one in networks}
    every = links.links()
    bridges = {one.index for one in every if one.alias in known}
    for one in every:
        stray = one.kind == "bridge" and one.alias.startswith(f"ketch:{instance}:") and one.alias not in known
        ours = one.kind == "veth" and one.master in bridges and _VETH.fullmatch(one.name) is not None
        if stray or (ours and veths is not None and one.name not in veths):
            links.delete(one)
            gone.append(one.name)
    return gone


def remove(instance: str, networks: Sequence[Network]) -> None:
    """Delete the bridges of `networks` that are ours. May be called twice."""
    aliases = {alias_of(instance, one) for one in networks}
    for link in links.links():
        if link.alias in aliases and link.kind == "bridge":
            links.delete(link)


def delete_leftover(names: Collection[str]) -> None:
    """Delete veths that outlived their container: something else still holds its network namespace."""
    for name in names:
        if links.exists(name):
            links.delete_named(name)


def forward_packets(log: Any) -> None:
    """net.ipv4.ip_forward=1, which containers need to reach anything but the host."""
    try:
        if _IP_FORWARD.read_text().strip() == "0":
            _IP_FORWARD.write_text("1")
            log.info("net.ipv4.ip_forward was off and is on now: this host forwards packets")
    except OSError as error:
        log.warning("net.ipv4.ip_forward cannot be set", reason=error.strerror)


def clash(subnet: IPv4Network) -> IPv4Network | None:
    """A route or address of the host that `subnet` overlaps with. Raises EngineFailure."""
    try:
        return overlapping(subnet, links.subnets_in_use())
    except OSError as error:
        raise EngineFailure(f"cannot read the routing table: {error.strerror}") from error
