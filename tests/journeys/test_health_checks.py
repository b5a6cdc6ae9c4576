"""Health checks of real containers: commands and probes without one, events, waiting, reactions, a restart of ketchd."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ketch_testing.machine import Machine
from ketch_testing.waiting import until

pytestmark = pytest.mark.root
SECOND = 1_000_000_000
FAST = {"Interval": SECOND // 10, "Timeout": 5 * SECOND, "Retries": 2}


class Patient:
    """One container with a health check, removed at the end."""

    def __init__(self, machine: Machine, name: str, **body: Any) -> None:
        self.machine, self.name = machine, name
        host = {"NetworkMode": "none", **body.pop("HostConfig", {})}
        config = {"Image": "busybox", "Cmd": ["sleep", "1000"], "StopTimeout": 0, "HostConfig": host, **body}
        machine.json("POST", f"/containers/create?name={name}", config)
        machine.json("POST", f"/containers/{name}/start")

    def state(self) -> dict[str, Any]:
        return dict(self.machine.json("GET", f"/containers/{self.name}/json")["State"])

    def health(self) -> dict[str, Any]:
        return dict(self.state()["Health"])

    def run(self, *command: str) -> None:
        made = self.machine.json(
            "POST", f"/containers/{self.name}/exec", {"Cmd": list(command), "AttachStdout": True}
        )
        self.machine.request("POST", f"/exec/{made['Id']}/start", {"Detach": False})

    def wait_healthy(self) -> dict[str, Any]:
        return dict(self.machine.json("POST", f"/containers/{self.name}/wait?condition=healthy"))

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The state once `holds` is true of it."""
        deadline = time.monotonic() + 30
        while not holds(state := self.state()):
            assert time.monotonic() < deadline, state
            time.sleep(0.02)
        return state

    def actions(self) -> list[str]:
        until = int(time.time()) + 1
        lines = self.machine.request("GET", f"/events?since=1&until={until}")[1].decode().splitlines()
        events = [json.loads(line) for line in lines if line.strip()]
        return [one["Action"] for one in events if one["Actor"]["Attributes"].get("name") == self.name]


@pytest.fixture
def patient(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Callable[..., Patient]]:
    """Makes containers named after the test."""
    made: list[Patient] = []

    def make(**body: Any) -> Patient:
        one = Patient(machine, f"{request.node.originalname.replace('_', '-')}-{len(made)}", **body)
        made.append(one)
        return one

    yield make
    for one in made:
        machine.request("DELETE", f"/containers/{one.name}?force=1")


def status_is(wanted: str) -> Callable[[dict[str, Any]], bool]:
    return lambda state: bool(state.get("Health") and state["Health"]["Status"] == wanted)


def test_command_makes_it_healthy_then_unhealthy_then_healthy(
    patient: Callable[..., Patient], machine: Machine
) -> None:
    """Starting, healthy, unhealthy after the retries, healthy again; one event for each change, shown in ps."""
    one = patient(Healthcheck={"Test": ["CMD-SHELL", "echo seen; test ! -e /sick"], **FAST})
    assert one.wait_healthy() == {"StatusCode": 0}
    row = machine.json("GET", "/containers/json?filters=" + '{"health":["healthy"]}'.replace('"', "%22"))
    assert [entry["Names"] for entry in row] == [[f"/{one.name}"]] and row[0]["Status"].endswith("(healthy)")
    one.run("touch", "/sick")
    sick = one.until(status_is("unhealthy"))["Health"]
    assert (
        sick["FailingStreak"] >= 2
        and sick["Log"][-1]["Output"] == "seen\n"
        and sick["Log"][-1]["ExitCode"] == 1
    )
    one.run("rm", "/sick")
    one.until(status_is("healthy"))
    changes = [action for action in one.actions() if action.startswith("health_status")]
    assert changes == ["health_status: healthy", "health_status: unhealthy", "health_status: healthy"]
    one.until(lambda state: len(state["Health"]["Log"]) == 5)


def test_probe_runs_as_an_exec_with_the_containers_environment(patient: Callable[..., Patient]) -> None:
    """Its user and variables; exec events as dockerd has them."""
    one = patient(
        User="user",
        Env=["MARK=here"],
        Healthcheck={"Test": ["CMD", "sh", "-c", "echo $(id -u) $MARK $HOME"], **FAST},
    )
    one.wait_healthy()
    assert one.health()["Log"][0]["Output"] == "1000 here /home\n"
    actions = one.actions()
    first = next(index for index, action in enumerate(actions) if action.startswith("exec_create: "))
    assert [action.split(":")[0] for action in actions[first : first + 3]] == [
        "exec_create",
        "exec_start",
        "exec_die",
    ]


