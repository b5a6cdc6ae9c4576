"""The remove journey: the directory is moved to the trash, the record deleted. Killed between, the restore finishes it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path

from ketch_wire.faults import Conflict, EngineFailure, Fault, NotFound
from ketchd import tracepoint
from ketchd.containers.lifecycle import Happening, State
from ketchd.containers.mountpoints import MountPoint
from ketchd.containers.supervisor import Box
from ketchd.engine import ending
from ketchd.engine.rooms import Rooms
from ketchd.engine.stop import send_signal
from ketchd.layers.placing import stats_below

tracepoint.declare("remove.marked", "remove.moved", "remove.forgotten")


async def remove(rooms: Rooms, box: Box, *, force: bool = False, volumes: bool = False) -> None:
    """Remove `box`; with `force` a running one is killed first; with `volumes` its anonymous volumes go too.

    Raises Conflict. Cancelled after the mark: the removal still completes. Source: Engine API, ContainerDelete.
    """
    box.keepers += force  # the end that we bring about is not `--rm`'s to follow up
    killed = force
    try:
        while True:
            if force and _runs(box):
                killed = await _end(rooms, box)
            async with box.lock:
                if killed and _runs(box):
                    continue  # somebody's start came between
                _mark(rooms, box)
                break
    finally:
        box.keepers -= force
    await asyncio.shield(asyncio.ensure_future(_carry_out(rooms, box, volumes)))


def _mark(rooms: Rooms, box: Box) -> None:
    """The lock is held. Raises the lifecycle's refusal; EngineFailure: then it is as it was."""
    following = box.ask(Happening.ASK_REMOVE)
    with rooms.supervisor.changing(box.record) as record:
        record.state = following


def _runs(box: Box) -> bool:
    return box.record.is_running or box.record.state is State.STARTING


async def _end(rooms: Rooms, box: Box) -> bool:
    """Kill it; False when nothing was ended by that."""
    async with box.lock:
        ending.cancel_restart(box)
        link = box.link
        if link is None:
            if box.record.state is not State.RESTARTING:
                return False
            box.record.state = State.EXITED
            return True
        box.record.stopped_by_hand = True
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        box.exit_waiters.append(waiter)
        await send_signal(rooms, box, link, signal.SIGKILL)
        if box.record.state is State.PAUSED:
            await asyncio.to_thread(rooms.cgroups.thaw, box.record.id)
    await asyncio.wait([waiter], timeout=10)
    return waiter.done()


async def _carry_out(rooms: Rooms, box: Box, volumes: bool) -> None:
    record = box.record
    tracepoint.reach("remove.marked")
    try:
        try:
            rooms.trash.take(rooms.container_dir(record.id))
        except EngineFailure as fault:
            raise EngineFailure(f"unable to remove filesystem for {record.id}: {fault.message}") from fault
        tracepoint.reach("remove.moved")
        for stream in box.pending:
            stream.close()
        box.pending = []
        with rooms.catalogue.transaction():
            rooms.supervisor.announce(box, "destroy")
            rooms.supervisor.forget(box)
    except EngineFailure as fault:
        _note_failure(rooms, box, fault)
        raise
    tracepoint.reach("remove.forgotten")
    try:
        shutil.rmtree(rooms.run_dir(record.id), ignore_errors=True)
        await _remove_volumes(rooms, box, volumes)
    finally:
        box.announce_removed()  # not sooner: whoever waits for `--rm` may list the volumes next
        await rooms.trash.settle()


def _note_failure(rooms: Rooms, box: Box, fault: EngineFailure) -> None:
    """It is dead, and may be removed again; whoever waits for its removal is told why there was none. Source: moby state.go, SetRemovalError."""
    box.record.state, box.record.error = State.DEAD, fault.message
    try:
        rooms.supervisor.save(box.record)
    except EngineFailure as again:  # recorded as being removed, which the next ketchd completes
        rooms.log.error("removal not recorded as failed", container=box.record.id, reason=again.message)
    finally:
        box.announce_removed()


async def _remove_volumes(rooms: Rooms, box: Box, volumes: bool) -> None:
    if volumes:
        for point in (MountPoint.from_record(stored) for stored in box.record.mounts):
            if point.type == "volume" and point.anonymous:
                try:
                    await rooms.volumes.remove(point.name)
                except (Conflict, NotFound) as fault:
                    rooms.log.info("volume stays", volume=point.name, reason=fault.message)


async def prune(rooms: Rooms, accept: Callable[[Box], bool]) -> tuple[list[str], int]:
    """Remove every container that does not run and that `accept` accepts: (ids, bytes won back)."""
    removed, size = [], 0
    for box in rooms.supervisor:
        if box.record.state in (State.CREATED, State.EXITED, State.DEAD) and accept(box):
            used = await asyncio.to_thread(tree_size, rooms.container_dir(box.record.id) / "upper")
            try:
                await remove(rooms, box)
            except Fault:
                continue
            removed.append(box.record.id)
            size += used
    rooms.events.append("container", "prune", "", {"reclaimed": str(size)})
    return removed, size


def tree_size(path: Path) -> int:
    """Bytes of the regular files below `path`."""
    return sum(info.st_size for info in stats_below(path) if stat.S_ISREG(info.st_mode))
