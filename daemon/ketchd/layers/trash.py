"""Trash: what is deleted leaves its name at once, and is unlinked behind the answer.

Unlinking is what a deletion costs: 70 MB whose pages are in memory take 25 ms, a directory of 10,000 files a second. Nobody needs to
wait for that, unless the disk is nearly full.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any

from ketch_wire.faults import Fault
from ketchd import tracepoint
from ketchd.layers.placing import disk_fault, remove_some
from ketchd.layers.workers import WorkerPool

tracepoint.declare("trash.moved", "trash.unlinked")

# Of the disk: with less than that free, who deletes something waits until the room is there.
SHORT_SHARE = 0.05
# Entries; what has more goes in a worker, or it would keep ketchd's own threads from running.
_BY_THREAD = 256
_END_SECONDS = 1.0
# For whoever has a thrown away file mounted: a process that does not answer is not waited for.
_RELEASE_SECONDS = 10.0


class Trash:
    """`trash/NAME` below the data root: files and directories that the catalogue no longer owns.

    The record goes first, durably, then the name (`take`), in the same step of the event loop: who stores the same thing again
    finds the place free. Killed between, the file belongs to nothing and goes at the next start; so does what lies here.
    One thing is unlinked at a time, and as long as it takes nothing is done afterwards: others want the disk too.
    workers: None: everything on a thread.
    """

    def __init__(self, root: Path, workers: WorkerPool | None = None, log: Any = None) -> None:
        self._directory = root / "trash"
        self._workers = workers
        self._log = log
        self._waiting: deque[Path] = deque()
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._held: dict[int, asyncio.Event] = {}

    def start(self) -> None:
        """Go on with what the last daemon has left. Raises OSError."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._waiting.extend(sorted(self._directory.iterdir()))
        self._wake()

    def take(self, path: Path) -> bool:
        """Move what lies at `path` here, to be unlinked; says whether there was anything. One rename: it may be called on the loop.

        Raises EngineFailure; then it is where it was.
        """
        aside = self._directory / uuid.uuid4().hex
        try:
            try:
                os.rename(path, aside)
            except FileNotFoundError:
                if self._directory.is_dir():
                    return False
                self._directory.mkdir(mode=0o700, parents=True)
                os.rename(path, aside)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise disk_fault(error, f"cannot remove {path}") from error
        tracepoint.reach("trash.moved")
        self._waiting.append(aside)
        self._wake()
        return True

    def await_end(self, fd: int) -> None:
        """Somebody has mounted what was taken; the descriptor, which is ours from now on, comes to its end when nobody has any more.

        Raises OSError.
        """
        try:
            asyncio.get_running_loop().add_reader(fd, self._ended, fd)
        except OSError:
            os.close(fd)
            raise
        self._held[fd] = asyncio.Event()

    def _ended(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        self._held.pop(fd).set()
        os.close(fd)

    async def settle(self) -> None:
        """Wait for the room, if it is needed: when the disk is nearly full. It comes when a file is unlinked, and mounted nowhere."""
        with contextlib.suppress(OSError):
            facts = os.statvfs(self._directory)
            if facts.f_bavail < facts.f_blocks * SHORT_SHARE:
                await self.emptied()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RELEASE_SECONDS):
                        for ended in list(self._held.values()):
                            await ended.wait()

    async def emptied(self) -> None:
        """Wait until everything is unlinked, without the pauses. Cancelled: it goes on."""
        while self._task is not None and not self._task.done():
            self._hurry.set()
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Empty it, for a moment at most; the rest goes at the next start. May be called twice."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.emptied(), _END_SECONDS)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for fd in list(self._held):
            self._ended(fd)

    def _wake(self) -> None:
        if self._waiting and (self._task is None or self._task.done()):
            self._hurry.clear()
            self._task = asyncio.get_running_loop().create_task(self._empty())

    async def _empty(self) -> None:
        while self._waiting:
            path, begun = self._waiting.popleft(), time.monotonic()
            try:
                await self._unlink(path)
                tracepoint.reach("trash.unlinked")
            except (Fault, OSError) as error:
                if self._log is not None:
                    self._log.warning(
                        "left in the trash until the next start", path=str(path), reason=str(error)
                    )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), time.monotonic() - begun)

    async def _unlink(self, path: Path) -> None:
        limit = _BY_THREAD if self._workers is not None else None
        job = asyncio.ensure_future(asyncio.to_thread(remove_some, str(path), limit))
        try:
            gone = await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.gather(job, return_exceptions=True)
            raise
        if not gone and self._workers is not None:
            await self._workers.run("ketchd.layers.placing:remove", {"path": str(path)})
