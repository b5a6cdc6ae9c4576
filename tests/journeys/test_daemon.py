"""ketchd as a process: readiness, its lock, its end, its socket, and what outlives it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.machine import BIN, Machine

pytestmark = [needs_root, pytest.mark.root]


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ketch-daemon-") as name:
        yield Path(name)


@pytest.fixture
def daemon(base: Path) -> Iterator[Machine]:
    made = Machine(base / "m")
    try:
        made.start()
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


def ketchd(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ketchd"), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


def test_a_second_daemon_on_the_same_root_refuses_with_one_line(daemon: Machine) -> None:
    assert daemon.process is not None
    refused = ketchd("--data-root", str(daemon.data_root), "--exec-root", str(daemon.base / "other"), "-H", f"unix://{daemon.base}/o.sock", "--pidfile", str(daemon.base / "o.pid"))  # fmt: skip
    assert refused.returncode == 1
    assert (
        refused.stderr == f"ketchd: another ketchd (pid {daemon.process.pid}) is using {daemon.data_root}\n"
    )


def test_a_second_daemon_on_the_same_exec_root_or_pidfile_refuses(daemon: Machine, base: Path) -> None:
    """It would take the first one's launcher, or at its end the file that tells of the first."""
    assert daemon.process is not None
    pid, run, pidfile = daemon.process.pid, daemon.base / "run", daemon.base / "ketchd.pid"
    for flags, said in (
        (("--exec-root", str(run), "--pidfile", str(base / "p")), f"is using {run}"),
        (("--exec-root", str(base / "e"), "--pidfile", str(pidfile)), f"has the pidfile {pidfile}"),
    ):
        refused = ketchd("--data-root", str(base / "d"), *flags, "-H", f"unix://{base}/s", "--bridge", "none")
        assert refused.returncode == 1
        assert refused.stderr == f"ketchd: another ketchd (pid {pid}) {said}\n"
    assert pidfile.read_text() == f"{pid}\n"


def test_a_data_root_of_another_engine_is_left_as_it_is(base: Path) -> None:
    """dockerd has `containers` as well, and a start removes what our catalogue does not own there."""
    root = base / "docker"
    for name in ("image", "overlay2", "containers/0123", "volumes"):
        (root / name).mkdir(parents=True)
    (root / "volumes" / "metadata.db").touch()
    root.chmod(0o711)
    refused = ketchd("--data-root", str(root), "--exec-root", str(base / "e"), "-H", f"unix://{base}/s", "--pidfile", str(base / "p"), "--bridge", "none")  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr == (
        f"ketchd: {root} is not ketch's: it has image, overlay2 and no catalogue; give ketchd a data root of its own\n"
    )
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [
        "containers", "containers/0123", "image", "overlay2", "volumes", "volumes/metadata.db",
    ]  # fmt: skip
    assert stat.S_IMODE(root.stat().st_mode) == 0o711


def test_what_a_start_that_failed_has_made_is_no_other_engine(base: Path) -> None:
    """The exec root and the pidfile may lie in the data root; a start that goes no further leaves them without a catalogue."""
    machine = Machine(base / "m")
    machine.exec_root = machine.data_root / "run"
    machine.flags = ("--pidfile", str(machine.data_root / "pids" / "ketchd.pid"))
    machine.start(wait=False, extra=("--log-opt", "nonsense=1"))
    try:
        assert machine.process is not None
        assert machine.process.wait(60) == 1
        assert "failed to set log opts" in machine.log.read_text()
        assert not (machine.data_root / "catalogue.sqlite").exists()
        machine.start()
    finally:
        machine.stop()
        machine.close()


def test_a_file_among_the_volumes_is_left_alone(base: Path) -> None:
    machine = Machine(base / "m")
    stray = machine.data_root / "volumes" / "notes.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("mine")
    try:
        machine.start()
    finally:
        machine.stop()
        said = machine.log.read_text()
        kept = stray.read_text()
        machine.close()
    assert "volumes/notes.txt belongs to no volume" in said
    assert kept == "mine"


def test_a_second_daemon_on_the_same_socket_refuses(daemon: Machine, base: Path) -> None:
    refused = ketchd("--data-root", str(base / "d"), "--exec-root", str(base / "e"), "-H", f"unix://{daemon.socket}", "--pidfile", str(base / "p"), "--bridge", "none")  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        f"ketchd: cannot listen on unix://{daemon.socket}: another daemon answers there\n"
    )
    assert daemon.request("GET", "/_ping")[0] == 200


def test_the_socket_is_for_root_and_its_group(daemon: Machine) -> None:
    mode = os.stat(daemon.socket).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert stat.S_IMODE(os.stat(daemon.data_root).st_mode) == 0o710


