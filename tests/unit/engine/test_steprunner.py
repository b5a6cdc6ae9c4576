"""A build step that does not come to run leaves nothing open."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from ketchd.engine.steprunner import StepRunner


async def test_a_step_whose_shim_cannot_be_started() -> None:
    """Neither end of its output stays, nor anybody who waits at one."""

    async def start(*_: Any, **__: Any) -> None:
        await asyncio.sleep(0)  # the reading has begun
        raise OSError("too many open files")

    rooms: Any = SimpleNamespace(shims=SimpleNamespace(start=start))
    plan: Any = None
    before = os.listdir("/proc/self/fd")

    async def output(*_: Any) -> None:
        return None

    with pytest.raises(OSError, match="too many open files"):
        await StepRunner(rooms)._carry_out(plan, None, output)

    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert os.listdir("/proc/self/fd") == before
