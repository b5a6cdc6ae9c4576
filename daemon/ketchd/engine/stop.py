"""The stop, kill, restart and pause journeys."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence

from ketch_wire.faults import EngineFailure, NotModified
from ketchd import tracepoint
from ketchd.containers.lifecycle import Happening, State
from ketchd.containers.shimlink import ShimLink
from ketchd.containers.signals import signal_number
from ketchd.containers.supervisor import Box
from ketchd.engine import ending, health
from ketchd.engine.rooms import Rooms
from ketchd.engine.start import start

tracepoint.declare("pause.frozen")

DEFAULT_GRACE_SECONDS = 10
KILL_WAIT_SECONDS = 10.0
SHUTDOWN_MARGIN_SECONDS = 5


async def stop(
    rooms: Rooms, box: Box, *, grace_seconds: int | None = None, stop_signal: str = "", by_hand: bool = True
) -> None:
    """End `box`: its stop signal, then SIGKILL after the grace (-1: never).

    by_hand: its restart policy heeds it later on.
    Raises NotModified when it does not run. Cancelled: the SIGKILL is still sent. Source: Engine API, ContainerStop.
    """
    number = signal_number(stop_signal or box.record.config["StopSignal"] or "TERM")
    async with box.lock:
        box.ask(Happening.ASK_STOP)
        if box.record.state is State.RESTARTING:
            rooms.supervisor.announce(box, "stop")
            _stay_down(rooms, box)
            return
        _note_by_hand(rooms, box, box.record.stopped_by_hand or by_hand)
        ended = _end_of_run(box)
        told = asyncio.get_running_loop().create_future()
        box.stops.add(told)
        try:
            await _thaw_and_signal(rooms, box, number)
        except BaseException:
            _is_told(box, told)
            raise
    if grace_seconds is None:
        grace_seconds = _grace(box)
    try:
        await asyncio.shield(asyncio.ensure_future(_see_it_end(rooms, box, ended, grace_seconds)))
        _tell(rooms, box, "stop")
    finally:
        _is_told(box, told)


def _is_told(box: Box, told: asyncio.Future[None]) -> None:
    """What follows the end (`--rm`) may be told now."""
    box.stops.discard(told)
    told.set_result(None)


def _stay_down(rooms: Rooms, box: Box) -> None:
    """No run follows the one that ended. The lock is held."""
    ending.cancel_restart(box)
    box.record.state = State.EXITED
    box.record.stopped_by_hand = True
    rooms.supervisor.save(box.record)
    box.announce_exit()


async def stop_all(rooms: Rooms, shutdown_timeout: int) -> None:
    """ketchd ends and its containers with it: each by its own stop signal and grace, all within `seconds_for_all`.

    Nobody stopped them by hand: their restart policy has its say at the next start. Source: moby daemon.go, Shutdown.
    """
    boxes = [box for box in rooms.supervisor if box.record.has_process]
    for box in rooms.supervisor:
        ending.cancel_restart(box)
        box.stays_down = True
    seconds = seconds_for_all(shutdown_timeout, [_grace(box) for box in boxes])
    jobs = [asyncio.ensure_future(stop(rooms, box, by_hand=False)) for box in boxes]
    if jobs:
        _, late = await asyncio.wait(jobs, timeout=seconds)
        for job in late:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
    for box in boxes:
        if box.record.has_process:
            rooms.log.warning("container did not stop in time", container=box.record.id, seconds=seconds)


def seconds_for_all(shutdown_timeout: int, graces: Sequence[int]) -> float | None:
    """How long the end may take: the setting, or the longest grace and a little; None without end. Pure."""
    if shutdown_timeout < 0 or any(grace < 0 for grace in graces):
        return None
    return max([shutdown_timeout, *(grace + SHUTDOWN_MARGIN_SECONDS for grace in graces)])


def _grace(box: Box) -> int:
    configured: int | None = box.record.config["StopTimeout"]
    return DEFAULT_GRACE_SECONDS if configured is None else configured


def _end_of_run(box: Box) -> asyncio.Future[int]:
    waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    box.exit_waiters.append(waiter)
    return waiter


async def _see_it_end(rooms: Rooms, box: Box, ended: asyncio.Future[int], grace_seconds: int) -> None:
    try:
        await asyncio.wait_for(asyncio.shield(ended), None if grace_seconds < 0 else grace_seconds)
        return
    except TimeoutError:
        pass
    async with box.lock:
        if ended.done():
            return  # it ended while we waited for the lock, and what runs now may be its next run
        await _thaw_and_signal(rooms, box, signal.SIGKILL)
    try:
        await asyncio.wait_for(ended, KILL_WAIT_SECONDS)
    except TimeoutError:
        raise EngineFailure(
            f"cannot stop container: {box.record.id}: tried to kill container, but did not receive an exit event"
        ) from None


def _note_by_hand(rooms: Rooms, box: Box, by_hand: bool) -> None:
    """On a full disk it ends all the same, for that may be what makes room; the next ketchd then goes by its restart policy."""
    box.record.stopped_by_hand = by_hand
    box.stops_asked += 1
    try:
        rooms.supervisor.save(box.record)
    except EngineFailure as fault:
        rooms.log.error("stop not recorded", container=box.record.id, reason=fault.message)


def _tell(rooms: Rooms, box: Box, action: str, **attributes: str) -> None:
    """An event of what happens even where that cannot be told."""
    try:
        rooms.supervisor.announce(box, action, **attributes)
    except EngineFailure as fault:
        rooms.log.error("event not recorded", container=box.record.id, action=action, reason=fault.message)


async def send_signal(rooms: Rooms, box: Box, link: ShimLink, number: int) -> None:
    """Told first: the shim may say in one breath that the signal was sent and what ended by it."""
    _tell(rooms, box, "kill", signal=str(int(number)))
    await link.signal(number)


async def _thaw_and_signal(rooms: Rooms, box: Box, number: int) -> None:
    """Send the signal; a frozen container is thawed, or the signal would wait. The lock is held.

    One that is killed goes from paused to exited: no `unpause` is told of it. Source: moby daemon/kill.go and monitor.go.
    """
    link = box.link
    if link is not None:
        await send_signal(rooms, box, link, number)
    if box.record.state is State.PAUSED:
        await asyncio.to_thread(rooms.cgroups.thaw, box.record.id)
        if number == signal.SIGKILL:
            return
        box.record.state, box.record.paused_for_commit = State.RUNNING, False
        health.watch(rooms, box)  # it may live on
        with contextlib.suppress(EngineFailure), rooms.catalogue.transaction():
            rooms.supervisor.save(box.record)
            rooms.supervisor.announce(box, "unpause")


async def kill(rooms: Rooms, box: Box, signal_name: str) -> None:
    """Send a signal to PID 1; SIGKILL waits for the end. Raises Conflict when it does not run, InvalidInput."""
    number = signal_number(signal_name or "KILL")
    async with box.lock:
        box.ask(Happening.ASK_KILL)
        own = box.record.config["StopSignal"]
        is_end = not own or number in (signal_number(own), signal.SIGKILL)
        if box.record.state is State.RESTARTING:  # nobody to signal: moby's daemon/kill.go, killWithSignal
            if is_end:
                _stay_down(rooms, box)
            return
        ended = _end_of_run(box)
        if is_end:
            _note_by_hand(rooms, box, True)
            await _thaw_and_signal(rooms, box, number)
        elif box.link is not None:
            await send_signal(rooms, box, box.link, number)
    if number == signal.SIGKILL:
        await asyncio.wait([ended], timeout=KILL_WAIT_SECONDS)
    elif ended in box.exit_waiters:
        box.exit_waiters.remove(ended)


async def restart(
    rooms: Rooms, box: Box, *, grace_seconds: int | None = None, stop_signal: str = "", yields: bool = False
) -> None:
    """stop (if it runs), then start. yields: not when somebody else stops it meanwhile. Source: Engine API, ContainerRestart."""
    asked = box.stops_asked + 1  # by us
    box.keepers += 1  # not in the record: killed here, `--rm` still holds
    try:
        await stop(rooms, box, grace_seconds=grace_seconds, stop_signal=stop_signal)
    except NotModified:
        pass
    finally:
        box.keepers -= 1
    if yields and box.stops_asked > asked:
        if box.record.auto_remove:
            await ending.remove_quietly(rooms, box)
        return
    with contextlib.suppress(NotModified):  # another restart at the same time has started it
        await start(rooms, box)
    rooms.supervisor.announce(box, "restart")


async def pause(rooms: Rooms, box: Box, *, for_commit: bool = False) -> None:
    """Freeze every process. for_commit: until `unpause`, or until this ketchd ends.

    Raises Conflict; EngineFailure: then it runs on.
    """
    async with box.lock:
        following = box.ask(Happening.ASK_PAUSE)
        if for_commit:
            box.record.paused_for_commit = True
            rooms.supervisor.save(box.record)  # first: the next ketchd thaws what this one has frozen
        await asyncio.to_thread(rooms.cgroups.freeze, box.record.id)
        tracepoint.reach("pause.frozen")
        try:
            with rooms.supervisor.changing(box.record) as record:
                record.state, record.paused_for_commit = following, for_commit
                rooms.supervisor.announce(box, "pause")
        except BaseException:
            await asyncio.to_thread(rooms.cgroups.thaw, box.record.id)
            raise
        health.unwatch(box)


async def unpause(rooms: Rooms, box: Box) -> None:
    """Thaw every process. Raises Conflict."""
    async with box.lock:
        following = box.ask(Happening.ASK_UNPAUSE)
        await asyncio.to_thread(rooms.cgroups.thaw, box.record.id)
        box.record.state, box.record.paused_for_commit = following, False
        health.watch(rooms, box)
        with rooms.catalogue.transaction():
            rooms.supervisor.save(box.record)
            rooms.supervisor.announce(box, "unpause")
