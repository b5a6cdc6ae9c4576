"""Every state of a container against every request, through the API: what the lifecycle's table says is what happens."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_root

from ketch_testing.machine import Machine, UnixConnection
from ketchd.containers.lifecycle import TABLE, Happening, Refuse, State

pytestmark = [needs_root, pytest.mark.root]
Ask = Callable[..., tuple[int, Any]]

SLEEPS = {"Image": "busybox", "Cmd": ["sleep", "3600"], "StopTimeout": 0}
FAILS = {"Image": "busybox", "Cmd": ["false"], "HostConfig": {"RestartPolicy": {"Name": "always"}}}
REQUESTS = {
    Happening.ASK_START: ("POST", "/containers/it/start", 204),
    Happening.ASK_STOP: ("POST", "/containers/it/stop", 204),
    Happening.ASK_KILL: ("POST", "/containers/it/kill", 204),
    Happening.ASK_PAUSE: ("POST", "/containers/it/pause", 204),
    Happening.ASK_UNPAUSE: ("POST", "/containers/it/unpause", 204),
    Happening.ASK_REMOVE: ("DELETE", "/containers/it", 204),
    Happening.ASK_EXEC: ("POST", "/containers/it/exec", 201),
    Happening.ASK_ATTACH: ("POST", "/containers/it/attach?stdout=1", 200),
}
# Where it goes on from the state that the table names, by itself.
SETTLED = {
    (State.STARTING, Happening.ASK_START): "running",
    (State.RUNNING, Happening.ASK_STOP): "exited",
    (State.RUNNING, Happening.ASK_KILL): "exited",
    (State.PAUSED, Happening.ASK_STOP): "exited",
    (State.PAUSED, Happening.ASK_KILL): "exited",
}
STATES = [State.CREATED, State.RUNNING, State.PAUSED, State.RESTARTING, State.EXITED, State.DEAD]


def until(ask: Ask, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The container as soon as `holds`."""
    deadline = time.monotonic() + 60
    while True:
        seen = ask("GET", "/containers/it/json")[1]
        if holds(seen):
            return dict(seen)
        assert time.monotonic() < deadline, seen["State"]
        time.sleep(0.02)


def bring_to(state: State, ask: Ask, machine: Machine) -> str:
    """A container `it` in the state; its id."""
    made = ask("POST", "/containers/create?name=it", FAILS if state is State.RESTARTING else SLEEPS)[1]["Id"]
    if state in (State.RUNNING, State.PAUSED, State.EXITED, State.RESTARTING):
        assert ask("POST", "/containers/it/start")[0] == 204
    if state is State.PAUSED:
        assert ask("POST", "/containers/it/pause")[0] == 204
    if state is State.EXITED:
        assert ask("POST", "/containers/it/kill")[0] == 204
        until(ask, lambda seen: seen["State"]["Status"] == "exited")
    if state is State.RESTARTING:  # the sixth wait lasts 3.2 seconds
        looks = Counter[int]()

        def waits(seen: dict[str, Any]) -> bool:
            """Seen so for as long as no attempt of `false` takes."""
            if seen["RestartCount"] >= 5 and seen["State"]["Status"] == "restarting":
                looks[seen["RestartCount"]] += 1
            return looks[seen["RestartCount"]] >= 40

        until(ask, waits)
    if state is State.DEAD:
        hold(machine, made, "+i")
        assert ask("DELETE", "/containers/it")[0] == 500
    assert ask("GET", "/containers/it/json")[1]["State"]["Status"] == state.value
    return str(made)


def hold(machine: Machine, container: str, flag: str) -> None:
    """A directory that cannot be moved away: its removal fails."""
    directory = machine.data_root / "containers" / container
    if directory.exists():
        subprocess.run(["chattr", flag, str(directory)], check=True)


@pytest.mark.parametrize("happening", list(REQUESTS), ids=lambda happening: happening.value)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.value)
def test_state_and_request(state: State, happening: Happening, ask: Ask, machine: Machine) -> None:
    if state is State.DEAD and shutil.which("chattr") is None:
        pytest.skip("chattr is not installed (apt-get install e2fsprogs)")
    made = bring_to(state, ask, machine)
    method, path, success = REQUESTS[happening]
    body = {"Cmd": ["true"]} if happening is Happening.ASK_EXEC else None
    outcome = TABLE[(state, happening)]
    try:
        hold(machine, made, "-i")
        status, answer = ask(method, path, body)
        if isinstance(outcome, Refuse):
            assert status == outcome.fault.status, answer
            if status != 304:
                said = outcome.text.format(id=made, name="/it", bare="it")
                before = "cannot kill container: it: " if happening is Happening.ASK_KILL else ""
                assert answer["message"] == before + said
            wanted = state.value
        else:
            assert status == success, answer
            wanted = (
                SETTLED.get((state, happening))
                or SETTLED.get((outcome.state, happening))
                or outcome.state.value
            )
        if wanted == "removing":
            assert ask("GET", "/containers/it/json")[0] == 404
        elif not (state is State.RESTARTING and happening is Happening.ASK_START):
            until(ask, lambda seen: seen["State"]["Status"] == wanted)
    finally:
        hold(machine, made, "-i")


