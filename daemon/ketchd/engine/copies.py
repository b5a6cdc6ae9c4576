"""The copy journeys: what lies at a path of a container, out of it as a tar, into it from a tar; running or stopped.

The work is done in a layer worker on fds inside the container's root (`ketchd.containers.roots`). A container that
does not run is kept from starting while something is written into it.
Source: Engine API 1.50, ContainerArchive, ContainerArchiveInfo, PutContainerArchive.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable
from typing import Any

from ketch_wire.faults import Conflict, InvalidInput
from ketchd.containers.lifecycle import State
from ketchd.containers.mountpoints import MountPoint
from ketchd.containers.record import ContainerRecord
from ketchd.containers.supervisor import Box
from ketchd.engine.bodies import staged_plain
from ketchd.engine.rooms import Rooms
from ketchd.engine.tarjobs import TarJob

_JOBS = "ketchd.containers.copyjobs"
_NETWORK_FILES = ("hosts", "hostname", "resolv.conf")


async def root_of(
    rooms: Rooms, record: ContainerRecord, *, mounts: bool, write: bool = False
) -> dict[str, Any]:
    """The root as `ketchd.containers.roots` wants it described.

    mounts: with what is mounted inside (volumes, binds); write: what is changed stays, for a container that does not run.
    Raises Conflict while it is being removed.
    """
    if record.state in (State.REMOVING, State.DEAD):
        raise Conflict(f"container {record.id} is marked for removal")
    if record.has_process:
        return {
            "pid": record.pid,
            "start_time": record.start_time,
            "bare": not mounts,
            "user": _has_user_namespace(record.pid),
        }
    init = await rooms.layers.compose(record.diff_ids)
    layers = [{"kind": layer.kind, "path": layer.path} for layer in rooms.layers.mounts(record.diff_ids)]
    directory = rooms.container_dir(record.id)
    wanted: dict[str, Any] = {
        "layers": [{"kind": "directory", "path": str(init)}, *layers],
        "upper": str(directory / "upper"),
        "readonly": bool(record.host_config["ReadonlyRootfs"]),
        "mounts": _binds(rooms, record) if mounts else [],
    }
    if write:
        wanted["work"] = str(directory / "work")
    return wanted


def _has_user_namespace(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino
    except FileNotFoundError:
        return False  # it has ended; the job says so


def _binds(rooms: Rooms, record: ContainerRecord) -> list[dict[str, Any]]:
    points = [MountPoint.from_record(stored) for stored in record.mounts]
    binds = []
    for point in points:
        if point.type == "tmpfs":
            continue
        source, subpath = point.source, ""
        if (
            point.type == "volume" and point.subpath
        ):  # its content is the container's: resolved in the volume, when used
            source, subpath = str(rooms.data_root / "volumes" / point.name / "_data"), point.subpath
        binds.append(
            {"source": source, "subpath": subpath, "target": point.destination, "readonly": not point.rw}
        )
    covered = {point.destination for point in points}
    for name in _NETWORK_FILES:
        path = rooms.container_dir(record.id) / name
        if path.exists() and f"/etc/{name}" not in covered:
            binds.append({"source": str(path), "subpath": "", "target": f"/etc/{name}", "readonly": False})
    return binds


async def stat_path(rooms: Rooms, box: Box, path: str, shown: str) -> dict[str, Any]:
    """The path's stat object. shown: the container as the client named it. Raises NotFound, InvalidInput, Conflict."""
    root = await root_of(rooms, box.record, mounts=True)
    return await rooms.workers.run(f"{_JOBS}:stat_path", _arguments(root, path, shown))


async def pack_path(rooms: Rooms, box: Box, path: str, shown: str) -> TarJob:
    """A tar of the path, to be entered; its head is {stat}. Raises NotFound, InvalidInput, Conflict, then or on entering."""
    root = await root_of(rooms, box.record, mounts=True)
    arguments = _arguments(root, path, shown) | {"volumes": _mount_points(box.record)}
    return TarJob(rooms.workers, f"{_JOBS}:pack_path", arguments, speaks_first=True)


def _mount_points(record: ContainerRecord) -> list[str]:
    return [stored["destination"] for stored in record.mounts]


def _arguments(root: dict[str, Any], path: str, shown: str) -> dict[str, Any]:
    if not path:
        raise InvalidInput("bad parameter: pathcannot be empty")
    if "\0" in path:
        raise InvalidInput("bad parameter: path contains a NUL byte")
    return {"root": root, "path": os.fsencode(path), "container": shown}


async def extract(
    rooms: Rooms,
    box: Box,
    path: str,
    body: AsyncIterable[bytes],
    shown: str,
    *,
    no_overwrite: bool = False,
    copy_owner: bool = False,
) -> None:
    """Unpack the (compressed) tar into the directory at the path.

    Nothing is changed before the whole body is here and readable as a tar. Raises NotFound, InvalidInput, EngineFailure,
    Conflict. Cancelled meanwhile: some entries may be there, each of them whole or cut short.
    """
    arguments = _arguments({}, path, shown)
    async with staged_plain(rooms.blobs, body) as tar:
        arguments |= {
            "tar": str(tar),
            "no_overwrite": no_overwrite,
            # The container's own user; without one the archive's owners stay, as in dockerd.
            "user": box.record.config["User"] or None if copy_owner else None,
            "volumes": _mount_points(box.record),
        }
        if box.record.has_process:
            await _extract(rooms, box, arguments)
        else:
            async with box.lock:
                await _extract(rooms, box, arguments)
    rooms.supervisor.announce(box, "extract-to-dir")


async def _extract(rooms: Rooms, box: Box, arguments: dict[str, Any]) -> None:
    arguments["root"] = await root_of(rooms, box.record, mounts=True, write=True)
    await rooms.workers.run(f"{_JOBS}:extract", arguments)
