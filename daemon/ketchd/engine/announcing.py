"""The events that a run brings along: its networks and its volumes, in dockerd's order. Called in the transaction of the change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ketchd.containers.mountpoints import MountPoint
from ketchd.containers.record import ContainerRecord
from ketchd.engine import networks as networking
from ketchd.engine.rooms import Rooms

_WITHOUT_ENDPOINT = {"none": "null", "host": "host"}


def joined(rooms: Rooms, record: ContainerRecord, endpoints: Sequence[Mapping[str, Any]]) -> None:
    """Networks connected, volumes mounted. endpoints: as `networking.stored_leases` gives them."""
    _networks(rooms, "connect", record, endpoints)
    for point in _volumes(record):
        rooms.events.append(
            "volume",
            "mount",
            point.name,
            {
                "container": record.id,
                "destination": point.destination,
                "driver": point.driver or "local",
                "propagation": point.propagation,
                "read/write": "true" if point.rw else "false",
            },
        )


def left(rooms: Rooms, record: ContainerRecord, endpoints: Sequence[Mapping[str, Any]]) -> None:
    """Networks disconnected, volumes unmounted."""
    _networks(rooms, "disconnect", record, endpoints)
    for point in _volumes(record):
        rooms.events.append(
            "volume", "unmount", point.name, {"container": record.id, "driver": point.driver or "local"}
        )


def failed(rooms: Rooms, record: ContainerRecord, endpoints: Sequence[Mapping[str, Any]]) -> None:
    """A start that came as far as its networks and not to its program."""
    with rooms.catalogue.transaction():
        joined(rooms, record, endpoints)
        left(rooms, record, endpoints)


def _networks(
    rooms: Rooms, action: str, record: ContainerRecord, endpoints: Sequence[Mapping[str, Any]]
) -> None:
    for stored in endpoints:
        networking.announce(rooms, action, record, stored)
    name = record.host_config["NetworkMode"]
    kind = _WITHOUT_ENDPOINT.get(name)
    network_id = rooms.networks.ids().get(name) if kind is not None else None
    if kind is not None and network_id is not None and not endpoints:
        rooms.events.append(
            "network", action, network_id, {"container": record.id, "name": name, "type": kind}
        )


def _volumes(record: ContainerRecord) -> list[MountPoint]:
    points = [MountPoint.from_record(stored) for stored in record.mounts]
    return [point for point in points if point.type == "volume"]
