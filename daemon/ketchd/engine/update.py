"""The update journey: limits of a container changed where it runs, then recorded; its restart policy with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ketch_wire.faults import Conflict, EngineFailure
from ketchd import tracepoint
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.containers.updates import merged
from ketchd.engine.rooms import Rooms

tracepoint.declare("update.written")


async def update(rooms: Rooms, box: Box, body: Mapping[str, Any]) -> list[str]:
    """Change limits and restart policy; returns warnings.

    Raises InvalidInput, Conflict; EngineFailure when the kernel refuses or it cannot be recorded: then the record is as it was.
    Source: Engine API, ContainerUpdate.
    """
    async with box.lock:
        record = box.record
        if record.state in (State.REMOVING, State.DEAD):
            raise Conflict(
                f'Cannot update container {record.id}: container is marked for removal and cannot be "update".'
            )
        try:
            host, live = merged(record.host_config, body, cpus=os.cpu_count() or 1)
        except Conflict as fault:
            raise Conflict(f"Cannot update container {record.id}: {fault.message}") from fault
        rooms.cgroups.check(live)
        asked = dict(live)
        warnings = rooms.cgroups.discard(live)
        for key in [key for key in live if live[key] != asked.get(key)]:
            host[key] = live[key] or record.host_config.get(key)  # what is discarded changes nothing
            if not live[key]:
                del live[key]
        if record.has_process and live:
            try:
                rooms.cgroups.update(record.id, live)
            except EngineFailure as fault:
                raise EngineFailure(f"Cannot update container {record.id}: {fault.message}") from fault
        tracepoint.reach("update.written")
        with rooms.supervisor.changing(record):
            record.host_config = host
            rooms.supervisor.announce(box, "update")
    return warnings