def test_sigterm_leaves_containers_running_and_cleans_up_after_itself(daemon: Machine) -> None:
    import_busybox(daemon)
    made = daemon.json("POST", "/containers/create", {"Image": "busybox", "Cmd": ["sleep", "3600"]})
    daemon.json("POST", f"/containers/{made['Id']}/start")
    pid = daemon.json("GET", f"/containers/{made['Id']}/json")["State"]["Pid"]
    assert daemon.stop() == 0
    assert not daemon.socket.exists()
    assert not (daemon.base / "ketchd.pid").exists()
    os.kill(pid, 0)
    daemon.start()
    state = daemon.json("GET", f"/containers/{made['Id']}/json")["State"]
    assert (state["Running"], state["Pid"]) == (True, pid)


def test_without_live_restore_sigterm_stops_containers(base: Path) -> None:
    daemon = Machine(base / "m", flags=("--live-restore=false",))
    try:
        daemon.start()
        import_busybox(daemon)
        made = daemon.json(
            "POST",
            "/containers/create",
            {
                "Image": "busybox",
                "Cmd": ["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"],
            },
        )
        daemon.json("POST", f"/containers/{made['Id']}/start")
        deadline = time.monotonic() + 30  # the first process ignores a signal that it does not handle yet
        while b"ready" not in daemon.request("GET", f"/containers/{made['Id']}/logs?stdout=1")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.json("GET", f"/containers/{made['Id']}/json")["State"]["ExitCode"] == 5
    finally:
        daemon.close()


def test_readiness_is_told_when_the_socket_answers(base: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(base / "notify"))
        manager.settimeout(30)
        os.environ["NOTIFY_SOCKET"] = str(base / "notify")
        daemon = Machine(base / "m")
        try:
            daemon.start(wait=False)
            assert manager.recv(100) == b"READY=1"
            assert daemon.request("GET", "/_ping")[0] == 200
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert daemon.process.wait(30) == 0
        finally:
            del os.environ["NOTIFY_SOCKET"]
            daemon.close()


# As systemd starts a service with a socket, sd_listen_fds(3): argv is the socket's number and the command.
ACTIVATE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


@pytest.mark.parametrize("host", ["fd://", "fd://3"])
def test_a_socket_that_was_given_stays_when_the_daemon_ends(base: Path, host: str) -> None:
    """It is systemd's, its file too, which asyncio would delete from Python 3.13 on: the next request starts the next daemon."""
    daemon = Machine(base / "m")
    daemon.socket = base / "given.sock"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(daemon.socket))
        given.listen()
        command = [
            sys.executable, "-c", ACTIVATE, str(given.fileno()), str(BIN / "ketchd"), "-H", host, "--data-root",
            str(daemon.data_root), "--exec-root", str(daemon.exec_root), "--pidfile", str(base / "p"),
            "--bridge", daemon.bridge, "--config-file", str(daemon.base / "daemon.json"),
        ]  # fmt: skip
        try:
            for _ in range(2):
                with daemon.log.open("ab") as log:
                    daemon.process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[given.fileno()]
                    )
                assert daemon.request("GET", "/_ping") == (200, b"OK"), daemon.log.read_text()
                assert daemon.stop() == 0
                assert daemon.socket.is_socket()
        finally:
            daemon.close()
    assert daemon.leftovers() == []


def test_a_dead_daemons_socket_is_replaced(daemon: Machine) -> None:
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.request("GET", "/_ping")[0] == 200


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--nonsense",), "ketchd: unrecognized arguments: --nonsense"),
        (("--log-level", "loud"), "ketchd: invalid logging level: loud"),
        (("-H", "h:x"), 'ketchd: invalid argument "h:x" for "-H, --host" flag: invalid bind address format: h:x'),
        (("--config-file", "/does/not/exist.json"), "ketchd: unable to configure the ketch daemon with file /does/not/exist.json: no such file or directory"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line(flags: tuple[str, ...], words: str) -> None:
    refused = ketchd(*flags)
    assert (refused.returncode, refused.stderr.strip()) == (1, words)


def test_an_ignored_setting_is_said_once(base: Path) -> None:
    daemon = Machine(base / "m", flags=("--userland-proxy=false",))
    try:
        daemon.start()
    finally:
        daemon.stop()
        said = daemon.log.read_text()
        daemon.close()
    assert said.count("userland-proxy") == 1
    assert "known and ignored" in said


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:{}", "127.0.0.1:{}", ":{}"])
def test_it_listens_on_tcp_too(base: Path, host: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = Machine(base / "m", flags=("-H", host.format(port)))
    try:
        daemon.start()
        with socket.create_connection(("127.0.0.1", port), 10) as link:
            link.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            assert link.recv(1000).startswith(b"HTTP/1.0 200")
        warnings = daemon.json("GET", "/info")["Warnings"]
        assert any("without encryption.\n" in one and f":{port} " in one for one in warnings)
        assert "API is accessible on http://" in daemon.log.read_text()
    finally:
        daemon.close()
