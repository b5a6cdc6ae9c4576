"""Health probes that need no process: HTTP and TCP, tried from inside a container's network namespace.

A probe is one socket made there; everything else happens on the event loop. So `localhost` is the container's own, and what
listens there alone is reached as well. Hundreds are made each second, so a probe of the container's own address, where the kernel
answers a connect(2) before it returns, waits once: for the answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from ketchd.containers.health import HealthPlan, StatusLine
from ketchd.kernel.netsocket import socket_inside
from ketchd.kernel.process import start_time

_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)


class Prober:
    """Tries what a plan of kind `http` or `tcp` names, from the network namespace of one process. `close` lets go of that."""

    def __init__(self, plan: HealthPlan, pid: int, started: int) -> None:
        self._process = pid, started
        self._namespace = -1
        is_v6 = ":" in plan.host
        self._family = socket.AF_INET6 if is_v6 else socket.AF_INET
        self._address = (plan.host, plan.port)
        self._shown = f"[{plan.host}]:{plan.port}" if is_v6 else f"{plan.host}:{plan.port}"
        self._request = b"" if plan.kind == "tcp" else _request(plan, self._shown)

    def close(self) -> None:
        """May be called twice. The namespace does not live on for us."""
        fd, self._namespace = self._namespace, -1
        if fd >= 0:
            os.close(fd)

    async def probe(self) -> tuple[int, str]:
        """(0 or 1, what was seen). The caller sets the time limit.

        Raises OSError (the process is gone). Cancelled: the connection is closed.
        """
        if self._namespace < 0:
            self._namespace = _namespace_of(*self._process)
        connection = socket_inside(self._namespace, self._family)
        try:
            await self._connect(connection)
            return await self._ask(connection) if self._request else (0, "connected")
        except OSError as error:
            return 1, f"{self._shown}: {os.strerror(error.errno).lower() if error.errno else error}"
        finally:
            connection.close()

    async def _connect(self, connection: socket.socket) -> None:
        code = connection.connect_ex(self._address)
        if code in _UNDER_WAY:  # within one host the answer is there by now, and the second call takes it
            code = connection.connect_ex(self._address)
        if code in _UNDER_WAY:
            await asyncio.get_running_loop().sock_connect(connection, self._address)
        elif code not in (0, errno.EISCONN):
            raise OSError(code, os.strerror(code))

    async def _ask(self, connection: socket.socket) -> tuple[int, str]:
        """Well is a status from 200 to 399, as for a kubelet; redirects are not followed."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, self._request)
        line = StatusLine()
        while line.code is None:
            await _readable(loop, connection)
            line.feed(connection.recv(4096))
        return (0 if 200 <= line.code < 400 else 1), line.text or "no HTTP answer"


def _request(plan: HealthPlan, host: str) -> bytes:
    return (
        f"GET {plan.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ketch-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    ).encode()


def _namespace_of(pid: int, started: int) -> int:
    """An fd of its network namespace. A pid that is another process's by now is refused."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if start_time(pid) != started:
            raise ProcessLookupError(3, "No such process", str(pid))
    except OSError:
        os.close(namespace)
        raise
    return namespace


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Without the try first, which loop.sock_recv makes: nobody has answered yet."""
    ready: asyncio.Future[None] = loop.create_future()
    fd = connection.fileno()  # the selector would print a socket each time it does not know it yet
    loop.add_reader(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