@pytest.mark.parametrize("state", STATES[:-1], ids=lambda state: state.value)
def test_whatever_the_state(state: State, ask: Ask, machine: Machine) -> None:
    """inspect, logs, list, rename, update and a forced removal are answered in every state."""
    bring_to(state, ask, machine)
    assert ask("POST", "/containers/it/rename?name=other")[0] == 204
    assert ask("POST", "/containers/other/rename?name=it")[0] == 204
    assert ask("POST", "/containers/it/update", {"CpuShares": 512})[0] == 200
    assert machine.request("GET", "/containers/it/logs?stdout=1")[0] == 200
    rows = ask("GET", "/containers/json?all=1")[1]
    assert [row["State"] for row in rows] == [state.value]
    assert ask("DELETE", "/containers/it?force=1")[0] == 204
    assert ask("GET", "/containers/json?all=1")[1] == []


@pytest.mark.parametrize("state", STATES[:-1], ids=lambda state: state.value)
def test_restart(state: State, ask: Ask, machine: Machine) -> None:
    """`restart` runs it again from any state, with another process."""
    bring_to(state, ask, machine)
    before = ask("GET", "/containers/it/json")[1]["State"]
    assert ask("POST", "/containers/it/restart")[0] == 204
    after = ask("GET", "/containers/it/json")[1]["State"]
    assert after["StartedAt"] != before["StartedAt"]
    if state is not State.RESTARTING:
        assert after["Running"] and not after["Paused"] and after["Pid"] != before["Pid"]


@pytest.mark.parametrize("state", [State.CREATED, State.EXITED], ids=lambda state: state.value)
def test_wait_returns_at_once_when_it_does_not_run(state: State, ask: Ask, machine: Machine) -> None:
    bring_to(state, ask, machine)
    code = 0 if state is State.CREATED else 137
    assert ask("POST", "/containers/it/wait") == (200, {"StatusCode": code})


def test_wait_tells_why_it_did_not_start(ask: Ask, machine: Machine) -> None:
    ask("POST", "/containers/create?name=it", {**SLEEPS, "Cmd": ["/nope"]})
    ask("POST", "/containers/it/start")
    state = ask("GET", "/containers/it/json")[1]["State"]
    assert 'exec: "/nope"' in state["Error"]
    told = {"StatusCode": 127, "Error": {"Message": state["Error"]}}
    assert ask("POST", "/containers/it/wait") == (200, told)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="chattr is not installed (e2fsprogs)")
@pytest.mark.parametrize("by_itself", [False, True], ids=["rm", "--rm"])
@pytest.mark.parametrize("condition", ["removed", "next-exit"])
def test_a_removal_that_fails_is_told_to_who_waits_for_it(
    condition: str, by_itself: bool, ask: Ask, machine: Machine
) -> None:
    """With dockerd's words, status and state; and the next attempt may succeed."""
    wanted = {
        "Image": "busybox",
        "Cmd": ["sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 4"],
        "HostConfig": {"AutoRemove": by_itself},
    }
    made = ask("POST", "/containers/create?name=it", wanted)[1]["Id"]
    ask("POST", "/containers/it/start")
    go = Path(f"/proc/{ask('GET', '/containers/it/json')[1]['State']['Pid']}/root/go")
    if not by_itself:
        go.touch()
        until(ask, lambda seen: seen["State"]["Status"] == "exited")
    hold(machine, made, "+i")
    try:
        waiting = UnixConnection(str(machine.socket))
        waiting.request("POST", f"/containers/it/wait?condition={condition}")
        response = waiting.getresponse()  # the waiter stands
        if by_itself:
            go.touch()
            until(ask, lambda seen: seen["State"]["Status"] == "dead")
        else:
            status, refusal = ask("DELETE", "/containers/it")
            assert status == 500 and refusal["message"].startswith(
                f"unable to remove filesystem for {made}: "
            )
        state = ask("GET", "/containers/it/json")[1]["State"]
        told = {"StatusCode": 4, "Error": {"Message": state["Error"]}}
        answer = json.loads(response.read())
        waiting.close()
    finally:
        hold(machine, made, "-i")

    assert state["Dead"] and state["Error"].startswith(f"unable to remove filesystem for {made}: ")
    # its end is that of a run, which comes before the removal
    assert answer == ({"StatusCode": 4} if by_itself and condition == "next-exit" else told)
    assert ask("POST", "/containers/it/wait") == (200, told)
    assert ask("DELETE", "/containers/it")[0] == 204


def test_a_signal_to_a_frozen_container(ask: Ask, machine: Machine) -> None:
    """Any signal thaws it when it has no stop signal of its own, as in dockerd."""
    bring_to(State.PAUSED, ask, machine)
    assert ask("POST", "/containers/it/kill?signal=WINCH")[0] == 204
    assert ask("GET", "/containers/it/json")[1]["State"]["Status"] == "running"
