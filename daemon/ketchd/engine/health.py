"""Watching a running container's health: probe, judge, tell, and act as its labels ask.

One task a container while it runs, none while it is paused. Status and streak are in the record, so a restart of ketchd goes on
where the last one stopped; the log of results is stored when one of them changes. Source: moby daemon/health.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from functools import partial

from ketch_wire.faults import Conflict, EngineFailure, Fault, InvalidInput
from ketchd.containers import health
from ketchd.containers.health import Health, HealthPlan, Output, Result
from ketchd.containers.lifecycle import State
from ketchd.containers.probes import Prober
from ketchd.containers.shims import ClientStream
from ketchd.containers.supervisor import Box, ExecRecord
from ketchd.engine import background
from ketchd.engine.execs import create_exec, start_exec
from ketchd.engine.outputs import reading_output
from ketchd.engine.rooms import Rooms

DRAIN_SECONDS = 2.0
KILL_WAIT_SECONDS, CANCELLED_WAIT_SECONDS = 10.0, 1.0


def reset(rooms: Rooms, box: Box) -> None:
    """A new run begins: `starting`, or no health at all. The caller saves the record."""
    before = Health.from_record(box.record.health)
    box.record.health = None if _plan(rooms, box) is None else health.started(before).shown()


def watch(rooms: Rooms, box: Box) -> None:
    """Watch `box` from now on, if it runs and has a health check. Called at start, unpause, and restore."""
    unwatch(box)
    plan = _plan(rooms, box)
    if plan is None or box.record.state is not State.RUNNING:
        return
    if box.record.health is None:
        box.record.health = health.started(None).shown()
    box.health_watch = background.begin(rooms, box, "health check", _watch(rooms, box, plan))


def unwatch(box: Box) -> None:
    """Stop watching; the caller saves the record. May be called twice."""
    task, box.health_watch = box.health_watch, None
    if task is not None:
        task.cancel()
        after = health.ended(Health.from_record(box.record.health))
        box.record.health = None if after is None else after.shown()


async def close(rooms: Rooms) -> None:
    """ketchd ends, containers run on: probes under way are given up, what is known is stored."""
    tasks = []
    for box in rooms.supervisor:
        task, box.health_watch = box.health_watch, None
        if task is not None:
            task.cancel()
            tasks.append(task)
            rooms.supervisor.save(box.record)
    if tasks:
        await asyncio.wait(tasks, timeout=2 * CANCELLED_WAIT_SECONDS)


def _plan(rooms: Rooms, box: Box) -> HealthPlan | None:
    try:
        return health.read_plan(box.record.config)
    except InvalidInput as fault:  # from an older record: create refuses it
        rooms.log.warning("no health check", container=box.record.id, reason=fault.message)
        return None


async def _watch(rooms: Rooms, box: Box, plan: HealthPlan) -> None:
    record = box.record
    prober = None if plan.kind == "exec" else Prober(plan, record.pid, record.start_time)
    try:
        while True:
            known = Health.from_record(record.health) or Health()
            await asyncio.sleep(health.next_wait_ns(plan, known, record.started_ns, time.time_ns()) / 1e9)
            result = await _probe(rooms, box, plan, prober)
            if record.state is not State.RUNNING:
                return  # it has just ended: that is no sign of its health
            _note(rooms, box, plan, result)
    finally:
        if prober is not None:
            prober.close()


def _note(rooms: Rooms, box: Box, plan: HealthPlan, result: Result) -> None:
    record = box.record
    before = Health.from_record(record.health) or Health()
    after = health.probed(plan, before, result, record.started_ns)
    record.health = after.shown()
    if (after.status, after.failing_streak) == (before.status, before.failing_streak):
        return  # nearly every probe: not even an empty transaction for it
    try:
        with rooms.catalogue.transaction():
            rooms.supervisor.save(record)
            if after.status != before.status:
                rooms.supervisor.announce(box, f"health_status: {after.status}")
    except EngineFailure as fault:  # it is as it is all the same
        rooms.log.error("health not recorded", container=record.id, reason=fault.message)
    if after.status == before.status:
        return
    if after.status == health.HEALTHY:
        box.announce_healthy()
    elif after.status == health.UNHEALTHY and plan.on_unhealthy != "none":
        reaction = _react(rooms, box, plan.on_unhealthy)
        box.health_reaction = background.begin(rooms, box, "reaction to bad health", reaction)


async def _react(rooms: Rooms, box: Box, wanted: str) -> None:
    """Restart or stop an unhealthy container, as its label asks. A stop by us counts as one by hand."""
    from ketchd.engine import stop as stopping  # the two journeys know each other

    rooms.log.info("unhealthy", container=box.record.id, action=wanted)
    try:
        if wanted == "restart":
            await stopping.restart(rooms, box, yields=True)
        else:
            await stopping.stop(rooms, box)
    except Fault as fault:
        rooms.log.warning("unhealthy container", container=box.record.id, action=wanted, reason=fault.message)


async def _probe(rooms: Rooms, box: Box, plan: HealthPlan, prober: Prober | None) -> Result:
    """One probe, however it goes. Cancelled: its process is killed, its connection closed."""
    start = time.time_ns()
    try:
        code, output = await (_command(rooms, box, plan) if prober is None else _connection(prober, plan))
    except (Fault, OSError) as error:
        code, output = -1, error.message if isinstance(error, Fault) else str(error)
    except Exception as error:  # a defect of ours: told, and no end of the watching
        rooms.log.error("probe failed", container=box.record.id, exc_info=error)
        code, output = -1, f"{type(error).__name__}: {error}"
    return Result(start, time.time_ns(), code, output)


async def _connection(prober: Prober, plan: HealthPlan) -> tuple[int, str]:
    try:
        async with asyncio.timeout(plan.timeout_ns / 1e9):
            return await prober.probe()
    except TimeoutError:
        return -1, health.timeout_words(plan.timeout_ns, "")


async def _command(rooms: Rooms, box: Box, plan: HealthPlan) -> tuple[int, str]:
    """Docker's probe: an exec whose output is kept."""
    record = create_exec(
        rooms, box, {"Cmd": list(plan.argv), "AttachStdout": True, "AttachStderr": True}
    )  # fmt: skip
    output = Output()
    try:
        async with reading_output(partial(_collect, output=output), multiplexed=False) as (stream, reading):
            try:
                await _start(rooms, box, record, stream)
                try:
                    await asyncio.wait_for(record.ended.wait(), plan.timeout_ns / 1e9)
                except TimeoutError:
                    await _kill(box, record, KILL_WAIT_SECONDS)
                    return -1, health.timeout_words(plan.timeout_ns, output.text())
                await asyncio.wait([reading], timeout=DRAIN_SECONDS)
                return (-1 if record.exit_code is None else record.exit_code), output.text()
            except asyncio.CancelledError:
                await _kill(box, record, CANCELLED_WAIT_SECONDS)
                raise
    finally:
        if record.ended.is_set():  # else it is known until it is
            box.execs.pop(record.id, None)
            rooms.supervisor.execs.pop(record.id, None)


