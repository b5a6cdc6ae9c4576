"""Several coroutines as one: the first fault ends the others, and is raised as itself instead of in a group."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def together(works: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """The results in the order of `works`. Cancelled: all of them are, and they have ended when it is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as several:
        fault = _first(several)
        raise fault  # noqa: B904  the group says nothing more
    return [task.result() for task in tasks]


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    first = several.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
