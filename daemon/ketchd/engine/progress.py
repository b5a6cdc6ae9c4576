"""Progress as Docker's JSON messages, told to a client that may read slowly or not at all.

What is said waits here in bounded memory: of a moving bar only the newest position is kept.
Source: Engine API, progress stream; moby's pkg/jsonmessage and docker/go-units.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Send = Callable[..., Awaitable[None]]
_EVERY_SECONDS = 0.1
_BAR = 50
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def human_size(size: float) -> str:
    """`1.064MB`: four significant digits, thousands, as Docker prints sizes."""
    unit = 0
    while size >= 1000.0 and unit < len(_UNITS) - 1:
        size /= 1000.0
        unit += 1
    return f"{size:.4g}{_UNITS[unit]}"


def bar(current: int, total: int) -> str:
    """`[====>      ]  1.2MB/3MB`, the text that old clients print."""
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{human_size(current):>8}"
    filled = min(_BAR, int(current / total * 100) // 2)
    numbers = f"{human_size(current):>8}"
    if current <= total:
        numbers += f"/{human_size(total)}"
    return f"[{'=' * filled}>{' ' * (_BAR - filled)}] {numbers}"


def message(status: str, id: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    """One line of one thing."""
    if not current and not total:
        return {"status": status, "progressDetail": {}, "id": id}
    detail: dict[str, int] = {"current": current, "total": total} if total > 0 else {"current": current}
    return {"status": status, "progressDetail": detail, "progress": bar(current, total), "id": id}


class ProgressBoard:
    """Collects messages; `pump` sends them. Never waits for the client, except in `flush`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[dict[str, Any]] = []
        self._moving: dict[tuple[str, str], tuple[int, int]] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._begun = self._is_ending = False
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    def say(self, status: str, id: str | None = None, **more: Any) -> None:
        """A line that will be sent. With an id it ends the bar of that id."""
        if id is None:
            self._waiting.append({"status": status, **more})
        else:
            self._settle(id)
            self._waiting.append(message(status, id))
        self._wake.set()

    def tell(self, whole: dict[str, Any]) -> None:
        """Any message, as it is."""
        self._waiting.append(whole)
        self._wake.set()

    def move(self, status: str, id: str, current: int, total: int) -> None:
        """A bar's newest position. Sent at most ten times a second, and at its end."""
        now, key = time.monotonic(), (id, status)
        self._moving[key] = (current, total)
        if current >= total or now - self._last.get(key, 0.0) >= _EVERY_SECONDS:
            self._last[key] = now
            self._wake.set()
            self._settle(id)

    def _settle(self, id: str) -> None:
        for key in [key for key in self._moving if key[0] == id]:
            current, total = self._moving.pop(key)
            line = message(key[1], id, current, total)
            # A bar that the client has not read yet moves on in its place.
            if self._waiting and (self._waiting[-1].get("id"), self._waiting[-1].get("status")) == key:
                self._waiting[-1] = line
            elif not self._replace(key, line):
                self._waiting.append(line)

    def _replace(self, key: tuple[str, str], line: dict[str, Any]) -> bool:
        for position in range(len(self._waiting) - 1, -1, -1):
            found = self._waiting[position]
            if found.get("id") == key[0]:
                if found.get("status") == key[1]:
                    self._waiting[position] = line
                    return True
                return False
        return False

    async def flush(self) -> None:
        """Send what waits. Raises ConnectionError when the client is gone."""
        async with self._lock:
            waiting, self._waiting = self._waiting, []
            self._wake.clear()
            if waiting:
                self._begun = True
                await self._send(*waiting)

    @contextlib.asynccontextmanager
    async def pump(self) -> AsyncIterator[None]:
        """Sends while the body works, and what is left when it ends, well or not.

        A client that is gone ends the body as a cancellation would, and its ConnectionError is raised.
        """
        owner = asyncio.current_task()
        assert owner is not None
        pumping = asyncio.create_task(self._pump())

        def ended(task: asyncio.Task[None]) -> None:
            if _failure(task) is not None:
                owner.cancel()

        async def finish() -> None:
            pumping.remove_done_callback(ended)
            self._is_ending = True
            self._wake.set()
            await pumping

        pumping.add_done_callback(ended)
        try:
            try:
                yield
            except Exception:
                if self._begun:  # before that a fault is a status of its own
                    await finish()
                raise
            await finish()
        except asyncio.CancelledError:
            gone = _failure(pumping)
            if gone is None:
                raise
            owner.uncancel()
            raise gone from None
        finally:
            pumping.cancel()
            await asyncio.wait([pumping])

    async def _pump(self) -> None:
        while not self._is_ending:
            await self._wake.wait()
            await self.flush()
        await self.flush()


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
