"""Links on the default bridge: found when a container is created, told when it starts, followed when the other one moves.

The container that has a link is its parent, whom it names the child. Source: moby daemon/daemon_unix.go, registerLinks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from ketch_wire.faults import EngineFailure, InvalidInput, NotFound
from ketchd.containers import links
from ketchd.containers.endpoints import parse_link
from ketchd.containers.record import ContainerRecord
from ketchd.engine.mountedfiles import edit
from ketchd.engine.rooms import Rooms
from ketchd.network.leases import EndpointLease

_BRIDGE = "bridge"


def register(rooms: Rooms, mode: str, wanted: Sequence[str]) -> list[dict[str, str]]:
    """The links of a new container, as its record keeps them; of two with one alias the first. Raises InvalidInput."""
    if links.has_names_of_its_own(mode):
        return []  # they are its endpoint's
    found: dict[str, dict[str, str]] = {}
    for text in wanted:
        name, alias = parse_link(text)
        child = _child(rooms, name, f"could not get container for {name}")
        while (theirs := child.host_config["NetworkMode"]).startswith("container:"):
            other = theirs.removeprefix("container:")
            child = _child(rooms, other, f"Could not get container for {other}")
        if theirs == "host":
            raise InvalidInput(
                "conflicting options: host type networking can't be used with links. This would result in undefined behavior"
            )
        found.setdefault(alias, {"id": child.id, "name": child.name, "alias": alias})
    return list(found.values())


def _child(rooms: Rooms, reference: str, words: str) -> ContainerRecord:
    try:
        return rooms.supervisor.find(reference).record
    except NotFound as fault:
        raise InvalidInput(f"{words}: {fault.message}") from None  # a 404 would be taken for a missing image


def shown(rooms: Rooms, record: ContainerRecord) -> list[str] | None:
    """HostConfig.Links as inspect has them, by the names of today."""
    return links.shown(record.name, [{**one, "name": _name(rooms, one)} for one in record.links])


def _name(rooms: Rooms, link: dict[str, str]) -> str:
    child = rooms.supervisor.get(link["id"])
    return link["name"] if child is None else child.record.name


def names(rooms: Rooms) -> dict[str, list[str]]:
    """What containers are called by others' links (`/web/data`), by id; those that nobody links to are left out."""
    found: dict[str, list[str]] = {}
    for box in rooms.supervisor:
        for link in box.record.links:
            found.setdefault(link["id"], []).append(f"/{box.record.name}/{link['alias']}")
    return found


def environment(rooms: Rooms, record: ContainerRecord, *, strict: bool) -> list[str]:
    """The variables of its links. strict: Raises EngineFailure for one to a container that does not run; else it is left out."""
    if not record.links or _address(record) is None:
        return []
    told: list[str] = []
    for link in record.links:
        child = rooms.supervisor.get(link["id"])
        if child is None or not child.record.has_process:
            if not strict:
                continue
            raise EngineFailure(
                f"Cannot link to a non running container: /{_name(rooms, link)} AS /{record.name}/{link['alias']}"
            )
        address = _address(child.record)
        if address is None:
            if not strict:
                continue
            raise EngineFailure(
                f"Cannot link to /{child.record.name}, as it does not belong to the default network"
            )
        told += links.variables(record.name, link["alias"], address, child.record.config)
    return told


def _address(record: ContainerRecord) -> str | None:
    """Its address on the default bridge."""
    stored = [] if record.endpoint is None else [record.endpoint, *record.endpoints]
    return next((str(one["address"]) for one in stored if one.get("network_name") == _BRIDGE), None)


def hosts(rooms: Rooms, record: ContainerRecord, leases: Sequence[EndpointLease]) -> list[tuple[str, str]]:
    """(names, address) for its hosts file."""
    if not any(lease.network_name == _BRIDGE for lease in leases):
        return []
    found = []
    for link in record.links:
        child = rooms.supervisor.get(link["id"])
        if child is not None and (address := _address(child.record)) is not None:
            names = links.host_names(link["alias"], child.record.name, child.record.config["Hostname"])
            found.append((names, address))
    return found


def follow(rooms: Rooms, record: ContainerRecord) -> None:
    """Tell the running containers that have links to it where it is now."""
    if (address := _address(record)) is None:
        return
    for box in rooms.supervisor:
        for link in box.record.links:
            if link["id"] == record.id and box.record.has_process:
                change = partial(links.moved, alias=link["alias"], address=address)
                with contextlib.suppress(OSError):  # it is just being removed, or the disk is full
                    edit(rooms.container_dir(box.record.id) / "hosts", change)


def remove(rooms: Rooms, reference: str) -> None:
    """Take the link `web/data` away. Raises InvalidInput for what is none, NotFound."""
    parent, _, alias = reference.removeprefix("/").partition("/")
    if not alias:
        rooms.supervisor.find(reference)
        raise EngineFailure("Conflict, cannot remove the default link name of the container")
    record = rooms.supervisor.find(parent).record
    if not any(one["alias"] == alias for one in record.links):
        raise NotFound(f"No such container: {reference[:200]}")
    with rooms.supervisor.changing(record):
        record.links = [one for one in record.links if one["alias"] != alias]
    if record.has_process:
        with contextlib.suppress(OSError):  # the disk is full: the name leads where it has led
            edit(rooms.container_dir(record.id) / "hosts", partial(links.without, alias=alias))
