"""One running container by way of its shim: what is asked of it, what it says, and how its start is followed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ketch_wire.faults import Conflict, EngineFailure
from ketch_wire.shim import ExecPlan
from ketchd.containers.shimchannel import Channel, LaunchFailed, plain_failure
from ketchd.kernel.process import start_time
from ketchd.shim.exits import ooms_of, read_exit_file

if TYPE_CHECKING:
    from ketchd.containers.shims import Shims

FAILURE_SECONDS = 0.5
ANSWER_SECONDS = 10.0
HELLO_SECONDS = (
    60.0  # a host that swaps may need long to wake a shim, and its container must not be given up for that
)


class ClientStream:
    """A client's raw socket on its way to a shim. The fd is ours until it was handed over or closed.

    multiplexed: output as stdcopy frames. detach_keys: b"" for none. initial: input that came with the request.
    """

    def __init__(
        self,
        fd: int,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        multiplexed: bool,
        detach_keys: bytes,
        initial: bytes,
    ) -> None:
        self.fd = fd
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.multiplexed = multiplexed
        self.detach_keys = detach_keys
        self.initial = initial

    def to_wire(self) -> dict[str, Any]:
        """A STREAM map of ketch_wire.shim."""
        return {
            "stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr, "multiplexed": self.multiplexed,
            "detach_keys": self.detach_keys, "initial": self.initial,
        }  # fmt: skip

    def take(self) -> int:
        """The fd, which is the caller's from now on."""
        fd, self.fd = self.fd, -1
        return fd

    def has_hung_up(self) -> bool:
        """Whether nobody is there any more, and if so, it is closed. One that has only ended its input still listens."""
        watch = select.poll()
        if self.fd >= 0:
            watch.register(self.fd, 0)
            if any(events & (select.POLLHUP | select.POLLERR) for _, events in watch.poll(0)):
                self.close()
        return self.fd < 0

    def close(self) -> None:
        """Hang up, if it was not handed over. May be called twice."""
        if self.fd >= 0:
            os.close(self.take())


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a run ended. code: 128 and the signal's number for a signal. ooms: how often memory ran out in it.

    execs: the codes of those that had ended before and that no ketchd was told of, by id.
    """

    code: int
    ooms: int
    finished_ns: int
    execs: Mapping[str, int] = field(default_factory=dict)


def read_exit(state_dir: Path) -> ExitRecord | None:
    """The record that a shim left in its run's directory; None when there is none, or half of one."""
    found = read_exit_file(str(state_dir))
    return None if found is None else ExitRecord(*found)


