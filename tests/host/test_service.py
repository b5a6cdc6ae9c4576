"""ketchd under systemd: activation, readiness, where everything lies, and containers that outlive every way to end the daemon."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketch_testing.clients import Client
from ketch_testing.machine import processes_naming
from ketch_testing.service import SCOPE, Service, cgroup_of, shown, systemctl
from ketchd.engine import remapping

REFUSED = "the kernel shows no idmapped layers here"
SCOPE_PATH = "/ketch.slice/ketchd-containers.scope"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that a container sees as /shared."""
    with tempfile.TemporaryDirectory(prefix="ketch-host-", dir="/var/lib") as made:
        yield Path(made)


def test_the_first_request_starts_it(service: Service) -> None:
    """Socket activation: the socket is systemd's, of the group, and a request starts the service behind it."""
    systemctl("stop", "ketchd.service")
    assert shown("ketchd.service", "ActiveState") == "inactive"
    assert shown("ketchd.socket", "ActiveState") == "active"
    mode = service.socket.stat()
    assert stat.S_ISSOCK(mode.st_mode) and stat.S_IMODE(mode.st_mode) == 0o660

    assert service.request("GET", "/_ping")[0] == 200

    assert shown("ketchd.service", "ActiveState") == "active"
    assert service.json("GET", "/info")["CgroupVersion"] == "2"


def test_a_start_returns_when_it_is_ready(service: Service) -> None:
    """Type=notify: what `systemctl restart` waited for is ketchd's own word, written by the very process that is ready."""
    before = len(service.log.read_text())

    service.restart()

    assert re.search(
        rf"ready .*pid={service.pid}\b", re.sub(r"\x1b\[[0-9;]*m", "", service.log.read_text()[before:])
    )
    assert shown("ketchd.service", "StatusErrno") == "0"


def test_systemctl_reload_reads_the_settings_again(service: Service, ketch: Client) -> None:
    """By SIGHUP: the same process, with the file's new values."""
    ketch("run", "-d", "--name", "stays", "busybox", "sleep", "3600")
    before, settings = service.pid, service.base / "daemon.json"
    said = settings.read_text()
    settings.write_text('{"labels": ["rack=7"]}')
    try:
        systemctl("reload", "ketchd.service")
        deadline = time.monotonic() + 60
        while service.json("GET", "/info")["Labels"] != ["rack=7"]:
            assert time.monotonic() < deadline, service.log.read_text()[-3000:]
            time.sleep(0.1)
    finally:
        settings.write_text(said)
        systemctl("reload", "ketchd.service")
    assert service.pid == before and ketch.inspect("stays")["State"]["Running"]


def test_where_everything_lies(service: Service, ketch: Client) -> None:
    """The daemon in its service; launcher, shims and containers in a delegated scope beside it."""
    ketch("run", "-d", "--name", "one", "busybox", "sleep", "3600")
    one = ketch.inspect("one")
    pid = one["State"]["Pid"]

    assert cgroup_of(pid) == f"{SCOPE_PATH}/docker/{one['Id']}"
    status = Path(f"/proc/{pid}/status").read_text()
    shim = int(re.search(r"PPid:\t(\d+)", status)[1])  # type: ignore[index]
    assert cgroup_of(shim) == f"{SCOPE_PATH}/supervisor"
    launchers = [one for one in processes_naming(str(service.exec_root)) if one != service.pid]
    assert {cgroup_of(one) for one in launchers} == {f"{SCOPE_PATH}/supervisor"} and shim in launchers
    assert cgroup_of(service.pid).startswith("/ketch.slice/ketchd.service")
    assert shown("ketchd-containers.scope", "Delegate") == "yes"
    assert shown("ketchd-containers.scope", "Slice") == "ketch.slice"
    controllers = set((SCOPE / "docker" / "cgroup.subtree_control").read_text().split())
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= controllers


WAYS = {
    "restart": ("restart", "ketchd"),
    "kill": ("kill", "-s", "KILL", "ketchd"),
    "kill-main": ("kill", "-s", "KILL", "--kill-whom=main", "ketchd"),
}


@pytest.mark.parametrize("way", WAYS)
def test_containers_outlive_the_daemon(service: Service, ketch: Client, way: str) -> None:
    """The same process, a log without a gap, an exec, and an exit code, after systemd has ended the daemon."""
    count = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit 7"
    ketch("run", "-d", "--name", "counter", "busybox", "sh", "-c", count)
    before = ketch.inspect("counter")["State"]

    service.systemctl_and_wait(*WAYS[way])

    after = ketch.inspect("counter")["State"]
    assert (after["Status"], after["Pid"], after["StartedAt"]) == (
        "running",
        before["Pid"],
        before["StartedAt"],
    )
    assert os.path.exists(f"/proc/{before['Pid']}")
    assert ketch("exec", "counter", "cat", "/proc/1/comm") == "sh\n"
    ketch("exec", "counter", "touch", "/stop")
    assert ketch("wait", "counter") == "7\n"
    numbers = [int(line) for line in ketch("logs", "counter").split()]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
    ketch("run", "--rm", "busybox", "true")  # and new ones start


