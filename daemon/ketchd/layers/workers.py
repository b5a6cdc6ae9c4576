"""WorkerPool: layer workers as ketchd sees them. Started when needed, kept a while, never forked from this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from ketch_wire import faults
from ketch_wire.frames import FrameReader, pack

IDLE_SECONDS = 20.0


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self.process = process
        self.channel = channel
        self.reader = FrameReader()
        self.frames: list[dict[str, Any]] = []
        self.idle_timer: asyncio.TimerHandle | None = None

    async def receive(self) -> dict[str, Any]:
        while not self.frames:
            received = await asyncio.get_running_loop().sock_recv(self.channel, 1 << 20)
            if not received:
                raise faults.EngineFailure("a layer worker died")
            self.frames += self.reader.feed(received)
        return self.frames.pop(0)

    async def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        data = pack(message)
        try:
            if fds:  # nothing waits in the channel before a job, so its first bytes are taken at once
                data = data[socket.send_fds(self.channel, [data], list(fds)) :]
            await asyncio.get_running_loop().sock_sendall(self.channel, data)
        except OSError as error:
            raise faults.EngineFailure("a layer worker died") from error

    def end(self) -> None:
        if self.idle_timer is not None:
            self.idle_timer.cancel()
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class JobHandle:
    """One job under way. `await result()` or `await cancel()` exactly once."""

    def __init__(self, pool: WorkerPool, worker: _Worker) -> None:
        self._pool = pool
        self._worker = worker
        self._outcome: dict[str, Any] | None = None

    async def send(self, message: dict[str, Any]) -> None:
        """Tell the job something."""
        await self._worker.send(message)

    async def receive(self) -> dict[str, Any]:
        """What the job says next; its outcome too, which `result` will find again."""
        message = await self._worker.receive()
        if "result" in message or "fault" in message:
            self._outcome = message
        return message

    async def result(self) -> dict[str, Any]:
        """The job's result. Raises its fault. Cancelled: the worker is ended, nothing of the job goes on."""
        done = False
        try:
            while self._outcome is None:
                await self.receive()
            done = True
        finally:
            self._pool.give_back(self._worker, usable=done)
        if "fault" in self._outcome:
            raise getattr(faults, self._outcome["fault"], faults.EngineFailure)(self._outcome["message"])
        result: dict[str, Any] = self._outcome["result"]
        return result

    async def cancel(self) -> None:
        """End the job, whatever it does: the worker is killed and waited for."""
        self._pool.give_back(self._worker, usable=False)
        await self._worker.process.wait()


class WorkerPool:
    """At most `size` workers; a job beyond that waits. `close` ends them all."""

    def __init__(self, size: int = 0, log: Any = None) -> None:
        self._limit = asyncio.Semaphore(size or max(4, (os.cpu_count() or 1) + 2))
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._log = log

    async def start(self) -> None:
        """Nothing to do before the first job."""

    async def close(self) -> None:
        """End every worker."""
        workers = list(self._all)
        for worker in workers:
            worker.end()
        for worker in workers:
            await worker.process.wait()
        self._all.clear()
        self._idle.clear()

    async def begin(self, job: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> JobHandle:
        """Start `job` ("module:function") on a free worker; it gets duplicates of `fds`. Raises EngineFailure."""
        await self._limit.acquire()
        worker: _Worker | None = None
        try:
            worker = self._take() or await self._spawn()
            await worker.send({"job": job, "args": arguments, "fds": len(fds)}, fds)
        except BaseException:
            if worker is not None:
                self.give_back(worker, usable=False)
            else:
                self._limit.release()
            raise
        return JobHandle(self, worker)

    async def run(self, job: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Start `job` and wait for its result. Raises its fault."""
        handle = await self.begin(job, arguments, fds)
        return await handle.result()

    def give_back(self, worker: _Worker, *, usable: bool) -> None:
        """The job is over. Called by JobHandle, once."""
        self._limit.release()
        if not usable or worker.process.returncode is not None:
            self._all.discard(worker)
            worker.end()
            return
        self._idle.append(worker)
        worker.idle_timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._retire, worker)

    def _take(self) -> _Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.idle_timer is not None:
                worker.idle_timer.cancel()
            if worker.process.returncode is None:
                return worker
            self._all.discard(worker)
            worker.end()
        return None

    def _retire(self, worker: _Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
            self._all.discard(worker)
            worker.end()

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ketchd.layers.worker", str(theirs.fileno()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = _Worker(process, ours)
        self._all.add(worker)
        return worker
