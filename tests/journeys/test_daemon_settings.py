"""What a daemon.json gives to containers that say nothing of their own: looked at from inside."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.machine import BIN, Machine

pytestmark = [needs_root, pytest.mark.root]

KETCH = str(BIN / "ketch")
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
}


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ketch-settings-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def daemon(base: Path) -> Iterator[Machine]:
    made = Machine(base / "m")
    (base / "profile.json").write_text(json.dumps(PROFILE))
    (made.base / "daemon.json").write_text(
        json.dumps(
            {
                "init": True, "default-shm-size": "32m", "dns": ["192.0.2.7"], "dns-opts": ["timeout:3"],
                "dns-search": ["example.com"], "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 100, "Hard": 200}},
                "no-new-privileges": True, "default-ipc-mode": "shareable", "default-cgroupns-mode": "host",
                "seccomp-profile": str(base / "profile.json"), "labels": ["site=lab"], "shutdown-timeout": 20,
            }
        )
    )  # fmt: skip
    try:
        made.start()
        import_busybox(made)
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


def inside(daemon: Machine, *options: str, script: str) -> str:
    return daemon.run(KETCH, "run", "--rm", *options, "busybox", "sh", "-c", script).stdout


def states_of(daemon: Machine) -> dict[str, str]:
    return {row["Names"][0]: row["State"] for row in daemon.json("GET", "/containers/json?all=1")}


def host_config(daemon: Machine, *options: str) -> Any:
    name = daemon.run(KETCH, "create", *options, "busybox", "true").stdout.strip()
    try:
        return daemon.json("GET", f"/containers/{name}/json")["HostConfig"]
    finally:
        daemon.request("DELETE", f"/containers/{name}")


def test_settled_at_create_and_shown(daemon: Machine) -> None:
    """What dockerd writes into HostConfig, and what it does not."""
    host = host_config(daemon)
    assert (host["ShmSize"], host["IpcMode"], host["CgroupnsMode"]) == (32 << 20, "shareable", "host")
    assert host["Ulimits"] == [{"Name": "nofile", "Hard": 200, "Soft": 100}]
    assert not host["Dns"] and not host["SecurityOpt"] and "Init" not in host
    own = host_config(
        daemon, "--shm-size", "1m", "--ipc", "private", "--ulimit", "nofile=5", "--ulimit", "nproc=9", "--cgroupns", "private"
    )  # fmt: skip
    assert (own["ShmSize"], own["IpcMode"], own["CgroupnsMode"]) == (1 << 20, "private", "private")
    assert sorted(one["Name"] for one in own["Ulimits"]) == ["nofile", "nproc"]
    assert next(one["Hard"] for one in own["Ulimits"] if one["Name"] == "nofile") == 5


def test_init(daemon: Machine) -> None:
    assert inside(daemon, script="exec cat /proc/1/cmdline") != inside(
        daemon, "--init=false", script="exec cat /proc/1/cmdline"
    )
    assert inside(daemon, script="echo $$").strip() != "1"
    assert inside(daemon, "--init=false", script="echo $$").strip() == "1"


def test_shm_and_ulimits(daemon: Machine) -> None:
    assert "32768" in inside(daemon, script="df -k /dev/shm")
    assert inside(daemon, script="ulimit -Sn; ulimit -Hn").split() == ["100", "200"]
    assert inside(daemon, "--ulimit", "nofile=50:60", script="ulimit -Sn; ulimit -Hn").split() == ["50", "60"]


def test_resolv_conf(daemon: Machine) -> None:
    """Each of the three is the container's own, or else the daemon's; on the host's network too."""
    wanted = ["nameserver 192.0.2.7", "search example.com", "options timeout:3"]
    for options in ((), ("--network", "none"), ("--network", "host")):
        lines = inside(daemon, *options, script="cat /etc/resolv.conf").splitlines()
        assert [line for line in lines if not line.startswith("#")] == wanted
    lines = inside(daemon, "--dns", "192.0.2.9", script="cat /etc/resolv.conf").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["nameserver 192.0.2.9", *wanted[1:]]
    daemon.run(KETCH, "network", "create", "own")
    try:
        lines = inside(daemon, "--network", "own", script="cat /etc/resolv.conf").splitlines()
        assert [line for line in lines if not line.startswith("#")] == [
            "nameserver 127.0.0.11", "search example.com", "options timeout:3 ndots:0",
        ]  # fmt: skip
    finally:
        daemon.run(KETCH, "network", "rm", "own")


