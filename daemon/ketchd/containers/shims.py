"""Shims as ketchd sees them: starting one, and finding one again. What is asked of a running one: `shimlink`.

A shim is the container's parent (`ketchd.shim`). It goes on without us; `adopt` finds it after a restart of ketchd.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure
from ketch_wire.frames import pack
from ketch_wire.launch import LaunchPlan
from ketch_wire.shim import PROTOCOL_VERSION, SOCKET_NAME
from ketchd.containers.shimchannel import LaunchFailed
from ketchd.containers.shimlink import ClientStream, ExitRecord, ShimLink, read_exit
from ketchd.shim.exits import ooms_of
from ketchd.shim.launcher import Launcher

__all__ = ["ClientStream", "ExitRecord", "LaunchFailed", "ShimLink", "Shims", "read_exit"]

_OUR_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)  # says nothing of the shim
OnExecExit = Callable[[str, str, int], None]
OnExecs = Callable[[str, dict[str, int], bool], None]
OnPid = Callable[[int, int], Awaitable[None]]


class Shims:
    """Every shim of this ketchd. run_root: holds the containers' run directories. log: structlog's interface.

    on_exec_exit(container, exec, code) is called before the exec's stream closes; on_detach(container, exec or "");
    on_oom(container) when the link's `ooms` may have grown;
    kill(container), in a thread, ends what a shim that died has left of its container.
    on_execs(container, {exec: pid}, complete) when a shim was found again and has told the ends of its execs (all, if complete).
    """

    def __init__(
        self,
        launcher: Launcher,
        run_root: Path,
        log: Any,
        on_exec_exit: OnExecExit,
        on_detach: Callable[[str, str], None] | None = None,
        on_execs: OnExecs | None = None,
        on_oom: Callable[[str], None] | None = None,
        kill: Callable[[str], None] | None = None,
    ) -> None:
        self._launcher = launcher
        self._run_root = run_root
        self._on_exec_exit = on_exec_exit
        self._on_detach = on_detach
        self._on_execs = on_execs
        self._on_oom = on_oom
        self._kill = kill
        self._links: set[ShimLink] = set()
        self.log = log

    def exec_ended(self, container_id: str, exec_id: str, code: int) -> None:
        """An exec's end, on its way up."""
        self._on_exec_exit(container_id, exec_id, code)

    def detached(self, container_id: str, exec_id: str) -> None:
        """A client's detach keys, on their way up."""
        if self._on_detach is not None:
            self._on_detach(container_id, exec_id)

    def ran_out_of_memory(self, container_id: str) -> None:
        """A container's shim heard of it, on its way up."""
        if self._on_oom is not None:
            self._on_oom(container_id)

    async def end_processes(self, container_id: str) -> None:
        """End what is left of a container that has no shim any more: not all of it dies with its first process when it has its pid namespace
        of the host or of another container, and nothing of it while it is paused."""
        if self._kill is not None:
            await asyncio.to_thread(self._kill, container_id)

    async def start(
        self, plan: LaunchPlan, *, attachments: list[ClientStream], port_fds: list[int], on_pid: OnPid
    ) -> ShimLink:
        """Start `plan`'s container; returns when its program was executed.

        attachments get everything from the first byte; their sockets are handed over. port_fds are held open by the shim as
        long as the container runs; the caller keeps its own. on_pid(pid, network_pid) is awaited when the child exists and
        its network namespace can be configured; the child goes on when it has returned.
        Raises LaunchFailed, OSError, and what on_pid raises; then, and when cancelled, nothing of the attempt stays.
        """
        connection = self._launcher.launch()
        link = ShimLink(plan.id, self)
        try:
            link.connect(connection, plan.state_dir)
            network = plan.namespaces.get("network", "host")
            ports = _duplicates(port_fds)
            fds = [stream.take() for stream in attachments] + ports
            message = {
                "op": "start", "outline": plan.outline(), "whole": pack(plan.to_wire()), "streams": [one.to_wire() for one in attachments],
                "ports": len(port_fds),
            }  # fmt: skip
            link._open_channel().send(message, fds)
            await link.launched(
                lambda pid: on_pid(pid, int(network[4:]) if network.startswith("pid:") else pid)
            )
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(link.abort()))
            raise
        self._keep(link)
        return link

    async def adopt(self, container_id: str) -> ShimLink | None:
        """The running container's link again, after a restart of ketchd; None when no shim of it answers or it has not run yet.

        Raises EngineFailure when what answers is no shim of this container; OSError when nobody can be asked (no descriptors).
        """
        link = ShimLink(container_id, self)
        try:
            if not await self.connect(container_id, link):
                link.close()
                return None
        except OSError as error:
            link.close()
            if error.errno in _OUR_OWN:
                raise
            return None
        self._keep(link)
        return link

    async def end_stray(self, container_id: str, pid: int, start_time: int) -> None:
        """Kill the process of a container whose shim does not answer, if it runs, and see it end: nobody would see to it, and the next
        start would be a second one. A boot that left no run directory left no process either."""
        if (self._run_root / container_id).exists():
            link = ShimLink(container_id, self)
            link._runs(pid, start_time)
            await link._see_process_end()
            link.close()

    async def connect(self, container_id: str, link: ShimLink) -> bool:
        """Connect `link` to the shim's socket file; False when the shim has nothing running. Raises OSError, TimeoutError.

        One that does not answer is ended: it must not wake beside the next run, whose cgroups, log and processes it would take for its own.
        """
        connection = _connect(self._run_root / container_id)
        link.forget_hello()
        link.connect(connection, "")
        try:
            hello = await link.greeted()
        except TimeoutError:
            if connection.fileno() >= 0:
                _end_peer(connection)
            raise
        if hello["id"] != container_id:
            link.close()
            raise EngineFailure(f"the shim at {self._run_root / container_id} is {hello['id']}'s")
        if hello["version"] > PROTOCOL_VERSION:
            self.log.info("shim of a newer ketchd", container=container_id, version=hello["version"])
        link._state_dir = hello["state_dir"]
        if hello["state"] == "starting":
            await link.abort()
            return False
        link._runs(hello["pid"], hello["start_time"])
        link.ran_out_of_memory(hello.get("ooms", 0))
        for exec_id, code in hello.get("execs_ended", {}).items():
            link.exec_ended(exec_id, code)
        if self._on_execs is not None:
            self._on_execs(container_id, hello["execs"], "execs_ended" in hello)
        if hello["exit"]:
            ended = hello["exit"]
            link._has_ended(ExitRecord(ended["code"], ooms_of(ended), ended["finished_ns"]))
        return True

    def _keep(self, link: ShimLink) -> None:
        if not link.has_ended:  # in the same breath as its start was told
            self._links.add(link)

    def forget(self, link: ShimLink) -> None:
        """Its container has ended; the connection ends with the shim."""
        self._links.discard(link)

    async def close(self) -> None:
        """Let go of every shim; containers run on. May be called twice."""
        for link in list(self._links):
            link.close()
        self._links.clear()


def _end_peer(connection: socket.socket) -> None:
    """SIGKILL to the shim at the other end, which lives as long as it has not closed the connection."""
    pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text() == "ketch-shim\n":
            os.kill(pid, signal.SIGKILL)


def _duplicates(fds: list[int]) -> list[int]:
    """Copies of `fds`, or none at all. Raises OSError (too many open files)."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return made


def _connect(run_dir: Path) -> socket.socket:
    """Connect to the socket in `run_dir`; its peer must be our own uid. Raises OSError."""
    directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By way of the descriptor: sun_path holds 107 bytes.
        connection.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] != os.geteuid():
            raise PermissionError(f"{run_dir}/{SOCKET_NAME} is another user's")
        return connection
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
