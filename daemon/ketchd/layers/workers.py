"""WorkerPool: layer workers as ketchd sees them. Forked by a nursery when needed, kept a while, never forked from this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ketch_wire
import ketchd
from ketch_wire import faults
from ketch_wire.frames import FrameReader, pack

IDLE_SECONDS = 10.0
_END_SECONDS = 5.0
# Without `site`, which costs 3 MiB and 20 ms for finding what this process can say.
_PROGRAM = (
    "import sys; sys.path[:0] = sys.argv[2].split(chr(58)); "
    "from ketchd.layers.worker import main; sys.exit(main(int(sys.argv[1])))"
)


class _Worker:
    def __init__(self, pidfd: int, channel: socket.socket) -> None:
        self.pidfd = pidfd
        self.channel = channel
        self.reader = FrameReader()
        self.frames: list[dict[str, Any]] = []
        self.idle_timer: asyncio.TimerHandle | None = None
        self.limit: asyncio.Semaphore | None = None  # the one that its job counts in
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._note_end)

    def _note_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.ended.set()

    def lives(self) -> bool:
        """Looked up now: the event loop may not have been told yet."""
        if self.ended.is_set():
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    async def receive(self) -> dict[str, Any]:
        while not self.frames:
            try:
                received = await asyncio.get_running_loop().sock_recv(self.channel, 1 << 20)
            except ConnectionResetError:
                received = b""
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
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


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
        """The job's result. Raises its fault. Cancelled: the worker is killed and waited for, nothing of the job goes on."""
        try:
            while self._outcome is None:
                await self.receive()
        except BaseException:
            await self.cancel()
            raise
        self._pool.give_back(self._worker, usable=True)
        if "fault" in self._outcome:
            raise getattr(faults, self._outcome["fault"], faults.EngineFailure)(self._outcome["message"])
        result: dict[str, Any] = self._outcome["result"]
        return result

    async def cancel(self) -> None:
        """End the job, whatever it does: the worker is killed and waited for."""
        self._pool.give_back(self._worker, usable=False)
        await self._worker.ended.wait()


class WorkerPool:
    """At most `size` workers, and as many again for jobs that feed a client; a job beyond that waits. `close` ends them all.

    The nursery (see `worker`) has everything imported and forks a worker in a millisecond; a fresh interpreter takes fifty,
    and a pull wants several at once. It is started by `start`, in the background of the daemon's own start, or by the first
    job. Many jobs only wait for another program, so `size` is no limit on processor time: that is the journeys' to set.
    A job that writes to a client lasts as long as the client likes. Such ones wait for each other only: however many clients
    do not read, pulls and builds have their workers.
    """

    def __init__(self, size: int = 64, log: Any = None) -> None:
        self._limit = asyncio.Semaphore(size)
        self._client_limit = asyncio.Semaphore(size)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._log = log
        self._nursery: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._forking = asyncio.Lock()

    async def start(self) -> None:
        """Start the nursery; its imports go on while this returns."""
        async with self._forking:
            if self._control is None:
                await self._start_nursery()

    async def close(self) -> None:
        """End every worker, and the nursery."""
        workers = list(self._all)
        self._all.clear()
        self._idle.clear()
        for worker in workers:
            worker.end()
        for worker in workers:
            await worker.ended.wait()
        await self._end_nursery()

    async def begin(
        self, job: str, arguments: dict[str, Any], fds: Sequence[int] = (), *, feeds_client: bool = False
    ) -> JobHandle:
        """Start `job` ("module:function") on a free worker; it gets duplicates of `fds`. Raises EngineFailure.

        feeds_client: it goes on as long as somebody outside reads.
        """
        limit = self._client_limit if feeds_client else self._limit
        await limit.acquire()
        worker: _Worker | None = None
        try:
            worker = self._take() or await self._fork()
            worker.limit = limit
            await worker.send({"job": job, "args": arguments, "fds": len(fds)}, fds)
        except BaseException:
            if worker is not None and worker.limit is not None:
                self.give_back(worker, usable=False)
            else:
                limit.release()
            raise
        return JobHandle(self, worker)

    async def run(self, job: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Start `job` and wait for its result. Raises its fault."""
        handle = await self.begin(job, arguments, fds)
        return await handle.result()

    def give_back(self, worker: _Worker, *, usable: bool) -> None:
        """The job is over. Called by JobHandle, once."""
        assert worker.limit is not None
        worker.limit.release()
        worker.limit = None
        if not usable or worker.ended.is_set() or worker not in self._all:
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
            if worker.lives():
                return worker
            self._all.discard(worker)
            worker.end()
        return None

    def _retire(self, worker: _Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
            self._all.discard(worker)
            worker.end()

    async def _fork(self) -> _Worker:
        """A new worker. A nursery that died is replaced, once."""
        async with self._forking:
            for last_try in (False, True):
                if self._control is None:
                    await self._start_nursery()
                ours, theirs = socket.socketpair()
                try:
                    ours.setblocking(False)
                    pidfd = await self._ask(theirs)
                except OSError as error:
                    ours.close()
                    await self._end_nursery()
                    if last_try:
                        raise faults.EngineFailure(f"cannot start a layer worker: {error}") from error
                    continue
                except BaseException:
                    # The answer is still to come and would be taken for the next one's.
                    ours.close()
                    await self._end_nursery()
                    raise
                finally:
                    theirs.close()
                worker = _Worker(pidfd, ours)
                self._all.add(worker)
                return worker
        raise AssertionError

    async def _ask(self, channel: socket.socket) -> int:
        """Have a worker forked that serves `channel`; its pidfd."""
        control = self._control
        assert control is not None
        socket.send_fds(control, [b"f"], [channel.fileno()])
        loop = asyncio.get_running_loop()
        answered = loop.create_future()

        def receive() -> None:
            loop.remove_reader(control)
            try:
                _, fds, _, _ = socket.recv_fds(control, 1, 1, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                fds, failure = [], error
            else:
                failure = ConnectionError("the nursery could not fork")
            if answered.done():
                for fd in fds:
                    os.close(fd)
            elif fds:
                answered.set_result(fds[0])
            else:
                answered.set_exception(failure)

        loop.add_reader(control, receive)
        try:
            pidfd: int = await answered
        finally:
            if self._control is control:
                loop.remove_reader(control)
        return pidfd

    async def _start_nursery(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            self._nursery = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", _PROGRAM, str(theirs.fileno()), os.pathsep.join(_import_path()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours

    async def _end_nursery(self) -> None:
        nursery, control = self._nursery, self._control
        self._nursery = self._control = None
        if control is not None:
            control.close()
        if nursery is not None:
            # It ends with its control socket. Killed while it ends, it would be waited for twice, and asyncio complains.
            try:
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(nursery.wait())), _END_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    nursery.kill()
                await nursery.wait()


def _import_path() -> list[str]:
    """Where a worker finds what its jobs import."""
    roots = [str(Path(package.__path__[0]).parent) for package in (ketchd, ketch_wire)]
    return list(dict.fromkeys([*roots, *(path for path in sys.path if path)]))
