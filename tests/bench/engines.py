"""The two engines that are compared: a private ketchd and, where it is installed, a private dockerd. Same client, same machine."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ketch_testing.machine import Machine, UnixConnection, processes_naming


class Engine(Protocol):
    """One engine under measurement."""

    name: str
    base: Path
    socket: Path

    def pids(self) -> list[int]:
        """Every process of the engine itself, its containers' shims left out."""

    def docker(
        self, *words: str, stdin: bytes | None = None, cwd: Path | None = None, check: bool = True
    ) -> str:
        """One docker command against it; its output."""


class _Driven:
    """What both engines share: the docker CLI as their client."""

    name = ""
    base: Path
    socket: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.base / "client"),
            "DOCKER_BUILDKIT": "0",
        }

    def docker(
        self, *words: str, stdin: bytes | None = None, cwd: Path | None = None, check: bool = True
    ) -> str:
        """One docker command; raises AssertionError with its output when it fails."""
        done = subprocess.run(
            ["docker", *words], env=self.env, input=stdin, capture_output=True, cwd=cwd, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: docker {' '.join(words)}: exit {done.returncode}\n{done.stderr.decode()[-2000:]}"
            )
        return done.stdout.decode(errors="replace")

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        """One docker command, not waited for."""
        return subprocess.Popen(
            ["docker", *words], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )


class Ketch(_Driven):
    """A private ketchd; `layers` forces a kind of layer."""

    def __init__(self, base: Path, layers: str = "") -> None:
        self.name = f"ketchd ({layers})" if layers else "ketchd"
        flags = ("--storage-driver", layers) if layers else ()
        self.machine = Machine(base, flags=("--log-level", "warn", *flags))
        self.base, self.socket = base, self.machine.socket
        self.machine.start()

    def pids(self) -> list[int]:
        assert self.machine.process is not None
        own = self.machine.process.pid
        return [own, *(pid for pid in descendants(own) if pid != own)]

    def close(self) -> None:
        """End it; nothing stays."""
        self.machine.close()


class Dockerd(_Driven):
    """A private dockerd with a containerd of its own."""

    name = "dockerd"

    def __init__(self, base: Path) -> None:
        self.base, self.socket = base, base / "docker.sock"
        base.mkdir(parents=True)
        self._log = (base / "log").open("wb")
        self._process = subprocess.Popen(
            ["dockerd", "--data-root", str(base / "data"), "--exec-root", str(base / "exec"), "-H", f"unix://{self.socket}",
             "--pidfile", str(base / "pid"), "--config-file", str(self._config())],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"dockerd does not start:\n{(base / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        connection = UnixConnection(str(self.socket), 5)
        try:
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _config(self) -> Path:
        path = self.base / "daemon.json"
        path.write_text("{}")
        return path

    def pids(self) -> list[int]:
        return [self._process.pid, *descendants(self._process.pid)]

    def close(self) -> None:
        """Remove its containers, end it, unmount what it left."""
        with contextlib.suppress(AssertionError):
            if containers := self.docker("ps", "-aq").split():
                self.docker("rm", "-f", *containers)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        for pid in processes_naming(str(self.base)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if str(self.base) in line:
                subprocess.run(["umount", "-l", line.split()[1]], check=False)
        subprocess.run(["ip", "link", "delete", "docker0"], check=False, capture_output=True)
        for table in ("nat", "filter"):
            _forget_chains(table)
        shutil.rmtree(self.base, ignore_errors=True)


def _forget_chains(table: str) -> None:
    """dockerd leaves its iptables chains behind; only its own names are touched."""
    listed = subprocess.run(
        ["iptables", "-t", table, "-S"], capture_output=True, text=True, check=False
    ).stdout
    for line in listed.splitlines():
        if line.startswith("-A") and "DOCKER" in line:
            subprocess.run(
                ["iptables", "-t", table, "-D", *line.split()[1:]], check=False, capture_output=True
            )
    for line in listed.splitlines():
        if line.startswith("-N DOCKER"):
            subprocess.run(["iptables", "-t", table, "-F", line.split()[1]], check=False, capture_output=True)
    for line in listed.splitlines():
        if line.startswith("-N DOCKER"):
            subprocess.run(["iptables", "-t", table, "-X", line.split()[1]], check=False, capture_output=True)


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry)] = int(
                    Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                )
    found, waiting = [], [pid]
    while waiting:
        above = waiting.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found += below
        waiting += below
    return found


def proportional_kib(pids: Sequence[int]) -> int:
    """Proportional set size of `pids` together, KiB. Source: proc(5), smaps_rollup."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


def installed_ketch(base: Path) -> Path:
    """The client as `pip install .` puts it, in a virtual environment in `base`: a developer's one looks for the checkout at every start."""
    program = base / "bin/ketch"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", base], check=True)
        source = base / "source"  # a copy: installing leaves its traces there
        shutil.copytree(
            Path(__file__).parents[2], source, ignore=shutil.ignore_patterns(".*", "tests", "*.egg-info")
        )
        subprocess.run(
            [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", base / "bin/python",
             "install", "--no-deps", source],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return program


def has_dockerd() -> bool:
    """Whether dockerd can be measured here."""
    return shutil.which("dockerd") is not None and shutil.which("docker") is not None
