"""A network namespace of a test's own, and guests in it: nothing a scenario does can reach the host's network.

`in_own_network("kernel.network_scenarios:hairpin")` runs that coroutine function in a helper process that has left the host's
network namespace; the namespace and every link, rule and guest in it go with the process. A Guest is a process with a network
namespace of its own, as a container's is; it is told what to do by lines of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x20000
_PR_SET_PDEATHSIG = 1
_TESTS = Path(__file__).parent.parent


def in_own_network(scenario: str, *arguments: str, timeout: float = 90) -> str:
    """Run `module:coroutine_function` away from the host's network; what it printed. Raises AssertionError with its traceback."""
    command = [sys.executable, "-X", "dev", "-m", "ketch_testing.netns", scenario, *arguments]
    if "PYTHONDEVMODE" not in os.environ:
        command[1:3] = []
    process = subprocess.Popen(
        command, cwd=_TESTS, env={**os.environ, "PYTHONPATH": str(_TESTS)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    assert process.returncode == 0, f"{scenario}:\n{output[-6000:]}"
    return output


def _leave(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.stat("/proc/self/ns/net").st_ino
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    assert os.stat("/proc/self/ns/net").st_ino != before
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _loopback_up() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Guest:
    """A process in a network namespace of its own. `await close()`, or let it go with the scenario."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    @classmethod
    async def start(cls) -> Guest:
        """A guest without any link but a sleeping loopback."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ketch_testing.netns", "--guest", cwd=_TESTS,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        guest = cls(process)
        assert await guest.ask("ready") == "ready"
        assert os.stat(f"/proc/{process.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
        return guest

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, what: str, **arguments: Any) -> Any:
        """Have it do something (a `_do_` function below) and return what came of it; an OSError's text begins with `error`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        async with self._lock:
            self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            await self._process.stdin.drain()
            line = await asyncio.wait_for(self._process.stdout.readline(), 30)
            return json.loads(line)["result"]

    async def configure(self, messages: list[bytes]) -> None:
        """Send rtnetlink messages in its namespace, as a container's first process does."""
        assert await self.ask("configure", messages=[one.hex() for one in messages]) == []

    async def close(self) -> None:
        """End it and wait; its namespace goes a moment later."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def get(host: str, port: int, timeout: float = 3) -> str:
    """What a `serve` guest says: `name client-address`; `error …` otherwise."""
    try:
        with socket.create_connection((host, port), timeout) as connection:
            received = b""
            while chunk := connection.recv(1000):
                received += chunk
            return received.decode()
    except OSError as error:
        return f"error {error}"


_kept: dict[tuple[str, int], socket.socket] = {}


def _do_ready() -> str:
    return "ready"


def _do_configure(messages: list[str]) -> list[str]:
    failures = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as channel:
        for number, text in enumerate(messages):
            channel.send(bytes.fromhex(text))
            answer = channel.recv(65536)
            error = int.from_bytes(answer[16:20], sys.byteorder, signed=True)
            if error:
                failures.append(f"message {number}: {os.strerror(-error)}")
    return failures


def _do_serve(port: int, name: str, host: str = "0.0.0.0") -> str:
    server = socket.create_server((host, port), reuse_port=False)

    def loop() -> None:
        while True:
            connection, peer = server.accept()
            with connection:
                connection.sendall(f"{name} {peer[0]}".encode())

    threading.Thread(target=loop, daemon=True).start()
    return "serving"


def _do_serve_udp(port: int, name: str) -> str:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", port))

    def loop() -> None:
        while True:
            _, peer = server.recvfrom(1000)
            server.sendto(f"{name} {peer[0]}".encode(), peer)

    threading.Thread(target=loop, daemon=True).start()
    return "serving"


def _do_get(host: str, port: int, timeout: float = 3) -> str:
    return get(host, port, timeout)


def ask_udp(host: str, port: int, payload: bytes = b"?", timeout: float = 3) -> bytes:
    """One datagram there, one back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.sendto(payload, (host, port))
        return client.recvfrom(65536)[0]


def _do_ask_udp(host: str, port: int, payload: str = "3f", timeout: float = 3) -> str:
    try:
        return ask_udp(host, port, bytes.fromhex(payload), timeout).hex()
    except OSError as error:
        return f"error {error}"


def _do_ask_on(host: str, port: int, payload: str, timeout: float = 3) -> str:
    """As `ask_udp`, always from the same port."""
    client = _kept.get((host, port)) or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _kept[host, port] = client
    client.settimeout(timeout)
    try:
        client.sendto(bytes.fromhex(payload), (host, port))
        return client.recvfrom(65536)[0].hex()
    except OSError as error:
        return f"error {error}"


def _do_ask_tcp_dns(host: str, port: int, payload: str) -> str:
    wire = bytes.fromhex(payload)
    with socket.create_connection((host, port), 3) as connection, connection.makefile("rb") as stream:
        connection.sendall(len(wire).to_bytes(2, "big") + wire)
        return stream.read(int.from_bytes(stream.read(2), "big")).hex()


def _do_run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


def _guest() -> None:
    _leave(CLONE_NEWNET)
    for line in sys.stdin:
        asked = json.loads(line)
        result = globals()[f"_do_{asked.pop('do')}"](**asked)
        print(json.dumps({"result": result}), flush=True)


def main() -> None:
    """The helper process."""
    if sys.argv[1] == "--guest":
        _guest()
        return
    _leave(CLONE_NEWNET)
    _loopback_up()
    module, _, function = sys.argv[1].partition(":")
    asyncio.run(getattr(importlib.import_module(module), function)(*sys.argv[2:]))


if __name__ == "__main__":
    main()
