"""Restart policies on real containers: when each starts again, when not, and what a killed ketchd changes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from conftest import needs_root

from ketch_testing.clients import Client
from ketch_testing.machine import Machine

pytestmark = [needs_root, pytest.mark.root]


def until(client: Client, name: str, holds: Callable[[Any], bool]) -> Any:
    """The container as soon as `holds`."""
    deadline = time.monotonic() + 60
    while not holds(seen := client.machine.json("GET", f"/containers/{name}/json")):
        assert time.monotonic() < deadline, seen["State"]
        time.sleep(0.02)
    return seen


def actions(machine: Machine, name: str) -> list[str]:
    """The container's events so far."""
    filters = quote(json.dumps({"container": [name], "type": ["container"]}))
    until_now = f"{time.time() + 0.001:.6f}"
    status, answer = machine.request("GET", f"/events?since=0&until={until_now}&filters={filters}")
    assert status == 200
    return [json.loads(line)["Action"] for line in answer.splitlines() if line.strip()]


def test_always(client: Client) -> None:
    """Whatever the exit code; `stop` ends it, and a later start begins anew."""
    client("run", "-d", "--name", "again", "--restart", "always", "busybox", "true")
    seen = until(client, "again", lambda it: it["RestartCount"] >= 3)
    assert seen["HostConfig"]["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}
    client("stop", "again")
    seen = client.inspect("again")
    assert seen["State"]["Status"] == "exited" and seen["State"]["Restarting"] is False
    count = seen["RestartCount"]
    time.sleep(0.5)
    assert client.inspect("again")["RestartCount"] == count
    client("start", "again")
    assert until(client, "again", lambda it: it["RestartCount"] == 1)
    client("rm", "-f", "again")


@pytest.mark.parametrize(("code", "wanted"), [(3, 2), (0, 0)])
def test_on_failure(client: Client, code: int, wanted: int) -> None:
    """At most so often, only after a failure; each start by hand has all its tries."""
    made = client("run", "-d", "--restart", "on-failure:2", "busybox", "sh", "-c", f"exit {code}").strip()
    for start in range(1, 4):
        ends = start * (wanted + 1)
        until(client, made, lambda it, ends=ends: actions(client.machine, made).count("die") == ends)  # type: ignore[misc]
        seen = until(client, made, lambda it: it["State"]["Status"] == "exited")
        assert (seen["RestartCount"], seen["State"]["ExitCode"]) == (wanted, code)
        if start < 3:
            client("start", made)
    assert actions(client.machine, made).count("start") == 3 * (wanted + 1)


def test_back_off(ketch: Client) -> None:
    """0.1 s, doubling: the sixth wait is long enough to be seen, and a stop during it is at once."""
    ketch("run", "-d", "--name", "waits", "--restart", "always", "busybox", "false")
    seen = until(ketch, "waits", lambda it: it["RestartCount"] >= 5 and it["State"]["Status"] == "restarting")
    assert seen["State"]["Restarting"] and seen["State"]["Running"] and seen["State"]["ExitCode"] == 1
    ketch("stop", "waits")
    assert ketch.inspect("waits")["State"]["Status"] == "exited"


def test_rm_and_restart_exclude_each_other(client: Client) -> None:
    said = client.says("run", "--rm", "--restart", "always", "busybox", "true", code=125)
    assert "conflicting options: cannot specify both --restart and --rm" in said


def test_killed_by_hand(client: Client) -> None:
    """`kill` is an end by hand; a process that is killed from inside is not."""
    client("run", "-d", "--name", "target", "--restart", "always", "--init", "busybox", "sleep", "3600")
    client(
        "exec",
        "target",
        "sh",
        "-c",
        "kill -9 $(ps | grep '[s]leep 3600' | grep -v init | awk '{print $1}' | tail -1)",
    )
    until(client, "target", lambda it: it["RestartCount"] == 1 and it["State"]["Running"])
    client("kill", "target")
    assert until(client, "target", lambda it: it["State"]["Status"] == "exited")["RestartCount"] == 1


def test_update_takes_the_policy_away(client: Client) -> None:
    client(
        "run", "-d", "--name", "changed", "--restart", "always", "busybox", "sh", "-c", "sleep 0.2; exit 1"
    )
    until(client, "changed", lambda it: it["RestartCount"] >= 1)
    client("update", "--restart", "no", "changed")
    until(client, "changed", lambda it: it["State"]["Status"] == "exited")


def test_after_a_killed_daemon(ketch: Client, machine: Machine) -> None:
    """What ended while ketchd was away is started by its policy; what runs is left alone; what was stopped stays so."""
    script = "while [ ! -e /end ]; do sleep 0.05; done; exit 4"
    names = {"always": "always", "unless": "unless-stopped", "failure": "on-failure:5", "never": "no"}
    pids: dict[str, int] = {}
    for name, policy in names.items():
        ketch("run", "-d", "--name", name, "--restart", policy, "busybox", "sh", "-c", script)
        pids[name] = ketch.inspect(name)["State"]["Pid"]
    ketch("run", "-d", "--name", "lives", "--restart", "always", "busybox", "sleep", "3600")
    ketch("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "3600")
    ketch("stop", "-t", "0", "stopped")
    lives = ketch.inspect("lives")["State"]
    machine.kill()
    for pid in pids.values():
        with open(f"/proc/{pid}/root/end", "w"):
            pass
    deadline = time.monotonic() + 30
    for pid in pids.values():
        while is_running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    machine.start()
    # The file is in the containers' own layers: those that start again end again, and are started again.
    for name in ("always", "unless", "failure"):
        seen = until(ketch, name, lambda it: it["RestartCount"] >= 1)
        assert seen["State"]["ExitCode"] in (0, 4)
    never = ketch.inspect("never")["State"]
    assert (never["Status"], never["ExitCode"]) == ("exited", 4)
    assert ketch.inspect("stopped")["State"]["Status"] == "exited"
    assert ketch.inspect("lives")["State"] == lives


def is_running(pid: int) -> bool:
    """Whether the process has not ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_planned_restart_survives_the_daemon(ketch: Client, machine: Machine) -> None:
    """Killed during a wait, ketchd starts the container again when it is back."""
    ketch("run", "-d", "--name", "planned", "--restart", "always", "busybox", "false")
    until(ketch, "planned", lambda it: it["RestartCount"] >= 4 and it["State"]["Status"] == "restarting")
    starts = actions(machine, "planned").count("start")
    machine.kill()
    machine.start()
    deadline = time.monotonic() + 30
    while actions(machine, "planned").count("start") <= starts:
        assert time.monotonic() < deadline
        time.sleep(0.02)