def test_what_ends_while_it_is_stopped_is_known(service: Service, ketch: Client, shared: Path) -> None:
    """Nobody is there when the container ends; its exit code and its last words are right afterwards."""
    ketch("run", "-d", "--name", "leaver", "-v", f"{shared}:/shared", "busybox", "sh", "-c",
          "while [ ! -e /shared/go ]; do sleep 0.1; done; echo gone; exit 9")  # fmt: skip
    pid = ketch.inspect("leaver")["State"]["Pid"]
    service.stop()
    assert os.path.exists(f"/proc/{pid}")

    (shared / "go").touch()
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    systemctl("start", "ketchd.socket")

    state = ketch.inspect("leaver")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 9)
    assert ketch("logs", "leaver") == "gone\n"


def test_the_scope_is_stopped_with_grace_and_made_again(service: Service, ketch: Client) -> None:
    """As when the machine goes down: SIGTERM, time to end, an exit code; and the next container has a new scope."""
    ketch("run", "-d", "--name", "careful", "busybox", "sh", "-c",
          "trap 'echo flushed; exit 5' TERM; echo up; while :; do sleep 0.1; done")  # fmt: skip
    deadline = time.monotonic() + 60
    while ketch("logs", "careful") != "up\n" and time.monotonic() < deadline:
        time.sleep(0.1)

    systemctl("stop", "ketchd-containers.scope")

    assert ketch("wait", "careful") == "5\n" and ketch("logs", "careful") == "up\nflushed\n"
    ketch("run", "-d", "--name", "next", "busybox", "sleep", "3600")
    assert cgroup_of(ketch.inspect("next")["State"]["Pid"]).startswith(SCOPE_PATH + "/docker/")
    assert service.json("GET", "/info")["CgroupVersion"] == "2"


def test_layers_are_of_the_kernels_best_kind(service: Service, ketch: Client, shared: Path) -> None:
    """EROFS files mounted directly from 6.12 on, through loop devices before; `info` says which, and the layers run."""
    status = dict(service.json("GET", "/info")["DriverStatus"])
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    assert status["Layers"] == ("erofs" if release >= (6, 12) else "erofs-loop"), status
    (shared / "Dockerfile").write_text("FROM busybox\nRUN echo first >/first\nRUN echo second >/second\n")
    ketch("build", "-t", "layered", str(shared))

    assert ketch("run", "--rm", "layered", "cat", "/first", "/second") == "first\nsecond\n"

    ketch("run", "-d", "--name", "holder", "layered", "sleep", "3600")
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(service.base) not in mounts and "erofs" not in mounts
    ketch("rm", "-f", "holder")
    ketch("rmi", "layered")


def test_user_namespaces(service: Service, ketch: Client) -> None:
    """--userns-remap in daemon.json: root inside is nobody outside, limits hold, and without it all is as before."""
    saved = {
        path: path.read_bytes() if path.exists() else None for path in (remapping.SUBUID, remapping.SUBGID)
    }
    try:
        for path, content in saved.items():
            path.write_bytes((content or b"") + b"\nroot:231072:65536\n")
        (service.base / "daemon.json").write_text(json.dumps({"userns-remap": "root"}))
        try:
            service.restart()
        except AssertionError as error:
            if REFUSED in str(error):
                pytest.skip(f"this needs idmapped layers: {REFUSED}")
            raise
        assert "name=userns" in service.json("GET", "/info")["SecurityOptions"]
        script = "id -u; cat /proc/self/uid_map; cat /sys/fs/cgroup/pids.max; touch /made && stat -c %u /made"
        assert ketch.inside("--pids-limit", "33", script=script).split() == [
            "0", "0", "231072", "65536", "33", "0",
        ]  # fmt: skip
        ketch("run", "-d", "--name", "one", "busybox", "sleep", "3600")
        owner = os.stat(f"/proc/{ketch.inspect('one')['State']['Pid']}").st_uid
        assert owner == 231072
        ketch("rm", "-f", "one")
    finally:
        for path, content in saved.items():
            path.write_bytes(content) if content is not None else path.unlink()
        (service.base / "daemon.json").write_text("{}\n")
        service.restart()
    assert ketch.inside(script="cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]


def test_ports_are_published(service: Service, ketch: Client) -> None:
    """The host's own nftables: a published port answers, also while the daemon is stopped."""
    ketch("run", "-d", "--name", "web", "-p", "127.0.0.1:18999:80", "busybox", "sh", "-c",
          "mkdir /www; echo served >/www/index.html; exec httpd -f -h /www -p 80")  # fmt: skip
    fetch = ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:18999/"]
    deadline = time.monotonic() + 30
    while True:
        got = subprocess.run(fetch, capture_output=True, text=True, check=False)
        if got.returncode == 0 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert got.stdout == "served\n", got.stderr
    service.stop()
    try:
        assert subprocess.run(fetch, capture_output=True, text=True, check=False).stdout == "served\n"
    finally:
        systemctl("start", "ketchd.socket")
