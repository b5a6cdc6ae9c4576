"""The create journey: a request and an image become a recorded container with its own writable layer.

merge and check (pure) -> writable layer made aside -> volumes -> renamed into place -> recorded. Nothing stays of a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ketch_wire.faults import Conflict, EngineFailure, InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.containers import endpoints, fields, health, launching, logdrivers, mountpoints, settings
from ketchd.containers.mountpoints import MountPoint
from ketchd.containers.names import random_name
from ketchd.containers.record import ContainerRecord, new_id
from ketchd.containers.shapes import pick
from ketchd.containers.supervisor import Box
from ketchd.engine import links
from ketchd.engine.platforms import host_platform, image_for, platform_of
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform

WORKING_DIRECTORIES_KEPT = 1024

tracepoint.declare("create.layer-made", "create.placed", "create.recorded")


async def create(
    rooms: Rooms, body: Mapping[str, Any], *, name: str = "", platform: str = ""
) -> tuple[Box, list[str]]:
    """A new container, and warnings for the client.

    Raises InvalidInput, NotFound (image), Conflict (name). Cancelled or failed: no directory, no record, no new volume's use.
    Source: Engine API, ContainerCreate.
    """
    if not body:
        raise InvalidInput("config cannot be empty in order to create a container")
    body = fields.decode(body, fields.CREATE)
    settings.check_texts(body)
    name = settings.check_name(name) if name else ""
    if name:
        rooms.supervisor.check_free(name)
    host = settings.normalise_host(
        pick(body, "HostConfig", {}), cgroup_version=rooms.cgroups.version, cpus=os.cpu_count() or 1,
        defaults=rooms.defaults,
    )  # fmt: skip
    host["LogConfig"] = logdrivers.settle(
        host["LogConfig"], rooms.default_log_driver, rooms.default_log_options
    )
    rooms.cgroups.check(host)
    warnings = rooms.cgroups.discard(host)
    warnings += _oom_warnings(host)
    launching.check(host)
    launching.settle_paths(host)
    if rooms.id_map is not None:
        launching.check_remap(host)
    image_name = str(pick(body, "Image", ""))
    if not image_name:
        raise InvalidInput("no command specified")  # dockerd's word for a container without image
    wanted = Platform.parse(platform, host_platform()) if platform else None
    image = image_for(rooms, image_name, wanted)
    image.check_is_image(image_name)
    config = settings.merge(body, image.config.run)
    health.read_plan(config)
    container_id = new_id()
    _fill_hostname(config, host, container_id, bool(pick(body, "ExposedPorts", {})))
    points = mountpoints.gather(
        host, config, _inherited(rooms, host["VolumesFrom"] or []), data_root=str(rooms.data_root)
    )
    _check_sources(points)
    argv = settings.command_line(config)
    linked, host["Links"] = links.register(rooms, host["NetworkMode"], host["Links"] or ()), None
    record = ContainerRecord(
        id=container_id,
        name=name or _free_name(rooms),
        image_id=str(image.id),
        image_name=image_name,
        created_ns=time.time_ns(),
        config=config,
        host_config=host,
        networking=endpoints.normalise(
            host["NetworkMode"],
            pick(pick(body, "NetworkingConfig", {}), "EndpointsConfig", {}),
            mac=config["MacAddress"] or "",
        ),
        layers=[str(layer) for layer in image.layers],
        path=argv[0],
        args=argv[1:],
        links=linked,
    )
    logdrivers.check_values(record)
    stage = rooms.data_root / "stage" / container_id
    final = rooms.container_dir(container_id)
    made: list[str] = []
    async with rooms.leases.hold() as lease, rooms.volumes.held_for(container_id) as held:
        # Until the record holds the layers and the volumes: they may be removed while this composes.
        for layer in image.layers:
            lease.add("layer", layer)
        held.update(point.name for point in points if point.type == "volume" and point.name)
        try:
            init = await rooms.layers.compose(image.layers)
            below = init.stat()
            for part in ("upper", "work"):
                (stage / part).mkdir(parents=True, mode=0o755)
            # The upper directory is what the container sees as `/`: it must not hide the image's own owner and mode.
            os.chown(stage / "upper", below.st_uid, below.st_gid)
            (stage / "upper").chmod(below.st_mode & 0o7777)
            stage.chmod(0o710)
            tracepoint.reach("create.layer-made")
            await _make_working_directory(rooms, config["WorkingDir"], image.layers, init, stage)
            placed = [await _place_volume(rooms, point, image.layers, made, held) for point in points]
            record.mounts = [point.to_record() for point in placed]
            if name:
                rooms.supervisor.check_free(name)
            final.parent.mkdir(exist_ok=True)
            stage.rename(final)
            tracepoint.reach("create.placed")
            with rooms.catalogue.transaction():
                box = rooms.supervisor.add(record)
                rooms.supervisor.announce(box, "create")
        except BaseException:
            rooms.supervisor.drop(record)
            shutil.rmtree(stage, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            held.clear()
            for volume in made:
                with contextlib.suppress(Conflict):  # another container has come to it
                    await rooms.volumes.remove(volume, force=True)
            raise
    tracepoint.reach("create.recorded")
    if wanted is None:
        warnings = [*platform_warnings(platform_of(image), host_platform()), *warnings]
    if host["PortBindings"] and host["NetworkMode"] == "host":
        warnings.append("Published ports are discarded when using host network mode")
    return box, warnings


async def _make_working_directory(
    rooms: Rooms, path: str, layers: Sequence[Digest], init: Path, stage: Path
) -> None:
    """A client may copy into it before the start. Raises EngineFailure when a file of the image is there."""
    known = (tuple(layers), path)
    if path in ("", "/") or known in rooms.working_directories:
        return
    below = [{"kind": layer.kind, "path": layer.path} for layer in rooms.layers.mounts(layers)]
    root = {
        "layers": [{"kind": "directory", "path": str(init)}, *below],
        "upper": str(stage / "upper"), "work": str(stage / "work"),
    }  # fmt: skip
    answer = await rooms.workers.run("ketchd.containers.workdirjob:settle", {"root": root, "path": path})
    if answer["there"]:
        if len(rooms.working_directories) >= WORKING_DIRECTORIES_KEPT:
            rooms.working_directories.clear()
        rooms.working_directories.add(known)


def platform_warnings(image: Platform, host: Platform) -> list[str]:
    """dockerd's, for an image that this host may not run. Pure."""
    if image in host.accepts():
        return []
    return [
        f"The requested image's platform ({image}) does not match the detected host platform ({host}) and no specific platform "
        "was requested"
    ]