async def _start(rooms: Rooms, box: Box, record: ExecRecord, stream: ClientStream) -> None:
    """Start the probe. Cancelled: first it is seen whether it started, since a process that nobody knows nobody would end."""
    starting = asyncio.ensure_future(start_exec(rooms, box, record, stream, transient=True))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting], timeout=CANCELLED_WAIT_SECONDS)
        if starting.done() and not starting.cancelled():
            starting.exception()  # what it was does not matter any more
        raise


async def _collect(stream: socket.socket, output: Output) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while received := await loop.sock_recv(stream, 65536):
            output.feed(received)


async def _kill(box: Box, record: ExecRecord, seconds: float) -> None:
    """End the probe's process and see it end, so that slow probes do not pile up."""
    link = box.link
    if link is None or record.ended.is_set() or not record.pid:
        return
    with contextlib.suppress(Fault, OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            await link.exec_signal(record.id, signal.SIGKILL)
            await record.ended.wait()


async def wait_healthy(rooms: Rooms, box: Box) -> tuple[int, str]:
    """(0, "") when the container is healthy; (its exit code or 1, the reason) when it ended or was removed before that.

    A restart by policy or by the health check's label is waited out. Raises Conflict when it has no health check. Cancelled: the waiter is taken away.
    """
    record = box.record
    if _plan(rooms, box) is None:
        raise Conflict(f"container {record.id} has no health check")
    loop = asyncio.get_running_loop()
    while True:
        if record.has_process and record.health is not None and record.health["Status"] == health.HEALTHY:
            return 0, ""
        reaction = box.health_reaction
        if record.state is State.EXITED and reaction is not None and not reaction.done():
            await asyncio.wait([reaction])  # our own restart is no end
            continue
        if record.state in (State.EXITED, State.REMOVING, State.DEAD):
            return box.exit_code() or 1, "the container ended before it became healthy"
        healthy, gone, removed = loop.create_future(), loop.create_future(), loop.create_future()
        for waiters, waiter in zip(_waiters(box), (healthy, gone, removed), strict=True):
            waiters.append(waiter)
        try:
            await asyncio.wait([healthy, gone, removed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiters, waiter in zip(_waiters(box), (healthy, gone, removed), strict=True):
                if waiter in waiters:
                    waiters.remove(waiter)
        if removed.done():
            return box.exit_code() or 1, "the container was removed before it became healthy"


def _waiters(box: Box) -> tuple[list[asyncio.Future[int]], ...]:
    """The lists as they are now: each announcement puts a new one in place."""
    return box.health_waiters, box.exit_waiters, box.remove_waiters
