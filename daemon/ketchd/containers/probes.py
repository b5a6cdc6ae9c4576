"""Health probes that need no process: HTTP and TCP, tried from inside a container's network namespace.

A probe is one socket made there by a thread that enters the namespace for a single system call; everything else happens on the
event loop. So `localhost` is the container's own, and what listens there alone is reached as well.
"""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ketchd.containers.health import HealthPlan, StatusLine
from ketchd.kernel.netsocket import Stranded, socket_inside
from ketchd.kernel.process import start_time


class Prober:
    """Makes and tries sockets in containers' namespaces. `close` ends its thread."""

    def __init__(self) -> None:
        self._thread = self._new_thread()

    @staticmethod
    def _new_thread() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="namespaces")

    def close(self) -> None:
        """No further probes. May be called twice."""
        self._thread.shutdown(wait=False)

    async def probe(self, plan: HealthPlan, pid: int, started: int) -> tuple[int, str]:
        """(0 or 1, what was seen) of the process `pid` that started at `started`. The caller sets the time limit.

        Raises OSError (the process is gone). Cancelled: the connection is closed.
        """
        connection = await self._socket(pid, started, socket.AF_INET6 if ":" in plan.host else socket.AF_INET)
        try:
            return await (_http(connection, plan) if plan.kind == "http" else _tcp(connection, plan))
        except OSError as error:
            where = f"[{plan.host}]:{plan.port}" if ":" in plan.host else f"{plan.host}:{plan.port}"
            return 1, f"{where}: {os.strerror(error.errno).lower() if error.errno else error}"
        finally:
            connection.close()

    async def _socket(self, pid: int, started: int, family: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        making: asyncio.Future[socket.socket] = loop.run_in_executor(
            self._thread, _make, pid, started, family
        )
        try:
            return await asyncio.shield(making)
        except Stranded:
            self._thread.shutdown(wait=False)  # the thread ends with its executor
            self._thread = self._new_thread()
            raise
        except asyncio.CancelledError:
            making.add_done_callback(_close_result)
            raise


def _close_result(making: asyncio.Future[socket.socket]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().close()


def _make(pid: int, started: int, family: int) -> socket.socket:
    """In the thread. A pid that is another process's by now is refused."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if start_time(pid) != started:
            raise ProcessLookupError(3, "No such process", str(pid))
        return socket_inside(namespace, family)
    finally:
        os.close(namespace)


def _address(plan: HealthPlan) -> tuple[Any, ...]:
    return (plan.host, plan.port, 0, 0) if ":" in plan.host else (plan.host, plan.port)


async def _tcp(connection: socket.socket, plan: HealthPlan) -> tuple[int, str]:
    await asyncio.get_running_loop().sock_connect(connection, _address(plan))
    return 0, "connected"


async def _http(connection: socket.socket, plan: HealthPlan) -> tuple[int, str]:
    """Well is a status from 200 to 399, as for a kubelet; redirects are not followed."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, _address(plan))
    host = f"[{plan.host}]" if ":" in plan.host else plan.host
    await loop.sock_sendall(
        connection,
        f"GET {plan.path} HTTP/1.1\r\nHost: {host}:{plan.port}\r\nUser-Agent: ketch-health\r\nAccept: */*\r\n"
        "Connection: close\r\n\r\n".encode(),
    )
    line = StatusLine()
    while line.code is None:
        line.feed(await loop.sock_recv(connection, 4096))
    return (0 if 200 <= line.code < 400 else 1), line.text or "no HTTP answer"
