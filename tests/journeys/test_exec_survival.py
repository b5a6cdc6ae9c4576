"""Execs whose ketchd is killed: their ends are told once, with their codes, and inspect is right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.eventscenarios import Api, drain
from ketch_testing.machine import Machine, running
from ketch_testing.waiting import until

pytestmark = [needs_root, pytest.mark.root]
WAITS = "echo runs; while [ ! -e /{name} ]; do sleep 0.02; done; exit {code}"


class Host:
    """A machine that may be killed, with one container `host`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.api = Api(str(machine.socket))
        self.api.run("host", "sleep", "1000", HostConfig={"NetworkMode": "none"})
        self.pid = self.api("GET", "/containers/host/json")["State"]["Pid"]
        self.since = time.time()

    def exec(self, name: str, code: int) -> str:
        """One that runs until `go` is called with its name, and then ends with `code`. A client has seen that it runs."""
        script = WAITS.format(name=name, code=code)
        wanted = {"Cmd": ["sh", "-c", script], "AttachStdout": True}
        made = str(self.api("POST", "/containers/host/exec", wanted)["Id"])
        with self.api.hijacked(f"/exec/{made}/start", {"Detach": False}) as client:
            assert client.recv(100)
        return made

    def go(self, name: str) -> None:
        Path(f"/proc/{self.pid}/root/{name}").touch()

    def processes(self) -> int:
        """Shells in the container."""
        namespace = Path(f"/proc/{self.pid}/ns/pid").readlink()
        return len([path for path in Path("/proc").glob("[0-9]*") if _is_shell(path, namespace)])

    def shown(self, exec_id: str) -> Any:
        return self.api("GET", f"/exec/{exec_id}/json")

    def told(self) -> list[tuple[str, str]]:
        """(exec, code) of each `exec_die`, and ("", code) of each `die`."""
        events = self.api.events(self.since, time.time())
        return [
            (one["Actor"]["Attributes"].get("execID", ""), one["Actor"]["Attributes"]["exitCode"])
            for one in events
            if one["Action"] in ("exec_die", "die")
        ]


def _is_shell(process: Path, namespace: Path) -> bool:
    try:
        same = (process / "ns/pid").readlink() == namespace
        return same and (process / "cmdline").read_bytes().startswith(b"sh\0-c\0")
    except OSError:
        return False  # it has just ended


@pytest.fixture
def host() -> Iterator[Host]:
    with running() as machine:
        import_busybox(machine)
        yield Host(machine)


def test_ends_while_ketchd_is_away_and_afterwards(host: Host) -> None:
    early, late = host.exec("early", 5), host.exec("late", 6)
    pid = host.shown(late)["Pid"]
    host.machine.kill()
    host.go("early")
    until(lambda: host.processes() == 1)
    host.machine.start()

    assert host.told() == [(early, "5")]
    shown = host.shown(early)
    assert (shown["Running"], shown["ExitCode"]) == (False, 5)
    shown = host.shown(late)
    assert (shown["Running"], shown["ExitCode"], shown["Pid"]) == (True, None, pid)
    assert host.api("GET", "/containers/host/json")["ExecIDs"] == [late]

    host.go("late")
    until(lambda: not host.shown(late)["Running"])
    assert host.told() == [(early, "5"), (late, "6")] and host.shown(late)["ExitCode"] == 6

    host.machine.kill()
    host.machine.start()
    assert host.told() == [(early, "5"), (late, "6")]  # once


def test_the_container_ends_while_ketchd_is_away(host: Host) -> None:
    own, killed = host.exec("own", 5), host.exec("never", 6)
    host.machine.kill()
    host.go("own")
    until(lambda: host.processes() == 1)
    os.kill(host.pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{host.pid}").exists())
    host.machine.start()

    assert sorted(host.told()[:2]) == sorted([(own, "5"), (killed, "137")])
    assert host.told()[2:] == [("", "137")]
    assert host.shown(own)["ExitCode"] == 5 and host.shown(killed)["ExitCode"] == 137


def test_a_client_gets_output_and_code_across_a_kill(host: Host) -> None:
    wanted = {"Cmd": ["sh", "-c", WAITS.format(name="on", code=9)], "AttachStdout": True}
    made = str(host.api("POST", "/containers/host/exec", wanted)["Id"])
    with host.api.hijacked(f"/exec/{made}/start", {"Detach": False}) as client:
        assert client.recv(100)
        host.machine.kill()
        host.machine.start()
        host.go("on")
        drain(client)

    assert host.shown(made)["ExitCode"] == 9  # recorded before the stream ends


def test_made_before_and_started_after(host: Host) -> None:
    made = host.api("POST", "/containers/host/exec", {"Cmd": ["sh", "-c", "exit 3"]})["Id"]
    host.machine.kill()
    host.machine.start()

    assert host.shown(made)["Running"] is False and host.shown(made)["ExitCode"] is None
    host.api("POST", f"/exec/{made}/start", {"Detach": True})
    until(lambda: host.shown(made)["ExitCode"] == 3)
    assert host.told() == [(made, "3")]


@pytest.mark.parametrize("ends_while_away", [False, True])
def test_made_before_and_never_started(host: Host, ends_while_away: bool) -> None:
    """It goes with the container's run, and the next ketchd does not know it either."""
    made = host.api("POST", "/containers/host/exec", {"Cmd": ["true"]})["Id"]
    if not ends_while_away:
        host.api("POST", "/containers/host/kill")
        until(lambda: not host.api("GET", "/containers/host/json")["State"]["Running"])
    host.machine.kill()
    if ends_while_away:
        os.kill(host.pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{host.pid}").exists())
    host.machine.start()

    host.api("POST", "/containers/host/start")
    assert host.machine.request("GET", f"/exec/{made}/json")[0] == 404


def test_killed_amid_the_start(host: Host) -> None:
    """Its `exec_start` is told, and then, if it ran, its end."""
    with host.machine.killed_at("exec.started"):
        made = host.api("POST", "/containers/host/exec", {"Cmd": ["sh", "-c", "exit 4"]})["Id"]
        with pytest.raises((OSError, AssertionError)):
            host.api("POST", f"/exec/{made}/start", {"Detach": True})

    until(lambda: host.shown(made)["ExitCode"] == 4)
    assert host.told() == [(made, "4")]


def test_a_probe_under_way_is_ended_and_told(host: Host) -> None:
    second = 1_000_000_000
    check = {"Test": ["CMD-SHELL", "sleep 900"], "Interval": second, "Timeout": 600 * second}
    host.api.run("probed", "sleep", "1000", Healthcheck=check, HostConfig={"NetworkMode": "none"})

    def started() -> int:
        events = host.api.events(host.since, time.time())
        return len([one for one in events if one["Action"].startswith("exec_start")])

    until(lambda: started() == 1)
    until(lambda: len(host.api("GET", "/containers/probed/json")["ExecIDs"] or []) == 1)
    host.machine.kill()
    host.machine.start()

    until(lambda: len(host.told()) == 1)
    assert host.told()[0][1] == "137"
    host.api.remove("probed")