class ShimLink:
    """A running container, by way of its shim. `pid` and `start_time` (clock ticks since boot) name its first process.

    ooms: how often its shim heard that memory ran out.
    """

    def __init__(self, container_id: str, shims: Shims) -> None:
        self.container_id = container_id
        self.pid = 0
        self.start_time = 0
        self.ooms = 0
        self._shims = shims
        self._channel: Channel | None = None
        self._state_dir = ""
        self._pidfd = -1
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitRecord | None] = self._loop.create_future()
        self._child: asyncio.Future[int] = self._loop.create_future()
        self._outcome: asyncio.Future[LaunchFailed | None] = self._loop.create_future()
        self._hello: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._reviving: asyncio.Task[None] | None = None

    def connect(self, connection: socket.socket, state_dir: str) -> None:
        """Speak over `connection` from now on."""
        self._state_dir = state_dir
        self._gone.clear()
        self._channel = Channel(connection, self._happened, self._lost)

    async def wait(self) -> ExitRecord | None:
        """Wait for the end of the run; None when the shim died and nobody saw it. Any number may wait; cancelling is free."""
        return await asyncio.shield(self._ended)

    @property
    def has_ended(self) -> bool:
        """Whether the end of the run was told, or is known to be known to nobody."""
        return self._ended.done()

    async def signal(self, number: int) -> None:
        """Send a signal to the first process. A container that has just ended is no error."""
        if not self._ended.done():
            with contextlib.suppress(
                Conflict
            ):  # the shim is gone, or going: what it has to say of the end is under way
                await self._ask({"op": "signal", "number": int(number)})

    async def attach(self, stream: ClientStream) -> None:
        """Hand a client's socket over. Raises Conflict when the container has ended."""
        await self._ask({"op": "attach", "stream": stream.to_wire()}, [stream.take()])

    async def hold_ports(self, fds: list[int]) -> None:
        """Have the shim hold these sockets, which are its own from now on, in place of those before.

        Raises Conflict when the container has ended; EngineFailure when its shim is too old for that.
        """
        await self._ask({"op": "ports"}, fds)

    async def resize(self, height: int, width: int) -> None:
        """The terminal's size in characters."""
        await self._ask({"op": "resize", "height": height, "width": width})

    async def exec_start(self, exec_id: str, plan: ExecPlan, stream: ClientStream | None) -> int:
        """Start one more process; returns its pid once the program was executed. Raises LaunchFailed, Conflict."""
        channel = self._open_channel()
        message = {
            "op": "exec", "exec": {**plan.to_wire(), "id": exec_id},
            "stream": None if stream is None else stream.to_wire(),
        }  # fmt: skip
        answer = await channel.ask(message, [] if stream is None else [stream.take()])
        if "failed" in answer:
            raise LaunchFailed.from_wire(answer["failed"], exec=True)
        return int(answer["pid"])

    async def exec_resize(self, exec_id: str, height: int, width: int) -> None:
        """The size of an exec's terminal. Raises Conflict when it has ended."""
        await self._ask({"op": "exec_resize", "id": exec_id, "height": height, "width": width})

    async def exec_signal(self, exec_id: str, number: int) -> None:
        """Send a signal to an exec's process. Raises Conflict when it has ended."""
        await self._ask({"op": "exec_signal", "id": exec_id, "number": int(number)})

    def close(self) -> None:
        """Let go of the shim, which goes on. May be called twice."""
        if self._channel is not None:
            self._channel.close()
        if self._reviving is not None:
            self._reviving.cancel()
        self._close_pidfd()

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _open_channel(self) -> Channel:
        if self._channel is None:
            raise EngineFailure(f"container {self.container_id} has no shim")
        return self._channel

    async def _ask(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        answer = await self._open_channel().ask(message, fds)
        if "failed" in answer:
            raise plain_failure(answer)

    # what the shim says

    def _happened(self, message: dict[str, Any]) -> None:
        event = message["event"]
        if event == "child" and not self._child.done():
            self._child.set_result(message["pid"])
        elif event == "started":
            self._runs(message["pid"], message["start_time"])
            if not self._outcome.done():
                self._outcome.set_result(None)
        elif event == "failed":
            failure = LaunchFailed.from_wire(message["failed"])
            if not self._outcome.done():
                self._outcome.set_result(failure)
        elif event == "hello" and not self._hello.done():
            self._hello.set_result(message)
        elif event == "oom":
            self.ran_out_of_memory(message["ooms"])
        elif event == "exit":
            self._has_ended(ExitRecord(message["code"], ooms_of(message), message["finished_ns"]))
        elif event == "exec_exit":
            self.exec_ended(message["id"], message["code"])
        elif event == "detached":
            self._shims.detached(self.container_id, message["exec"])
        elif event == "warning":
            self._shims.log.warning("container", container=self.container_id, warning=message["message"])

    def exec_ended(self, exec_id: str, code: int) -> None:
        """The shim keeps the code until it hears that the end is recorded, and for as long, but not for ever, the client's stream open."""
        try:
            self._shims.exec_ended(self.container_id, exec_id, code)
        except EngineFailure as fault:  # the next ketchd records it
            self._shims.log.error(
                "end of exec not recorded", container=self.container_id, exec=exec_id, reason=fault.message
            )
        else:
            self._open_channel().send({"op": "exec_seen", "id": exec_id})

    def ran_out_of_memory(self, ooms: int) -> None:
        """So often in all, this run."""
        self.ooms = ooms
        self._shims.ran_out_of_memory(self.container_id)

    def _runs(self, pid: int, start_time: int) -> None:
        self.pid, self.start_time = pid, start_time

    def _has_ended(self, record: ExitRecord | None) -> None:
        if not self._ended.done():
            self._ended.set_result(record)
        self._close_pidfd()
        self._shims.forget(self)

    def _lost(self) -> None:
        """The connection ended: the shim has, or it was cut. Before an end was told, look for the shim once more."""
        self._gone.set()
        for waiting in (self._child, self._outcome):
            if not waiting.done():
                waiting.cancel()
        if not self._ended.done() and self.pid and (self._reviving is None or self._reviving.done()):
            self._reviving = self._loop.create_task(self._find_again())

    async def _find_again(self) -> None:
        with contextlib.suppress(OSError):
            again = await self._shims.connect(self.container_id, self)
            if again and not self._gone.is_set():
                return
        await self._see_process_end()
        record = read_exit(Path(self._state_dir)) if self._state_dir else None
        self._shims.log.warning("shim died", container=self.container_id, exit_known=record is not None)
        self._has_ended(record)

    async def _see_process_end(self) -> None:
        """The first process dies with its shim (PDEATHSIG); wait until it has, helping if need be, and end the others."""
        pidfd = self.open_pidfd()
        ended: asyncio.Future[None] = self._loop.create_future()
        if pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
        await self._shims.end_processes(self.container_id)
        if pidfd < 0:
            return
        try:
            await asyncio.wait_for(ended, ANSWER_SECONDS)
        except TimeoutError:
            self._shims.log.error("process does not end", container=self.container_id, pid=self.pid)

    def open_pidfd(self) -> int:
        """A pidfd of the first process, -1 when it has ended; checked against its start time."""
        if self._pidfd < 0 and self.pid:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
                if start_time(self.pid) != self.start_time:
                    self._close_pidfd()
        return self._pidfd

    # the start

    async def launched(self, on_pid: Callable[[int], Awaitable[None]]) -> None:
        """Follow the start to its end. Raises LaunchFailed, and what on_pid raises."""
        channel = self._open_channel()
        either: set[asyncio.Future[Any]] = {self._child, self._outcome}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._child.done() and not self._child.cancelled() and not self._outcome.done():
            try:
                await on_pid(self._child.result())
            except OSError as error:
                # The child may just have failed for a reason of its own, which tells more than its missing namespace.
                await asyncio.wait([self._outcome], timeout=FAILURE_SECONDS)
                if (
                    self._outcome.done()
                    and not self._outcome.cancelled()
                    and self._outcome.result() is not None
                ):
                    await self.gone()
                    raise self._outcome.result() from error  # type: ignore[misc]
                raise
            channel.send({"op": "go"})
        await asyncio.wait([self._outcome])
        if self._outcome.cancelled():
            raise LaunchFailed("the container's shim died during the start")
        failure = self._outcome.result()
        if failure is not None:
            await self.gone()
            raise failure

    async def abort(self) -> None:
        """Nothing of the attempt may stay: returns when the shim is gone."""
        if self._channel is not None:
            self._channel.send({"op": "abort"})
            await self.gone()

    async def gone(self) -> None:
        """Until the shim has closed the connection, by ending."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), ANSWER_SECONDS)
        self.close()

    async def greeted(self) -> dict[str, Any]:
        """The shim's hello. Raises TimeoutError; ConnectionResetError when it ended before."""
        lost = self._loop.create_task(self._gone.wait())
        either: set[asyncio.Future[Any]] = {self._hello, lost}
        try:
            await asyncio.wait(either, timeout=HELLO_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
        if self._hello.done():
            return self._hello.result()
        if self._gone.is_set():
            raise ConnectionResetError(f"the shim of container {self.container_id} has ended")
        raise TimeoutError

    def forget_hello(self) -> None:
        """Expect another."""
        self._hello = self._loop.create_future()
