"""Starts and ends that are cut short: nothing of the first runs on, nothing is told of the second that was not so."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import needs_root

from ketch_testing.clients import Client
from ketch_testing.consistency import cgroups_left, differences
from ketch_testing.machine import Machine, processes_naming

pytestmark = [needs_root, pytest.mark.root]


def actions(machine: Machine, name: str) -> list[str]:
    """The container's events so far."""
    filters = quote(json.dumps({"container": [name], "type": ["container"]}))
    status, answer = machine.request(
        "GET", f"/events?since=0&until={time.time() + 0.001:.6f}&filters={filters}"
    )
    assert status == 200
    return [json.loads(line)["Action"] for line in answer.splitlines() if line.strip()]


def test_a_start_that_cannot_be_recorded_leaves_nothing_that_runs(ketch: Client, machine: Machine) -> None:
    """As on a full disk."""
    machine.stop()
    machine.start(tracepoints="start.running=raise")
    try:
        made = ketch("create", "--name", "full", "busybox", "sleep", "86399").strip()
        assert "start.running" in ketch.says("start", "full", code=1)
        assert ketch.inspect("full")["State"]["Status"] == "created"
        assert processes_naming("86399") == []
        assert cgroups_left({made}) == []
    finally:
        machine.stop()
        machine.start()
    ketch("start", "full")
    assert len(processes_naming("86399")) == 1
    ketch("rm", "-f", "full")
    assert differences(machine) == []


def test_a_killed_start_is_no_run_that_ended_as_the_last_one(ketch: Client, machine: Machine) -> None:
    ketch("run", "--name", "again", "busybox", "sh", "-c", "exit 3", code=3)
    with machine.killed_at("start.leased"):
        machine.run(ketch.program, "start", "again", check=False)

    state = ketch.inspect("again")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
    told = actions(machine, "again")
    assert (told.count("start"), told.count("die")) == (1, 1)


def test_a_killed_pause_is_a_pause(ketch: Client, machine: Machine) -> None:
    """It stands still, so it is shown so, and can be thawed."""
    ketch("run", "-d", "--name", "still", "busybox", "sleep", "3600")
    with machine.killed_at("pause.frozen"):
        machine.run(ketch.program, "pause", "still", check=False)

    assert ketch.inspect("still")["State"]["Status"] == "paused"
    ketch("unpause", "still")
    ketch("exec", "still", "true")
    assert actions(machine, "still")[-6:-3] == ["start", "pause", "unpause"]


@pytest.mark.parametrize(
    ("point", "told"), [("pause.frozen", []), ("layer.staged", ["pause", "unpause"])], ids=["before", "after"]
)
def test_the_pause_of_a_killed_commit_ends_with_it(
    ketch: Client, machine: Machine, point: str, told: list[str]
) -> None:
    """Before it is recorded, and after. A user's own pause stays one."""
    name, users = f"committed-{len(told)}", f"users-{len(told)}"
    for one in (name, users):
        ketch("run", "-d", "--name", one, "busybox", "sh", "-c", "echo 1 >/written; exec sleep 3600")
        ketch("exec", one, "sh", "-c", "until [ -s /written ]; do sleep 0.01; done")
    ketch("commit", users, "committed")
    ketch("pause", users)
    with machine.killed_at(point):
        machine.run(ketch.program, "commit", name, "committed", check=False)

    assert ketch.inspect(name)["State"]["Status"] == "running"
    ketch("exec", name, "true")
    assert [action for action in actions(machine, name) if "pause" in action] == told
    assert ketch.inspect(users)["State"]["Status"] == "paused"


def test_rm_f_of_a_container_with_rm(client: Client) -> None:
    made = client("run", "-d", "--rm", "busybox", "sleep", "3600").strip()
    client("rm", "-f", made)
    assert client("ps", "-aq") == ""


@pytest.mark.parametrize("away", [False, True], ids=["ketchd looks on", "ketchd is away"])
@pytest.mark.parametrize("kind", ["host", "paused"])
def test_nothing_of_a_container_outlives_its_shim(
    ketch: Client, machine: Machine, kind: str, away: bool
) -> None:
    """Its other processes do not die with the first in the host's pid namespace, and a frozen one dies of nothing."""
    options = ("--pid", "host") if kind == "host" else ()
    made = ketch(
        "run", "-d", "--name", "bereft", *options, "busybox", "sh", "-c", "sleep 86398 & sleep 86398"
    ).strip()
    shim = parent(ketch.inspect("bereft")["State"]["Pid"])
    if kind == "paused":
        ketch("pause", "bereft")
    if away:
        machine.kill()
    os.kill(shim, signal.SIGKILL)
    if away:
        machine.start()
    assert machine.json("POST", f"/containers/{made}/wait")["StatusCode"] == 255
    assert [pid for pid in processes_naming("86398") if not is_zombie(pid)] == []
    ketch("rm", "bereft")
    assert cgroups_left({made}) == [] and differences(machine) == []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