def test_timeout_kills_the_probe(patient: Callable[..., Patient]) -> None:
    """ExitCode -1 and Docker's words; nothing of the probe stays."""
    one = patient(
        Healthcheck={
            "Test": ["CMD-SHELL", "echo slow; sleep 999"],
            **FAST,
            "Timeout": SECOND // 5,
            "Retries": 1,
        }
    )
    one.until(status_is("unhealthy"))
    last = one.health()["Log"][0]
    assert (last["ExitCode"], last["Output"]) == (-1, "Health check exceeded timeout (200ms): slow\n")
    shown = one.machine.json("GET", f"/containers/{one.name}/top?ps_args=-o+pid,args")
    assert len([row for row in shown["Processes"] if "999" in row[1]]) <= 2


def test_missing_program_is_a_failure(patient: Callable[..., Patient]) -> None:
    """Not an end of the watching."""
    one = patient(Healthcheck={"Test": ["CMD", "no-such-program"], **FAST})
    one.until(status_is("unhealthy"))
    assert (
        one.health()["Log"][-1]["ExitCode"] == -1 and "no-such-program" in one.health()["Log"][-1]["Output"]
    )


def test_long_output_is_cut(patient: Callable[..., Patient]) -> None:
    """4096 bytes and an ellipsis."""
    one = patient(Healthcheck={"Test": ["CMD-SHELL", "yes | head -c 100000"], **FAST})
    one.wait_healthy()
    assert one.health()["Log"][0]["Output"] == "y\n" * 2048 + "..."


def test_http_probe_inside_the_namespace(patient: Callable[..., Patient]) -> None:
    """A server that listens on the container's loopback alone, in a container without any network."""
    one = patient(
        Cmd=["sh", "-c", "mkdir /w; echo x >/w/ok; httpd -p 127.0.0.1:8080 -h /w; exec sleep 1000"],
        Labels={"ketch.health.http": "http://:8080/ok"}, Healthcheck=FAST,
    )  # fmt: skip
    assert one.wait_healthy() == {"StatusCode": 0}
    assert one.health()["Log"][-1]["Output"] == "HTTP/1.1 200 OK"
    one.run("rm", "/w/ok")
    one.until(status_is("unhealthy"))
    assert "404" in one.health()["Log"][-1]["Output"]
    assert not [
        action for action in one.actions() if "health" not in action and action.startswith("exec_create: sh")
    ]


def test_tcp_probe(patient: Callable[..., Patient]) -> None:
    """Refused, then connected."""
    one = patient(
        Cmd=["sh", "-c", "while ! test -e /go; do sleep 0.05; done; httpd -p 81; exec sleep 1000"],
        Labels={"ketch.health.tcp": ":81"}, Healthcheck=FAST,
    )  # fmt: skip
    one.until(status_is("unhealthy"))
    assert one.health()["Log"][-1]["Output"] == "127.0.0.1:81: connection refused"
    one.run("touch", "/go")
    one.until(status_is("healthy"))


def test_on_unhealthy_restart(patient: Callable[..., Patient]) -> None:
    """A new run begins; it starts as `starting` again."""
    one = patient(
        Healthcheck={"Test": ["CMD-SHELL", "test -e /second"], **FAST},
        Cmd=["sh", "-c", "test -e /first && touch /second; touch /first; exec sleep 1000"],
        Labels={"ketch.health.on-unhealthy": "restart"},
    )  # fmt: skip
    assert one.wait_healthy() == {"StatusCode": 0}
    actions = [action for action in one.actions() if not action.startswith("exec_")]
    assert (
        actions.index("health_status: unhealthy")
        < actions.index("restart")
        < actions.index("health_status: healthy")
    )


def test_on_unhealthy_stop(patient: Callable[..., Patient]) -> None:
    """A restart policy does not bring it back: it was stopped, not ended."""
    one = patient(
        Healthcheck={"Test": ["CMD", "false"], **FAST}, Labels={"ketch.health.on-unhealthy": "stop"},
        HostConfig={"RestartPolicy": {"Name": "always"}},
    )  # fmt: skip
    assert one.until(lambda state: state["Status"] == "exited")["Health"]["Status"] == "unhealthy"


