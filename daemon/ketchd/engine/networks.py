"""The network journeys: a container's endpoints at its start, networks made and removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ketch_wire.faults import Conflict, Fault, Forbidden, InvalidInput, NotFound
from ketchd.containers import endpoints
from ketchd.containers.record import ContainerRecord
from ketchd.engine import links
from ketchd.engine.rooms import Rooms
from ketchd.network import hostfiles
from ketchd.network.definition import BRIDGE, Network
from ketchd.network.files import (
    EMBEDDED_SERVER,
    render_embedded_resolv_conf,
    render_hostname,
    render_hosts,
    render_resolv_conf,
)
from ketchd.network.leases import EndpointLease

HOST_GATEWAY = "host-gateway"  # in place of an address
NETWORK_FILES = ("hosts", "hostname", "resolv.conf")


def reserve(rooms: Rooms, record: ContainerRecord) -> list[EndpointLease]:
    """A place on each network that the container wants, in the order of its interfaces; none without a network of its own.

    Raises NotFound (network) and what Networks.reserve does; `release` takes back what was reserved until then.
    """
    if record.config["NetworkDisabled"]:
        return []
    places = [
        one
        for one in endpoints.wanted(record.networking)
        if one.network != BRIDGE or rooms.networks.has_default
    ]  # without a default network, what would be on it has just its loopback. Source: moby connectToNetwork
    found = [find(rooms, one.network) for one in places]
    check_places(places, found)
    lead = endpoints.leading([
        (network.name, one.priority, network.internal) for one, network in zip(places, found, strict=True)
    ])  # fmt: skip
    return [
        reserve_one(rooms, record, one, position, default_route=position == lead)
        for position, one in enumerate(places)
    ]


def find(rooms: Rooms, reference: str) -> Network:
    """The network that a process is to be on. Raises NotFound in the words of a start."""
    try:
        return rooms.networks.find(reference)
    except NotFound as fault:
        raise NotFound(f"failed to set up container networking: {fault.message}") from None


def check_places(places: list[endpoints.Wanted], networks: list[Network]) -> None:
    """Raises Conflict when an endpoint cannot be as it is wanted."""
    for one, network in zip(places, networks, strict=True):
        if one.address and not network.chosen:
            raise Conflict(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        if network.driver != "bridge":
            raise Conflict(f"a container on other networks cannot be on the network {network.name}")


def reserve_one(
    rooms: Rooms, record: ContainerRecord, one: endpoints.Wanted, position: int, *, default_route: bool
) -> EndpointLease:
    """One endpoint. Raises what Networks.reserve does."""
    return rooms.networks.reserve(
        record.id,
        network=one.network,
        address=one.address,
        mac=one.mac,
        position=position,
        default_route=default_route,
        names=endpoints.dns_names(record.name, record.id, record.config["Hostname"], one.aliases),
        links=one.links,
        upstream=rooms.defaults.resolving(record.host_config)[0],
    )


def record_leases(record: ContainerRecord, leases: list[EndpointLease]) -> None:
    """Note the endpoints that the container has now."""
    stored = [lease.to_record() for lease in leases]
    record.endpoint, record.endpoints = (stored[0], stored[1:]) if stored else (None, [])


def stored_leases(record: ContainerRecord) -> list[dict[str, Any]]:
    """The endpoints that the record has, the first one first."""
    return [] if record.endpoint is None else [record.endpoint, *record.endpoints]


def announce(rooms: Rooms, action: str, record: ContainerRecord, stored: Mapping[str, Any]) -> None:
    """A network's `connect` or `disconnect` event."""
    rooms.events.append(
        "network", action, stored["network_id"],
        {"container": record.id, "name": stored.get("network_name", ""), "type": "bridge"},
    )  # fmt: skip


def host_gateways(rooms: Rooms, leases: Sequence[EndpointLease] = ()) -> list[str]:
    """What `host-gateway` is: what the settings say, or the host as the default network sees it; without one, as the container's own does.

    Raises InvalidInput.
    """
    found = [*rooms.defaults.host_gateways] or [
        rooms.networks.gateway() or next((one.gateway for one in leases), "")
    ]
    if not found[0]:
        raise InvalidInput("unable to derive the IP value for host-gateway")
    return found


