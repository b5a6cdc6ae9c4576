"""The start journey: a recorded container becomes a running one, or nothing at all.

files -> lease and ports -> LaunchPlan (pure) -> shim -> veth and port map while the child mounts -> gate -> exec -> recorded.
Every release is pushed before its acquisition and may be called twice; `remove` and a failed start use the same ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from ketch_wire.faults import Conflict, EngineFailure, Fault
from ketchd import tracepoint
from ketchd.containers import launching, propagation
from ketchd.containers.journald import has_journal
from ketchd.containers.lifecycle import Happening, State
from ketchd.containers.mountpoints import MountPoint
from ketchd.containers.record import ContainerRecord
from ketchd.containers.shims import LaunchFailed, ShimLink
from ketchd.containers.subids import IdMap
from ketchd.containers.supervisor import Box
from ketchd.engine import announcing, background, ending, health, links, ooms
from ketchd.engine import networks as networking
from ketchd.engine.rooms import Rooms
from ketchd.network.leases import EndpointLease, outward

tracepoint.declare("start.leased", "start.launched", "start.connected", "start.running", "start.recorded")


async def start(rooms: Rooms, box: Box) -> None:
    """Start `box`.

    Returns when its program has been executed. Raises NotModified when it runs; Conflict; a fault with dockerd's wording
    when it cannot start: then State.Error and ExitCode say why, and nothing of the attempt is left.
    Cancelled: the attempt is undone.
    """
    async with box.lock:
        if box.ask(Happening.ASK_START) is State.STARTING:
            ending.cancel_restart(box)
            box.record.restart_count, box.restart_wait_seconds = 0, 0.0  # a start by hand has all its tries
            await start_locked(rooms, box)


async def start_locked(rooms: Rooms, box: Box) -> None:
    """`start`, for callers that hold the lock and have asked."""
    record = box.record
    record.before_start = record.state
    record.state, record.ooms = State.STARTING, 0
    attachments, box.pending = [one for one in box.pending if not one.has_hung_up()], []
    try:
        async with AsyncExitStack() as undo:
            link = await _launch(rooms, box, undo, attachments)
            undo.push_async_callback(link.abort)  # it runs: what follows may find the disk full
            tracepoint.reach("start.running")
            record.state = State.RUNNING
            record.pid, record.start_time = link.pid, link.start_time
            record.started_ns, record.exit_code, record.error = time.time_ns(), None, ""
            record.oom_killed, record.stopped_by_hand, record.started_once = False, False, True
            health.reset(rooms, box)
            with rooms.catalogue.transaction():
                rooms.supervisor.save(record)
                announcing.joined(rooms, record, networking.stored_leases(record))
                rooms.supervisor.announce(box, "start")
            tracepoint.reach("start.recorded")
            undo.pop_all()
    except BaseException as error:
        for stream in attachments:
            stream.close()
        _note_failure(rooms, box, error)
        raise
    box.link = link
    ooms.tell(rooms, box)
    health.watch(rooms, box)
    box.watch = background.begin(rooms, box, "supervision", ending.watch(rooms, box, link))
    links.follow(rooms, record)
    late, box.pending = box.pending, []
    for stream in late:  # they came while it started: what was said until now is not for them
        with contextlib.suppress(Fault):
            await link.attach(stream)


def _note_failure(rooms: Rooms, box: Box, error: BaseException) -> None:
    record = box.record
    record.state = record.after_failed_start
    record.pid = record.start_time = 0
    record.endpoint, record.endpoints, record.published = None, [], []
    if not isinstance(error, Exception):
        rooms.supervisor.save(record)
        return
    record.error = error.message if isinstance(error, Fault) else str(error)
    record.exit_code = error.exit_code if isinstance(error, LaunchFailed) else 128
    try:
        rooms.supervisor.save(record)
    finally:
        box.announce_exit()
    if record.auto_remove:
        background.begin(rooms, box, "automatic removal", ending.remove_quietly(rooms, box))


def _without_propagation(rooms: Rooms, record: ContainerRecord, points: Sequence[MountPoint]) -> set[str]:
    """Where the mounts are whose source cannot propagate, and of which nobody asked it. Raises EngineFailure for one that should.

    Source: moby daemon/oci_linux.go, WithMounts.
    """
    found = set()
    for point in points:
        if point.propagation.endswith(("shared", "slave")):
            mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
            try:
                propagation.check(mountinfo, os.path.realpath(point.source), point.propagation)
            except EngineFailure:
                if not point.implied:
                    raise
                rooms.log.info("a bind cannot propagate mounts", container=record.id, source=point.source)
                found.add(point.destination)
    return found


async def _launch(
    rooms: Rooms, box: Box, undo: AsyncExitStack, attachments: list[launching.ClientStream]
) -> ShimLink:
    record = box.record
    donor_pid = _network_donor(rooms, box)
    undo.push_async_callback(rooms.networks.release, record.id)
    sockets: list[socket.socket] = []
    record.published = []
    leases = networking.reserve(rooms, record)
    lease = leases[0] if leases else None
    networking.record_leases(record, leases)
    bindings = launching.wanted_ports(record)
    leading = outward(leases)
    if bindings and leading is not None:
        reserved = rooms.networks.reserve_ports(
            bindings, endpoint_name=record.name, endpoint_id=leading.endpoint_id
        )
        sockets = [one.socket for one in reserved]
        record.published = [one.to_record() for one in reserved]
    try:
        run_dir = _new_directories(rooms, record.id)
        # A shim that outlives us from here on is found with its addresses and ports.
        rooms.supervisor.save(record)
        tracepoint.reach("start.leased")
        points = [MountPoint.from_record(stored) for stored in record.mounts]
        for point in points:
            if point.type == "bind" and point.make_source and not os.path.lexists(point.source):
                os.makedirs(point.source, mode=0o755)
        alone = _without_propagation(rooms, record, points)
        _write_files(rooms, box, leases)
        init = await rooms.layers.compose(record.diff_ids)
        donors = _donors(rooms, box, donor_pid)
        plan = launching.plan(
            record,
            layers=rooms.layers.mounts(record.diff_ids),
            init_layer=str(init),
            container_dir=rooms.container_dir(record.id),
            state_dir=rooms.state_dir(record.id),
            run_dir=run_dir,
            cgroup=rooms.cgroups.plan(
                record.id, record.host_config["CgroupParent"] or rooms.cgroup_parent, record.host_config
            ),
            netlink=tuple(rooms.networks.netlink_messages(lease, *leases[1:])),
            donor_pids=donors,
            has_journal=has_journal(),
            cgroup_version=rooms.cgroups.version,
            daemon=rooms.defaults,
            linked=links.environment(rooms, record, strict=True),
        )
        plan = launching.keep_private(plan, alone)
        if rooms.id_map is not None and record.host_config["UsernsMode"] != "host":
            launching.check_remap(record.host_config)
            donor_of_user = shared_user_namespace(rooms.id_map, donors)
            plan = launching.remap(plan, rooms.id_map, rooms.data_root, donor_of_user)
        undo.callback(rooms.cgroups.remove, record.id)

        async def on_pid(pid: int, network_pid: int) -> None:
            tracepoint.reach("start.launched")
            for one in leases:
                await rooms.networks.connect(one, network_pid)
            if record.published and leading is not None:
                await rooms.networks.publish(leading, record.published)
            tracepoint.reach("start.connected")
            undo.callback(announcing.failed, rooms, record, networking.stored_leases(record))

        return await rooms.shims.start(
            plan, attachments=attachments, port_fds=[one.fileno() for one in sockets], on_pid=on_pid
        )
    except OSError as error:
        raise EngineFailure(
            f"failed to start container {record.short}: {error.strerror}: {error.filename}"
        ) from error
    finally:
        for one in sockets:
            one.close()


def _new_directories(rooms: Rooms, container_id: str) -> Path:
    """The run's own: the last one's end and socket are none of it, whoever finds them next. Returns the run directory."""
    rooms.container_dir(container_id).joinpath("exit").unlink(missing_ok=True)  # of an older ketchd
    state, run = rooms.state_dir(container_id), rooms.run_dir(container_id)
    for directory in (state, run):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
        directory.mkdir(parents=True, mode=0o700)
    return run


def _network_donor(rooms: Rooms, box: Box) -> int:
    mode = box.record.host_config["NetworkMode"]
    return _donor(rooms, box, mode, "network") if mode.startswith("container:") else 0


def _donor(rooms: Rooms, box: Box, mode: str, what: str) -> int:
    return running_donor(rooms, mode, what, joining=box.record.id).pid


def running_donor(rooms: Rooms, mode: str, what: str, joining: str) -> ContainerRecord:
    """The container that `container:NAME` names, which runs. joining: the id of who joins. Raises NotFound, Conflict."""
    donor = rooms.supervisor.find(mode.removeprefix("container:")).record
    if donor.id == joining:
        raise Conflict(f"cannot join own {what}")
    if not donor.has_process:
        raise Conflict(f"cannot join {what} of a non running container: {donor.id}")
    return donor


def _donors(rooms: Rooms, box: Box, network_pid: int) -> dict[str, int]:
    donors = {"network": network_pid} if network_pid else {}
    for key, kind in (("PidMode", "pid"), ("IpcMode", "ipc")):
        mode = box.record.host_config[key]
        if mode.startswith("container:"):
            donors[kind] = _donor(rooms, box, mode, kind.upper())
            if kind == "ipc":
                _check_shares(rooms, mode)
    return donors


def shared_user_namespace(ids: IdMap, donors: Mapping[str, int]) -> int:
    """The pid of a donor, in whose user namespace a remapped container has to be; 0 without donors.

    Raises Conflict when that cannot be: donors of several user namespaces, or of another mapping. Source: moby oci_linux.go,
    WithNamespaces ("to share a net namespace, they must also share a user namespace"); user_namespaces(7).
    """
    try:
        namespaces = {os.readlink(f"/proc/{pid}/ns/user") for pid in donors.values()}
        maps = {
            tuple(
                tuple(map(int, line.split())) for line in Path(f"/proc/{pid}/{name}").read_text().splitlines()
            )
            == wanted
            for pid in donors.values()
            for name, wanted in (("uid_map", ids.uids), ("gid_map", ids.gids))
        }
    except OSError as error:
        raise Conflict("cannot join the namespaces of a container that has just ended") from error
    if False in maps:
        raise Conflict(
            "cannot share a namespace of a container with another user namespace mapping: use --userns host for both, or for none"
        )
    if len(namespaces) > 1:
        raise Conflict("cannot share namespaces of several containers: each has a user namespace of its own")
    return next(iter(donors.values()), 0)


def _check_shares(rooms: Rooms, mode: str) -> None:
    donor = rooms.supervisor.find(mode.removeprefix("container:")).record
    if donor.host_config["IpcMode"] in ("private", "none"):
        raise EngineFailure("non-shareable IPC (hint: use IpcMode:shareable for the donor container)")


def _write_files(rooms: Rooms, box: Box, leases: list[EndpointLease]) -> None:
    """hosts, hostname and resolv.conf, made anew at each start; those of the container whose network it shares."""
    directory = rooms.container_dir(box.record.id)
    mode = box.record.host_config["NetworkMode"]
    if mode.startswith("container:"):
        donor = rooms.supervisor.find(mode.removeprefix("container:")).record
        for name in networking.NETWORK_FILES:
            (directory / name).write_bytes((rooms.container_dir(donor.id) / name).read_bytes())
        return
    for name, content in networking.network_files(rooms, box.record, leases).items():
        (directory / name).write_text(content)
