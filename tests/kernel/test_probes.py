"""Probes of health without a process, against real sockets: those that are answered late, and those of a process that is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ketchd.containers.health import HealthPlan
from ketchd.containers.probes import Prober
from ketchd.kernel.process import start_time


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        yield listening


def prober(kind: str, port: int, *, started: int | None = None) -> Prober:
    plan = HealthPlan(kind, host="127.0.0.1", port=port, path="/well")
    return Prober(plan, os.getpid(), start_time(os.getpid()) if started is None else started)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_connection_that_the_kernel_does_not_answer_at_once_is_waited_for(
    listener: socket.socket,
) -> None:
    """The queue of the listening socket is full: the connection is made when the kernel asks again, after a second."""
    probing = prober("tcp", listener.getsockname()[1])
    with ExitStack() as opened:
        opened.callback(probing.close)
        waiting = opened.enter_context(socket.create_connection(listener.getsockname()))
        under_way = asyncio.create_task(probing.probe())
        await asyncio.sleep(0.1)
        assert not under_way.done(), "the queue was not full"
        accepted, peer = listener.accept()
        opened.enter_context(accepted)
        assert peer == waiting.getsockname()
        async with asyncio.timeout(20):
            assert await under_way == (0, "connected")


async def test_an_answer_in_pieces_is_one(listener: socket.socket) -> None:
    probing = prober("http", listener.getsockname()[1])
    under_way = asyncio.create_task(probing.probe())
    try:
        connection, _ = await asyncio.to_thread(listener.accept)
        with connection:
            assert (await asyncio.to_thread(connection.recv, 4096)).startswith(b"GET /well HTTP/1.1\r\n")
            for piece in (b"HTTP/1.", b"1 204 No Con"):
                connection.sendall(piece)
                await asyncio.sleep(0.05)
                assert not under_way.done()
            connection.sendall(b"tent\r\n")
            assert await under_way == (0, "HTTP/1.1 204 No Content")
    finally:
        probing.close()


async def test_what_is_refused_is_told_with_its_address(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    probing = prober("tcp", port)
    try:
        assert await probing.probe() == (1, f"127.0.0.1:{port}: connection refused")
    finally:
        probing.close()


async def test_another_process_with_the_number_is_not_probed_and_nothing_stays_open(
    listener: socket.socket,
) -> None:
    before = descriptors()
    probing = prober("tcp", listener.getsockname()[1], started=1)
    with pytest.raises(ProcessLookupError):
        await probing.probe()
    probing.close()
    assert descriptors() == before


async def test_a_probe_that_is_given_up_closes_its_connection_and_a_closed_prober_lets_go_of_the_namespace(
    listener: socket.socket,
) -> None:
    before = descriptors()
    probing = prober("http", listener.getsockname()[1])
    under_way = asyncio.create_task(probing.probe())
    connection, _ = await asyncio.to_thread(listener.accept)
    with connection:
        under_way.cancel()
        await asyncio.wait([under_way])
        while await asyncio.to_thread(connection.recv, 4096):  # the request; then its end
            pass
    probing.close()
    probing.close()
    assert descriptors() == before


def test_who_cannot_leave_a_containers_namespace_ends() -> None:
    """Not to serve ketchd's sockets from within it."""
    program = (
        "import os, resource, socket\n"
        "from ketchd.kernel import netsocket\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "answers = [None, OSError(12, 'Cannot allocate memory')]\n"
        "def setns(fd, flags):\n"
        "    answer = answers.pop(0)\n"
        "    if answer: raise answer\n"
        "netsocket.setns = setns\n"
        "netsocket.socket_inside(os.open('/proc/self/ns/net', os.O_RDONLY), socket.AF_INET)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr == "ketchd: cannot leave a container's network namespace: Cannot allocate memory\n"
