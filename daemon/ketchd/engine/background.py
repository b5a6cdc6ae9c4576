"""What goes on for a container after the request that began it: a defect in it is told with the container's name, never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from ketchd.containers.supervisor import Box
from ketchd.engine.rooms import Rooms

_under_way: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks weakly


def begin(rooms: Rooms, box: Box, what: str, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `job` in a task; what it raises is logged as `what` failed.

    In a context of its own: the request that began it must not sign every later log line.
    """

    def ended(task: asyncio.Task[None]) -> None:
        _under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            rooms.log.error(f"{what} failed", container=box.record.id, exc_info=error)

    own = Context()
    task = asyncio.get_running_loop().create_task(job, context=own)
    _under_way.add(task)
    task.add_done_callback(ended, context=own)
    return task