def _oom_warnings(host: Mapping[str, Any]) -> list[str]:
    if not host["OomKillDisable"] or host["Memory"]:
        return []
    return [
        "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
        "running out of resources."
    ]


def _fill_hostname(config: dict[str, Any], host: dict[str, Any], container_id: str, exposed: bool) -> None:
    mode = host["NetworkMode"]
    if host["UTSMode"] == "host" and config["Hostname"]:
        raise InvalidInput("conflicting options: hostname and the UTS mode")
    if mode.startswith("container:"):
        if exposed:
            raise InvalidInput("conflicting options: port exposing and the container type network mode")
        if config["Hostname"]:
            raise InvalidInput("conflicting options: hostname and the network mode")
        return
    if not config["Hostname"]:
        config["Hostname"] = (
            os.uname().nodename if mode == "host" or host["UTSMode"] == "host" else container_id[:12]
        )


def _free_name(rooms: Rooms) -> str:
    while not rooms.supervisor.is_free(name := random_name()):
        pass
    return name


def _inherited(rooms: Rooms, volumes_from: list[str]) -> list[MountPoint]:
    points: dict[str, MountPoint] = {}
    for item in volumes_from:
        if not item:
            raise InvalidInput("volumes-from specification cannot be an empty string")
        reference, _, mode = item.partition(":")
        if mode not in ("", "ro", "rw", "z", "Z"):
            raise InvalidInput(f"invalid mode: {mode}")
        try:
            donor = rooms.supervisor.find(reference).record
        except NotFound as fault:
            raise InvalidInput(fault.message) from None  # not a 404: clients take that for a missing image
        for stored in donor.mounts:
            point = MountPoint.from_record(stored)
            if point.type != "tmpfs":
                points[point.destination] = replace(point, rw=point.rw and mode != "ro")
    return list(points.values())


def _check_sources(points: list[MountPoint]) -> None:
    for point in points:
        if point.type == "bind" and not point.make_source and not os.path.lexists(point.source):
            raise InvalidInput(
                f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
            )


async def _place_volume(
    rooms: Rooms, point: MountPoint, layers: Sequence[Digest], made: list[str], held: set[str]
) -> MountPoint:
    """`point` with its host directory: volumes made and filled from the image, missing `-v` sources made.

    made, held: get the names of volumes that were not there, and of all.
    """
    if point.type == "bind":
        if point.make_source and not os.path.lexists(point.source):
            os.makedirs(point.source, mode=0o755)
        return point
    if point.type != "volume" or point.source:
        return point
    existed = bool(point.name) and rooms.volumes.exists(point.name)
    volume = await rooms.volumes.create(
        point.name, driver=point.driver or "local", options=point.driver_options, labels=point.labels or None
    )
    held.add(volume.name)
    if not existed:
        made.append(volume.name)
    point = replace(point, name=volume.name)
    source = str(volume.mountpoint)
    if volume.mount is not None:
        if volume.mount.kind == "tmpfs":
            return replace(point, source=source, tmpfs_options=volume.mount.options)
        source = volume.mount.source
        if not os.path.isdir(source):
            raise EngineFailure(
                f"error while mounting volume '{volume.mountpoint}': failed to mount local volume: mount "
                f"{source}:{volume.mountpoint}: no such file or directory"
            )
        point = replace(point, rw=point.rw and "ro" not in volume.mount.options)
    if not point.no_copy:
        async with rooms.volumes.filling(volume.name):
            await _fill(rooms, point.destination, source, layers)
    if point.subpath:
        source = str(_subpath(Path(source), point.subpath))
    return replace(point, source=source)


async def _fill(rooms: Rooms, path: str, source: str, layers: Sequence[Digest]) -> None:
    """Copy what the image has at `path` into an empty volume."""
    if os.listdir(source):
        return
    await rooms.workers.run(
        "ketchd.containers.copyup:copy_up",
        {
            "layers": [{"kind": layer.kind, "path": layer.path} for layer in rooms.layers.mounts(layers)],
            "path": path,
            "destination": source,
        },
    )


def _subpath(volume: Path, subpath: str) -> Path:
    resolved = (volume / subpath).resolve()
    if not resolved.is_relative_to(volume.resolve()) or not resolved.exists():
        raise InvalidInput(f"cannot access path {volume / subpath}: no such file or directory")
    return resolved
