"""Connect and disconnect: networks that a container joins and leaves, while it runs or before.

The default route and the published ports go by one endpoint: the one of the highest priority, then the name that sorts first, never
an internal network's. They follow at once; without such an endpoint no port is published, and its number is anybody's.
Source: moby libnetwork/sandbox.go, getGatewayEndpoint; endpoint.go, sbJoin and sbLeave.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping, Sequence
from typing import Any

from ketch_wire.faults import Conflict, EngineFailure, Fault, Forbidden
from ketchd import tracepoint
from ketchd.containers import endpoints, launching
from ketchd.containers.record import ContainerRecord
from ketchd.containers.supervisor import Box
from ketchd.engine.mountedfiles import edit
from ketchd.engine.networks import (
    announce,
    check_places,
    found_network,
    network_files,
    network_key,
    record_leases,
    reserve_one,
)
from ketchd.engine.rooms import Rooms
from ketchd.network.definition import Network
from ketchd.network.files import change_hosts
from ketchd.network.leases import EndpointLease, inside, outward, routes

tracepoint.declare(
    "connect.leased", "connect.led", "connect.connected", "disconnect.recorded", "disconnect.gone"
)

_INSIDE = "ketchd.network.inside:configure"


async def connect(rooms: Rooms, network: Network, box: Box, sent: Mapping[str, Any] | None) -> None:
    """Put `box` on one more network, at once if it runs, else at its next start.

    Raises Forbidden, Conflict, InvalidInput, EngineFailure. Failed: it is where it was. Source: Engine API, NetworkConnect.
    """
    async with box.lock:
        record = box.record
        mode = record.host_config["NetworkMode"]
        if network.name == "host":
            raise Forbidden(
                "cannot connect container to host network - container must be created in host network mode"
            )
        if mode == "host" or mode.startswith("container:"):
            raise Forbidden(
                "container sharing network namespace with another container or host cannot be connected to any other network"
            )
        if network.name == "none" or "none" in record.networking:
            raise Forbidden(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        if network_key(rooms, record, network) is not None:
            raise Forbidden(f"endpoint with name {record.name} already exists in network {network.name}")
        settings = endpoints.check(network.name, sent)
        networking = {**record.networking, network.name: settings}
        if not record.has_process:
            with rooms.supervisor.changing(record):
                record.networking = networking
            return
        leases = rooms.networks.leases(record.id)
        place = endpoints.of(network.name, settings)
        check_places([place], [network])
        position = next(
            number for number in range(len(leases) + 1) if all(number != one.position for one in leases)
        )
        lease = reserve_one(rooms, record, place, position, default_route=False)
        try:
            tracepoint.reach("connect.leased")
            await rooms.networks.connect(lease, record.pid)
            await _configure(rooms, record, inside([lease], loopback=False))
            joined = _choose_lead(rooms, record.id, networking, [*leases, lease])
            await _configure(rooms, record, routes(joined))
            await _ports_follow(rooms, box, joined)
            tracepoint.reach("connect.led")
            with rooms.supervisor.changing(record):
                record.networking = networking
                record_leases(record, joined)
                announce(rooms, "connect", record, lease.to_record())
        except BaseException as error:
            await _undo_connect(rooms, box, lease, leases)
            if isinstance(error, OSError) and error.errno == errno.ESRCH:  # what follows its end is under way
                raise Conflict(f"container {record.id} is not running") from error
            if isinstance(error, OSError):
                raise EngineFailure(
                    f"cannot connect {record.name} to {network.name}: {error.strerror}"
                ) from error
            raise
        tracepoint.reach("connect.connected")
        _write_files(rooms, record, leases, joined)


async def lead_again(rooms: Rooms, box: Box) -> None:
    """Set the routes of a container that runs: its default one may have gone with a link that the last ketchd had not recorded."""
    with contextlib.suppress(Fault):
        await _configure(rooms, box.record, routes(rooms.networks.leases(box.record.id)))


async def _undo_connect(
    rooms: Rooms, box: Box, lease: EndpointLease, before: Sequence[EndpointLease]
) -> None:
    with contextlib.suppress(Fault):
        await rooms.networks.disconnect(lease)
    await _lead_as(rooms, box, before)


async def _lead_as(rooms: Rooms, box: Box, before: Sequence[EndpointLease]) -> None:
    """The default route and the ports are led as they were when the container had the endpoints `before`."""
    lead = outward(before)
    back = rooms.networks.lead_by(box.record.id, "" if lead is None else lead.network_id)
    with contextlib.suppress(Fault):
        await _configure(rooms, box.record, routes(back))
        await _ports_follow(rooms, box, back)


async def disconnect(rooms: Rooms, network: Network, box: Box) -> None:
    """Take `box` off a network.

    Raises Forbidden, EngineFailure (it is not on it). Failed before it is recorded: it is where it was. Source: Engine API,
    NetworkDisconnect.
    """
    async with box.lock:
        record = box.record
        if network.name == "host":
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        key = network_key(rooms, record, network)
        if key is None:
            word = "to network" if record.has_process else "to the network"
            raise EngineFailure(f"container {record.id} is not connected {word} {network.name}")
        held = rooms.networks.leases(record.id)
        lease = next((one for one in held if one.network_id == network.id), None)
        networking = {name: settings for name, settings in record.networking.items() if name != key}
        if lease is None:
            with rooms.supervisor.changing(record):
                record.networking = networking
            return
        left = [one for one in held if one is not lease]
        try:
            if left:
                led = _choose_lead(rooms, record.id, networking, left)
                left = [one for one in led if one.network_id != network.id]
                with contextlib.suppress(Conflict):  # it has just ended: what follows that is under way
                    await _configure(rooms, record, routes(left))
            # Killed from here on: the next ketchd takes a link away that no record has. So the container has its routes already.
            with rooms.supervisor.changing(record):
                record.networking = networking
                if outward(left) is None:
                    record.published = []
                record_leases(record, left)
                announce(rooms, "disconnect", record, lease.to_record())
        except BaseException:
            await _lead_as(rooms, box, held)
            raise
        tracepoint.reach("disconnect.recorded")
        _write_files(rooms, record, held, left)
        await rooms.networks.disconnect(lease)
        tracepoint.reach("disconnect.gone")
        await _ports_follow(rooms, box, left)


def _choose_lead(
    rooms: Rooms, container_id: str, networking: Mapping[str, Any], leases: Sequence[EndpointLease]
) -> list[EndpointLease]:
    """The default route goes by one of `leases`, chosen as at a start; all that the container has, as they are then."""
    priorities = {
        network.id: one.priority
        for one in endpoints.wanted(networking)
        if (network := found_network(rooms, one.network)) is not None
    }
    lead = endpoints.leading(
        [(one.network_name, priorities.get(one.network_id, 0), one.internal) for one in leases]
    )
    return rooms.networks.lead_by(container_id, "" if lead is None else leases[lead].network_id)


async def _ports_follow(rooms: Rooms, box: Box, leases: Sequence[EndpointLease]) -> None:
    """Lead the ports to where the default route goes: held anew where none were, let go of where there is none.

    Raises InvalidInput; EngineFailure when somebody has one of them now, and then none is held.
    """
    record, lead = box.record, outward(leases)
    if lead is None:
        await let_go_of_ports(rooms, box)
    elif record.published:
        if not rooms.networks.leads_ports_to(lead):
            await rooms.networks.publish(lead, record.published)
    elif (bindings := launching.wanted_ports(record)) and box.link is not None:
        reserved = rooms.networks.reserve_ports(
            bindings, endpoint_name=record.name, endpoint_id=lead.endpoint_id
        )
        published = [one.to_record() for one in reserved]
        try:
            await box.link.hold_ports([one.socket.detach() for one in reserved])
            await rooms.networks.publish(lead, published)
        except BaseException:
            await let_go_of_ports(rooms, box)
            raise
        record.published = published


async def let_go_of_ports(rooms: Rooms, box: Box) -> None:
    """The ports of a running container are anybody's."""
    box.record.published = []
    if launching.wanted_ports(box.record):
        await rooms.networks.free_ports(box.record.id)
        if box.link is not None:
            with contextlib.suppress(Fault):  # it has just ended, or its shim is older than this
                await box.link.hold_ports([])


def _write_files(
    rooms: Rooms, record: ContainerRecord, before: Sequence[EndpointLease], leases: Sequence[EndpointLease]
) -> None:
    """Say in the files of a running container on which networks it is; it has them mounted, so they are written in place."""
    old = network_files(rooms, record, before)
    for name, new in network_files(rooms, record, leases).items():

        def change(current: str, name: str = name, new: str = new) -> str:
            return change_hosts(current, old[name], new) if name == "hosts" else new

        try:
            edit(rooms.container_dir(record.id) / name, change)
        except OSError as error:  # a full disk: the networks are as they are recorded all the same
            reason = (error.strerror or str(error)).lower()
            rooms.log.error("file not changed", container=record.id, file=name, reason=reason)


async def _configure(rooms: Rooms, record: ContainerRecord, messages: list[bytes]) -> None:
    if messages:
        await rooms.workers.run(
            _INSIDE, {"pid": record.pid, "start_time": record.start_time, "messages": messages}
        )
