"""The journey of a restarted ketchd: every recorded container is found again, finished, undone or started by its policy.

Runs before the door opens, so `ps` right after a restart is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from ketch_wire.faults import EngineFailure, Fault
from ketchd.containers.lifecycle import State
from ketchd.containers.recovery import Decision, decide
from ketchd.containers.restarts import Policy, starts_on_boot
from ketchd.containers.shims import ShimLink, read_exit
from ketchd.containers.supervisor import Box
from ketchd.engine import announcing, background, ending, execs, health, ooms
from ketchd.engine.attaching import lead_again, let_go_of_ports
from ketchd.engine.networks import stored_leases
from ketchd.engine.remove import remove
from ketchd.engine.rooms import Rooms
from ketchd.engine.start import start
from ketchd.network.leases import EndpointLease, outward


async def restore(rooms: Rooms) -> None:
    """Bring memory and processes in line with the catalogue. Faults of one container are logged, never fatal.

    Raises EngineFailure when it cannot be seen what runs.
    """
    boxes = rooms.supervisor.load()
    execs.restored(rooms)
    for box in boxes:
        rooms.cgroups.place(box.record.id, box.record.host_config["CgroupParent"] or rooms.cgroup_parent)
    links = await asyncio.gather(*(rooms.shims.adopt(box.record.id) for box in boxes), return_exceptions=True)
    running: list[Box] = []
    for box, link in zip(boxes, links, strict=True):
        if isinstance(link, OSError):  # it may well run: better no daemon than one that takes it for ended
            reason = (link.strerror or str(link)).lower()
            raise EngineFailure(f"cannot ask the shim of container {box.record.id}: {reason}") from link
        if isinstance(link, BaseException):
            rooms.log.warning("shim does not answer", container=box.record.id, reason=str(link))
            link = None
        if await _restore_one(rooms, box, link):
            running.append(box)
    strays = await rooms.networks.restore(
        [
            {
                "container_id": box.record.id,
                "endpoint": box.record.endpoint,
                "endpoints": box.record.endpoints,
                "published": box.record.published,
            }
            for box in running
            if box.record.endpoint is not None
        ]
    )
    for box in running if strays else ():
        await lead_again(rooms, box)
    for box in running:
        if box.link is not None:
            box.watch = background.begin(rooms, box, "supervision", ending.watch(rooms, box, box.link))
            health.watch(rooms, box)


async def _restore_one(rooms: Rooms, box: Box, link: ShimLink | None) -> bool:
    """Carry out the decision for one container; True when it runs."""
    record = box.record
    if link is None and record.has_process:
        await rooms.shims.end_stray(record.id, record.pid, record.start_time)
    left = read_exit(rooms.state_dir(record.id)) or read_exit(
        rooms.container_dir(record.id)
    )  # an older one's
    decision = decide(record.state, shim_runs=link is not None, exit_recorded=left is not None)
    rooms.log.debug("restore", container=record.id, state=record.state.value, decision=decision.name)
    if decision is Decision.ADOPT and link is not None:
        record.pid, record.start_time = link.pid, link.start_time
        if not record.has_process:
            record.started_ns, record.started_once, record.exit_code = time.time_ns(), True, None
            health.reset(rooms, box)
            _note_start(rooms, box)
        box.link = link
        if outward([EndpointLease.from_record(one) for one in stored_leases(record)]) is None:
            await let_go_of_ports(rooms, box)  # it left its last network, and the last ketchd came no further
        if record.paused_for_commit:  # that commit is no more
            record.paused_for_commit = False
            with contextlib.suppress(EngineFailure):
                await asyncio.to_thread(rooms.cgroups.thaw, record.id)
        with _recording(rooms, box):
            _note_freezer(rooms, box)
            rooms.supervisor.save(record)
        ooms.tell(rooms, box)
        return True
    if record.state is State.RESTARTING:
        record.state = State.EXITED  # its end is recorded and told; what was planned is `start_by_policy`'s
        with _recording(rooms, box):
            rooms.supervisor.save(record)
        return False
    if decision in (Decision.FINISH, Decision.FINISH_UNKNOWN):
        async with box.lock:
            if record.state is State.STARTING and left is not None:
                # It ran and ended before its start was recorded.
                record.started_ns, record.started_once = left.finished_ns, True
                _note_start(rooms, box)
            await ending.finish(rooms, box, left, restarts=False)  # that is `start_by_policy`'s
    elif decision is Decision.UNDO_START:
        await ending.release_addresses(rooms, record)
        rooms.cgroups.kill(record.id)
        rooms.cgroups.remove(record.id)
        record.state = record.after_failed_start
        with _recording(rooms, box):
            rooms.supervisor.save(record)
    elif decision is Decision.REMOVE:
        record.state = State.EXITED
        try:
            await remove(rooms, box, volumes=record.auto_remove)
        except Fault as fault:
            rooms.log.warning("removal could not be completed", container=record.id, reason=fault.message)
    elif record.auto_remove and (record.started_once or record.error):
        await ending.remove_quietly(rooms, box)  # its end was recorded, and the last ketchd came no further
    return False


@contextlib.contextmanager
def _recording(rooms: Rooms, box: Box) -> Iterator[None]:
    """A transaction. What the catalogue does not take (a full disk) is known to this ketchd all the same, and seen anew by the next."""
    try:
        with rooms.catalogue.transaction():
            yield
    except EngineFailure as fault:
        rooms.log.error("not recorded", container=box.record.id, reason=fault.message)


def _note_freezer(rooms: Rooms, box: Box) -> None:
    """A pause or its end that the last ketchd carried out and did not come to record. Called in the transaction of the record."""
    frozen = rooms.cgroups.is_frozen(box.record.id)
    if frozen is not None and frozen is not (box.record.state is State.PAUSED):
        box.record.state = State.PAUSED if frozen else State.RUNNING
        rooms.supervisor.announce(box, "pause" if frozen else "unpause")


def _note_start(rooms: Rooms, box: Box) -> None:
    """Record and tell a start that the last ketchd did not come to record."""
    box.record.state = State.RUNNING
    with _recording(rooms, box):
        rooms.supervisor.save(box.record)
        announcing.joined(rooms, box.record, stored_leases(box.record))
        rooms.supervisor.announce(box, "start")


async def start_by_policy(rooms: Rooms) -> None:
    """Start what its restart policy wants running. Called once the door is open."""
    for box in rooms.supervisor:
        record = box.record
        wanted = record.host_config["RestartPolicy"]
        if record.state is State.EXITED and record.started_once:
            policy = Policy(wanted["Name"], wanted["MaximumRetryCount"])
            if starts_on_boot(
                policy, was_running=True, exit_code=box.exit_code(),
                stopped_by_hand=record.stopped_by_hand, tries=record.restart_count,
            ):  # fmt: skip
                try:
                    await start(rooms, box)
                except Fault as fault:
                    rooms.log.warning("start by policy failed", container=record.id, reason=fault.message)