def test_waiting_for_health_ends_with_the_container(patient: Callable[..., Patient]) -> None:
    """With its exit code and the reason."""
    one = patient(Healthcheck={"Test": ["CMD", "false"], **FAST}, Cmd=["sh", "-c", "sleep 0.3; exit 7"])
    assert one.wait_healthy() == {
        "StatusCode": 7,
        "Error": {"Message": "the container ended before it became healthy"},
    }


def test_waiting_for_health_without_a_check_is_refused(
    patient: Callable[..., Patient], machine: Machine
) -> None:
    """It would never end. NONE is no check either."""
    for settings in (None, {"Test": ["NONE"]}):
        one = patient(Healthcheck=settings)
        status, answer = machine.request("POST", f"/containers/{one.name}/wait?condition=healthy")
        assert status == 409 and b"has no health check" in answer
        assert "Health" not in one.state()


def test_pause_and_stop_end_the_watching(patient: Callable[..., Patient]) -> None:
    """Docker shows unhealthy then, without an event."""
    one = patient(Healthcheck={"Test": ["CMD", "true"], **FAST})
    one.wait_healthy()
    one.machine.json("POST", f"/containers/{one.name}/pause")
    assert one.health()["Status"] == "unhealthy"
    one.machine.json("POST", f"/containers/{one.name}/unpause")
    one.until(status_is("healthy"))
    one.machine.json("POST", f"/containers/{one.name}/stop?t=0")
    assert one.health()["Status"] == "unhealthy"
    assert "health_status: unhealthy" not in one.actions()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"ketch.health.http": "ftp://x"}, "ketch.health.http"),
        ({"ketch.health.on-unhealthy": "x"}, "none, restart, stop"),
    ],
)
def test_senseless_labels_are_refused_at_create(machine: Machine, labels: dict[str, str], words: str) -> None:
    """And nothing is made."""
    status, answer = machine.request(
        "POST", "/containers/create?name=senseless", {"Image": "busybox", "Labels": labels}
    )
    assert status == 400 and words in answer.decode()
    assert machine.request("GET", "/containers/senseless/json")[0] == 404


def test_health_survives_kill_9_of_ketchd(patient: Callable[..., Patient], machine: Machine) -> None:
    """Status and streak are there at once, and the watching goes on."""
    well = patient(Healthcheck={"Test": ["CMD", "true"], **FAST})
    sick = patient(Healthcheck={"Test": ["CMD", "false"], **FAST})
    well.wait_healthy()
    streak = sick.until(status_is("unhealthy"))["Health"]["FailingStreak"]
    machine.kill()
    machine.start()
    assert well.health()["Status"] == "healthy"
    assert sick.health()["Status"] == "unhealthy" and sick.health()["FailingStreak"] >= streak
    sick.until(lambda state: state["Health"]["FailingStreak"] > streak + 2)
    well.run("true")
    assert [action for action in well.actions() if action == "health_status: healthy"] == [
        "health_status: healthy"
    ]


def test_a_probe_that_hangs_ends_with_ketchd_and_a_users_exec_does_not(
    patient: Callable[..., Patient], machine: Machine
) -> None:
    """kill -9 while both run: the probe is nobody's any more and is killed, what a user began goes on, and the watching too."""
    one = patient(
        Healthcheck={
            "Test": ["CMD-SHELL", "exec sleep 1111"],
            "Interval": SECOND // 10,
            "Timeout": 3600 * SECOND,
            "Retries": 1,
        }
    )
    made = machine.json("POST", f"/containers/{one.name}/exec", {"Cmd": ["sleep", "2222"]})
    machine.request("POST", f"/exec/{made['Id']}/start", {"Detach": True})

    def running(seconds: str) -> list[int]:
        rows = machine.json("GET", f"/containers/{one.name}/top")["Processes"]
        return [int(row[1]) for row in rows if row[-1] == f"sleep {seconds}"]

    until(lambda: bool(running("1111")))
    (probe,), (users,) = running("1111"), running("2222")
    assert machine.process is not None
    machine.kill()
    until(lambda: not os.path.exists(f"/proc/{probe}"))
    assert os.path.exists(f"/proc/{users}")
    machine.start()
    assert running("2222") == [users]
    until(lambda: bool(running("1111")))
    assert running("1111") != [probe]
    assert one.health()["Status"] == "starting"
