"""Veth pairs whose container has ended: they go with its network namespace, and a moment later by our hand where it lives on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ketchd.network import bridges

_GRACE_SECONDS = 1.0


class Leftovers:
    """Names of veths that should vanish by themselves. Deleting one costs the kernel some 15 ms under the rtnl lock; leaving it
    to the namespace's end costs nobody anything, since the kernel takes many at once."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def expect_gone(self, names: Iterable[str]) -> None:
        """Delete what is left of these in a second."""
        for name in names:
            if not self._closed:
                self._timers[name] = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._due, name)

    def _due(self, name: str) -> None:
        self._timers.pop(name, None)
        self._thread.submit(_delete_quietly, name)

    async def close(self) -> None:
        """Delete what is left of all of them now. Raises OSError."""
        self._closed = True
        names = list(self._timers)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await asyncio.get_running_loop().run_in_executor(self._thread, bridges.delete_leftover, names)


def _delete_quietly(name: str) -> None:
    with contextlib.suppress(OSError):
        bridges.delete_leftover([name])