def network_files(rooms: Rooms, record: ContainerRecord, leases: Sequence[EndpointLease]) -> dict[str, str]:
    """Contents of hosts, hostname and resolv.conf in the container's directory."""
    config, host = record.config, record.host_config
    servers, search, options = rooms.defaults.resolving(host)
    extra = [item.split(":", 1) for item in host["ExtraHosts"] or []]
    hosts = [
        (name, one)
        for name, address in extra
        for one in (host_gateways(rooms, leases) if address == HOST_GATEWAY else [address])
    ]
    return {
        "hosts": render_hosts(
            hostname=config["Hostname"],
            domainname=config["Domainname"],
            address=[lease.address for lease in leases],
            extra=hosts,
            more=links.hosts(rooms, record, leases),
            host_file=hostfiles.for_containers("/etc/hosts") if host["NetworkMode"] == "host" else None,
        ),
        "hostname": render_hostname(config["Hostname"]),
        "resolv.conf": render_embedded_resolv_conf(
            hostfiles.for_containers("/etc/resolv.conf"),
            server=EMBEDDED_SERVER,
            search=search,
            options=options,
        )
        if any(lease.has_names for lease in leases)
        else render_resolv_conf(
            hostfiles.for_containers("/etc/resolv.conf"),
            dns=servers,
            search=search,
            options=options,
            keep_loopback=host["NetworkMode"] == "host",
        ),
    }


def network_key(rooms: Rooms, record: ContainerRecord, network: Network) -> str | None:
    """The key under which the record has the network: its name, its id or a part of it."""
    for key in record.networking:
        if (found := found_network(rooms, key)) is not None and found.id == network.id:
            return key
    return None


def found_network(rooms: Rooms, reference: str) -> Network | None:
    """The network of that name or id, if there is one."""
    try:
        return rooms.networks.find(reference)
    except Fault:
        return None


def rename(rooms: Rooms, record: ContainerRecord) -> None:
    """The container has another name: others on its networks find it by that from now on."""
    hostname = record.config["Hostname"]

    def names(lease: EndpointLease) -> list[str]:
        aliases = next(
            (one.aliases for one in endpoints.wanted(record.networking) if one.network in (lease.network_name, lease.network_id)), ()
        )  # fmt: skip
        return endpoints.dns_names(record.name, record.id, hostname, aliases)

    if record.has_process:
        record_leases(record, rooms.networks.rename(record.id, names))
        rooms.supervisor.save(record)


async def create(rooms: Rooms, body: Mapping[str, Any]) -> tuple[Network, str]:
    """A user-defined network, and a warning. Raises what Networks.create does."""
    return await rooms.networks.create(
        body,
        lambda made: rooms.events.append(
            "network", "create", made.id, {"name": made.name, "type": made.driver}
        ),
    )


async def remove(rooms: Rooms, network: Network) -> None:
    """Take a network away. Raises Forbidden with the containers that run on it. Source: Engine API, NetworkDelete."""
    users = rooms.networks.endpoints(network.id)
    if users and not network.is_predefined:
        shown = ", ".join(f'name:"{_name(rooms, one)}" id:"{one.endpoint_id[:12]}"' for one in users)
        raise Forbidden(
            f"error while removing network: network {network.name} has active endpoints ({shown})"
        )
    told = {"name": network.name, "type": network.driver}
    await rooms.networks.remove(network, lambda: rooms.events.append("network", "destroy", network.id, told))


async def prune(rooms: Rooms, accept: Callable[[Network], bool]) -> list[str]:
    """Remove every user-defined network that no running container is on and that `accept` accepts: their names."""
    removed = []
    for network in rooms.networks:
        if network.is_predefined or rooms.networks.endpoints(network.id) or not accept(network):
            continue
        try:
            await remove(rooms, network)
        except (Forbidden, NotFound):
            continue
        removed.append(network.name)
    rooms.events.append("network", "prune", "", {"reclaimed": "0"})
    return removed


def containers(rooms: Rooms, network: Network) -> dict[str, dict[str, str]]:
    """Who runs on the network, as NetworkInspect shows it."""
    if network.driver == "bridge":
        return {
            lease.container_id: {
                "Name": _name(rooms, lease),
                "EndpointID": lease.endpoint_id,
                "MacAddress": lease.mac,
                "IPv4Address": f"{lease.address}/{lease.prefix}",
                "IPv6Address": "",
            }
            for lease in rooms.networks.endpoints(network.id)
        }
    return {
        box.record.id: {
            "Name": box.record.name, "EndpointID": "", "MacAddress": "", "IPv4Address": "", "IPv6Address": "",
        }
        for box in rooms.supervisor
        if box.record.has_process and network.name in box.record.networking
    }  # fmt: skip


def _name(rooms: Rooms, lease: EndpointLease) -> str:
    try:
        return rooms.supervisor.find(lease.container_id).record.name
    except NotFound:
        return ""  # a build step