def test_privileges_and_seccomp(daemon: Machine) -> None:
    """Of the first process and of an exec; a container may choose otherwise."""
    look = "grep NoNewPrivs /proc/self/status; mkdir /made 2>&1; true"
    said = inside(daemon, script=look)
    assert "NoNewPrivs:\t1" in said and "Function not implemented" in said
    own = inside(daemon, "--security-opt", "no-new-privileges=false", "--security-opt", "seccomp=unconfined", script=look)  # fmt: skip
    assert own == "NoNewPrivs:\t0\n"
    daemon.run(KETCH, "run", "-d", "--name", "target", "busybox", "sleep", "3600")
    try:
        said = daemon.run(KETCH, "exec", "target", "sh", "-c", look, check=False).stdout
        assert "NoNewPrivs:\t1" in said and "Function not implemented" in said
    finally:
        daemon.request("DELETE", "/containers/target?force=1")
    info = daemon.json("GET", "/info")
    assert "name=no-new-privileges" in info["SecurityOptions"]
    assert any("profile.json" in option for option in info["SecurityOptions"])
    assert info["Labels"] == ["site=lab"]


def test_a_build_gets_them_too(daemon: Machine, base: Path) -> None:
    (base / "context").mkdir()
    (base / "context/Dockerfile").write_text(
        "FROM busybox\nRUN cat /etc/resolv.conf; df -k /dev/shm; ulimit -Sn; grep NoNewPrivs /proc/self/status\n"
    )
    done = daemon.run(KETCH, "build", "--no-cache", str(base / "context"))
    said = done.stdout + done.stderr
    for words in ("nameserver 192.0.2.7", "32768", "100", "NoNewPrivs:\t1"):
        assert words in said


def test_stopped_by_the_daemons_end_is_not_by_hand() -> None:
    """Without live-restore: `unless-stopped` starts again with ketchd, one that was stopped before does not."""
    with tempfile.TemporaryDirectory(prefix="ketch-settings-") as name:
        daemon = Machine(Path(name) / "m", flags=("--live-restore=false", "--shutdown-timeout=30"))
        try:
            daemon.start()
            import_busybox(daemon)
            for one in ("kept", "stopped"):
                daemon.run(KETCH, "run", "-d", "--init", "--name", one, "--restart", "unless-stopped", "busybox", "sleep", "3600")  # fmt: skip
            daemon.run(KETCH, "stop", "-t", "1", "stopped")
            assert daemon.stop() == 0
            daemon.start()
            deadline = time.monotonic() + 60  # they are started when the door is open
            while (states := states_of(daemon))["/kept"] != "running" and time.monotonic() < deadline:
                time.sleep(0.02)
            assert states == {"/kept": "running", "/stopped": "exited"}
        finally:
            daemon.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file or directory"), ("words", "it is no JSON object"), ('{"syscalls": 1}', "decoding seccomp profile failed")],
)  # fmt: skip
def test_a_profile_that_cannot_be_used(base: Path, text: str | None, words: str) -> None:
    path = base / "broken.json"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    daemon = Machine(base / "broken", flags=("--seccomp-profile", str(path)))
    try:
        daemon.start(wait=False)
        assert daemon.process is not None and daemon.process.wait(30) == 1
        assert words in daemon.log.read_text().splitlines()[-1]
    finally:
        daemon.process = None
        daemon.close()
