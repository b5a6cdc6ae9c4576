"""A ketchd of the test's own: private roots and socket, its own bridge, ended by pid, and a look at what it left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float = 60) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Machine:
    """One private ketchd. Starts and stops it; everything lives below `base`. patience: seconds for one request."""

    patience = 60.0

    def __init__(self, base: Path, *, bridge: str = "", flags: tuple[str, ...] = ()) -> None:
        self.base = base
        self.data_root = base / "data"
        self.exec_root = base / "run"
        self.socket = base / "d.sock"
        self.bridge = bridge or f"ktt{os.urandom(3).hex()}"  # several may run at once
        self.flags = flags
        self.process: subprocess.Popen[bytes] | None = None
        self.log = base / "ketchd.log"
        base.mkdir(parents=True, exist_ok=True)
        (base / "daemon.json").write_text("{}\n")

    @property
    def env(self) -> dict[str, str]:
        """For clients: the socket, and a configuration directory of their own."""
        return {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.base / "client"),
            "PATH": f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def launcher(self) -> int:
        """The pid of the running daemon's launcher."""
        assert self.process is not None
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (thread / "children").read_text().split():
                if Path(f"/proc/{pid}/comm").read_text() == "ketch-launcher\n":
                    return int(pid)
        raise AssertionError("ketchd has no launcher")

    def start(
        self,
        *,
        tracepoints: str = "",
        wait: bool = True,
        extra: tuple[str, ...] = (),
        packages: Path | None = None,
    ) -> None:
        """Start ketchd and wait until it answers. Raises AssertionError with its log when it does not.

        packages: a directory with other copies of ketchd and ketch_wire, which are run instead of the installed ones.
        """
        env = {**os.environ, **({"KETCHD_TRACEPOINTS": tracepoints} if tracepoints else {})}
        if packages is not None:
            env["PYTHONPATH"] = str(packages)
        command = [
            str(BIN / "ketchd"), "--data-root", str(self.data_root), "--exec-root", str(self.exec_root),
            "-H", f"unix://{self.socket}", "--pidfile", str(self.base / "ketchd.pid"), "--bridge", self.bridge,
            "--config-file", str(self.base / "daemon.json"), *self.flags, *extra,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = 180) -> None:
        """Until `_ping` answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/_ping")[0] == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"ketchd does not answer:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"ketchd did not end on SIGTERM:\n{self.log.read_text()[-4000:]}") from None
        finally:
            self.process = None

    @contextlib.contextmanager
    def killed_at(self, point: str) -> Iterator[None]:
        """ketchd kills itself when what is done inside reaches the trace point `point`; afterwards it runs again, without one.

        Raises AssertionError when nothing reaches it within half a minute: some of the work is done behind the answers.
        """
        self.stop()
        self.start(tracepoints=f"{point}=kill")
        try:
            yield
            assert self.process is not None
            try:
                assert self.process.wait(30) == -signal.SIGKILL
            except subprocess.TimeoutExpired:
                raise AssertionError(f"nothing here reaches {point}") from None
        finally:
            self.kill()
            self.start()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, bytes]:
        """One HTTP request: (status, body)."""
        connection = UnixConnection(str(self.socket), self.patience)
        try:
            sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
            merged = {**({"Content-Type": "application/json"} if body is not None else {}), **(headers or {})}
            connection.request(method, path, sent, merged)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """One request whose answer is JSON. Raises AssertionError on an error status."""
        status, answer = self.request(method, path, body)
        assert status < 400, f"{method} {path}: {status} {answer.decode(errors='replace')}"
        return json.loads(answer) if answer else None

    def run(
        self,
        *argv: str,
        check: bool = True,
        stdin: bytes | None = None,
        timeout: float = 120,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A client program against this daemon. Raises AssertionError with its output unless it exits 0."""
        if argv[0] == "docker" and shutil.which("docker") is None:
            import pytest  # the demo, which has no pytest, never types docker

            pytest.skip("the docker CLI is not installed")
        done = subprocess.run(
            argv, env=self.env, input=stdin, capture_output=True, timeout=timeout, cwd=cwd, check=False
        )
        result = subprocess.CompletedProcess(
            argv, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"{' '.join(argv)}: exit {result.returncode}\n{result.stdout}\n{result.stderr}\n"
                f"-- ketchd --\n{self.log.read_text()[-3000:]}"
            )
        return result

    def close(self) -> None:
        """Remove every container, end the daemon and delete its directories. May be called twice."""
        try:
            if self.process is not None and self.process.poll() is None:
                for row in self.json("GET", "/containers/json?all=1"):
                    self.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
                self.stop()
        finally:
            self.kill()
            self._end_strays()
            subprocess.run(
                ["rm", "-rf", str(self.base)], check=False
            )  # shutil's is lost in what containers nest

    def _end_strays(self) -> None:
        """Processes whose command line names our directory; only ours can."""
        for pid in processes_naming(str(self.base)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """What a clean end must not leave: processes, mounts, links, nft tables. Links and tables are then removed."""
        found = [f"process {pid}" for pid in processes_naming(str(self.base))]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [f"mount {line.split()[1]}" for line in mounts if str(self.base) in line]
        if self.bridge in os.listdir("/sys/class/net"):
            found.append(f"link {self.bridge}")
            _quietly("ip", "link", "delete", self.bridge)
        for table in _quietly("nft", "list", "tables").splitlines():
            if self.bridge in table:
                found.append(f"nft {table}")
                _quietly("nft", "delete", *table.split())
        return found


def _quietly(*argv: str) -> str:
    """What a program prints; nothing where it is not installed."""
    if shutil.which(argv[0]) is None:
        return ""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def processes_naming(text: str) -> list[int]:
    """Pids, but for our own, whose command line or environment socket names `text`."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if text.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return found


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(*, flags: tuple[str, ...] = (), settings: Mapping[str, Any] | None = None) -> Iterator[Machine]:
    """A machine of one's own, started, with `settings` in its daemon.json; ended afterwards. Nothing may stay of it."""
    made = Machine(Path(tempfile.mkdtemp(prefix="ketch-test-")), flags=flags)
    if settings is not None:
        (made.base / "daemon.json").write_text(json.dumps(settings))
    try:
        made.start()
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


@contextlib.contextmanager
def registry(
    base: Path,
    *,
    users: Mapping[str, str] | None = None,
    storage: Path | None = None,
    http: str = "",
    more: str = "",
    address: str = "127.0.0.1",
) -> Iterator[str]:
    """Debian's docker-registry, with htpasswd when `users` are given; yields host:port.

    address: one of this host's. storage: a directory that outlives it; otherwise its content goes with `base`. http, more: lines of its configuration,
    below `http:` and at the top.
    """
    port = free_port()
    base.mkdir(parents=True, exist_ok=True)
    auth = ""
    if users:
        lines = []
        for name, password in users.items():
            made = subprocess.run(
                ["htpasswd", "-Bbn", name, password], capture_output=True, text=True, check=True
            ).stdout.strip()
            lines.append(made)
        (base / "htpasswd").write_text("\n".join(lines) + "\n")
        auth = f"auth:\n  htpasswd:\n    realm: ketch\n    path: {base}/htpasswd\n"
    (base / "config.yml").write_text(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\n"
        f"storage:\n  filesystem:\n    rootdirectory: {storage or base / 'storage'}\n  delete:\n    enabled: true\n"
        f"http:\n  addr: {address}:{port}\n{http}{auth}{more}"
    )
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(base / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 15
        while True:
            with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise AssertionError(f"docker-registry does not start:\n{(base / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(base, ignore_errors=True)
