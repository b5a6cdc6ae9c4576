"""What a running container uses: counters as a stream or once (stats), and its processes (top)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from typing import Any

from ketch_wire.faults import Conflict, InvalidInput
from ketchd.containers import proctable, stats
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.engine.rooms import Rooms

PERIOD_SECONDS = 1.0


def sample(rooms: Rooms, box: Box) -> stats.Sample | None:
    """One look; None when the container does not run. About twenty small files: no thread is worth it."""
    record = box.record
    if not record.has_process:
        return None
    usage = rooms.cgroups.usage(record.id)
    if usage is None:
        return None
    interfaces = None
    if record.host_config["NetworkMode"] not in ("host", "none"):
        interfaces = stats.read_interfaces(_text(f"/proc/{record.pid}/net/dev"))
    system, online = stats.read_system_cpu(_text("/proc/stat"), os.sysconf("SC_CLK_TCK"))
    return stats.Sample(
        time_ns=time.time_ns(),
        usage=usage,
        interfaces=interfaces,
        system_cpu_ns=system,
        online_cpus=online,
        memory_total=stats.read_memory_total(_text("/proc/meminfo")),
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


async def once(rooms: Rooms, box: Box, *, one_shot: bool) -> dict[str, Any]:
    """One object: at once with empty precpu_stats (one_shot), else from two samples a second apart."""
    record = box.record
    first = sample(rooms, box)
    if first is None:
        return stats.stopped(record.id, record.name)
    if one_shot:
        return stats.running(record.id, record.name, first, None)
    if await _removed_within(box, PERIOD_SECONDS) or (second := sample(rooms, box)) is None:
        return stats.stopped(record.id, record.name)
    return stats.running(record.id, record.name, second, first)


async def stream(rooms: Rooms, box: Box) -> AsyncGenerator[dict[str, Any], None]:
    """An object at once and one every second until the container is removed; zeroes while it does not run."""
    record = box.record
    before: stats.Sample | None = None
    due = time.monotonic()
    while True:
        now = sample(rooms, box)
        yield (
            stats.stopped(record.id, record.name)
            if now is None
            else stats.running(record.id, record.name, now, before)
        )
        before = now
        due = max(due + PERIOD_SECONDS, time.monotonic())
        if await _removed_within(box, due - time.monotonic()):
            return


async def _removed_within(box: Box, seconds: float) -> bool:
    """Wait, but not longer than the container lasts."""
    removed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    box.remove_waiters.append(removed)
    try:
        await asyncio.wait([removed], timeout=seconds)
        return removed.done()
    finally:
        if removed in box.remove_waiters:
            box.remove_waiters.remove(removed)


async def top(rooms: Rooms, box: Box, arguments: str) -> dict[str, Any]:
    """The processes, in the columns of ps's `arguments`; what we do not know of ps, the host's ps answers.

    Raises Conflict when it does not run, InvalidInput, EngineFailure. Source: Engine API, ContainerTop.
    """
    record = box.record
    if record.state is State.RESTARTING:
        raise Conflict(f"Container {record.id} is restarting, wait until the container is running")
    if not record.has_process:
        raise Conflict(f"container {record.id} is not running")
    arguments = arguments or "-ef"
    if "\0" in arguments:
        raise InvalidInput("invalid ps arguments: they contain a NUL byte")
    pids = rooms.cgroups.pids(record.id) or [record.pid]
    wanted = proctable.columns(arguments)
    rooms.supervisor.announce(box, "top")
    if wanted is None:
        return dict(
            await rooms.workers.run(
                "ketchd.containers.proctable:host_ps", {"arguments": arguments.split(), "pids": pids}
            )
        )
    memory = stats.read_memory_total(_text("/proc/meminfo")) // 1024
    host = proctable.Host(time.time(), memory, proctable.user_name)
    return proctable.table(await asyncio.to_thread(proctable.read, pids), wanted, host)
