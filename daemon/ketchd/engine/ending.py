"""What follows the end of a container: recorded, released, announced; then restarted by policy, or removed (`--rm`)."""

from __future__ import annotations

import asyncio
import time

from ketch_wire.faults import EngineFailure, Fault
from ketchd import tracepoint
from ketchd.containers.lifecycle import Happening, State
from ketchd.containers.record import ContainerRecord
from ketchd.containers.restarts import Policy, next_wait
from ketchd.containers.shims import ExitRecord, ShimLink
from ketchd.containers.supervisor import Box
from ketchd.engine import announcing, background, execs, health
from ketchd.engine import networks as networking
from ketchd.engine.rooms import Rooms

tracepoint.declare("end.seen", "end.released", "end.recorded")


async def watch(rooms: Rooms, box: Box, link: ShimLink) -> None:
    """Wait for the end of the run that `link` holds and see to what follows. Cancelled (ketchd ends): the container runs on."""
    ended = await link.wait()
    async with box.lock:
        if box.link is link:
            await finish(rooms, box, ended)


async def release_addresses(rooms: Rooms, record: ContainerRecord) -> None:
    """Give back what a run that is over had of networks, also where that cannot be recorded: the next ketchd sees nothing of it running."""
    try:
        await rooms.networks.release(record.id)
    except EngineFailure as fault:
        rooms.log.error("addresses not recorded as free", container=record.id, reason=fault.message)


async def finish(rooms: Rooms, box: Box, ended: ExitRecord | None, *, restarts: bool = True) -> None:
    """Record the end of the run; None when nobody saw it. The lock is held. restarts: the policy has its say now."""
    tracepoint.reach("end.seen")
    record = box.record
    box.link = None
    health.unwatch(box)
    endpoints = networking.stored_leases(record)
    await release_addresses(rooms, record)
    rooms.cgroups.remove(record.id)
    tracepoint.reach("end.released")
    was_paused = record.state is State.PAUSED
    record.state = box.ask(Happening.EXITED)
    record.pid = record.start_time = 0
    record.exit_code = None if ended is None else ended.code
    ooms_told, record.ooms = record.ooms, max(record.ooms, 0 if ended is None else ended.ooms)
    record.oom_killed = record.ooms > 0
    record.finished_ns = time.time_ns() if ended is None else ended.finished_ns
    record.endpoint, record.endpoints, record.published = None, [], []
    uptime = max(0, record.finished_ns - record.started_ns) / 1e9
    wait = (
        None
        if not restarts or box.stays_down
        else next_wait(
            Policy(
                record.host_config["RestartPolicy"]["Name"],
                record.host_config["RestartPolicy"]["MaximumRetryCount"],
            ),
            exit_code=box.exit_code(),
            tries=record.restart_count,
            last_wait_seconds=box.restart_wait_seconds,
            uptime_seconds=uptime,
            stopped_by_hand=record.stopped_by_hand or was_paused,
        )
    )
    if wait is not None:
        record.state = box.ask(Happening.BACK_OFF)
    try:
        with rooms.catalogue.transaction():
            rooms.supervisor.save(record)
            execs.container_ended(rooms, box, None if ended is None else ended.execs)
            if record.ooms > ooms_told:
                rooms.supervisor.announce(box, "oom")
            rooms.supervisor.announce(
                box, "die", exitCode=str(box.exit_code()), execDuration=str(int(uptime))
            )
            announcing.left(rooms, record, endpoints)
    except EngineFailure as fault:
        # The shim's exit record is there for the next ketchd; whoever waits for this end must not wait for the disk.
        rooms.log.error("end not recorded", container=record.id, reason=fault.message)
    tracepoint.reach("end.recorded")
    if wait is not None:
        _restart_later(rooms, box, wait)
    elif record.auto_remove and not box.keepers:
        background.begin(rooms, box, "automatic removal", remove_quietly(rooms, box))
    box.announce_exit()


def cancel_restart(box: Box) -> None:
    """Forget a planned restart."""
    if box.restart_timer is not None:
        box.restart_timer.cancel()
        box.restart_timer = None


def _restart_later(rooms: Rooms, box: Box, seconds: float) -> None:
    box.restart_wait_seconds = seconds
    box.restart_timer = asyncio.get_running_loop().call_later(
        seconds, lambda: background.begin(rooms, box, "restart", restart_now(rooms, box))
    )


async def restart_now(rooms: Rooms, box: Box) -> None:
    """The planned restart. A start that fails is not tried again, as in dockerd: State.Error says why."""
    from ketchd.engine.start import start_locked  # the two journeys know each other

    async with box.lock:
        box.restart_timer = None
        if box.record.state is not State.RESTARTING:
            return
        box.record.restart_count += 1
        try:
            await start_locked(rooms, box)
        except Fault as fault:
            rooms.log.warning("restart failed", container=box.record.id, reason=fault.message)


async def remove_quietly(rooms: Rooms, box: Box) -> None:
    """`--rm`: remove after the end, and after the `stop` that brought it was told; somebody else's removal is as good."""
    from ketchd.engine.remove import remove

    if box.stops:
        await asyncio.wait(set(box.stops))
    try:
        await remove(rooms, box, volumes=True)
    except Fault as fault:
        rooms.log.info("automatic removal left to another", container=box.record.id, reason=fault.message)
