"""stats, top and update of real containers, and the limits looked at from inside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ketch_testing.machine import BIN, Machine, UnixConnection

pytestmark = pytest.mark.root
MIB = 1024 * 1024


@pytest.fixture
def run(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Starts containers named after the test; returns the name."""
    names: list[str] = []

    def make(*command: str, host: dict[str, Any] | None = None, **config: Any) -> str:
        name = f"{request.node.originalname.replace('_', '-')}-{len(names)}"
        names.append(name)
        body = {
            "Image": "busybox",
            "Cmd": list(command),
            "HostConfig": {"NetworkMode": "none", **(host or {})},
            **config,
        }
        machine.json("POST", f"/containers/create?name={name}", body)
        machine.json("POST", f"/containers/{name}/start")
        return name

    yield make
    for name in names:
        machine.request("DELETE", f"/containers/{name}?force=1")


def inside(machine: Machine, name: str, *command: str) -> str:
    """The output of a command in the container."""
    made = machine.json(
        "POST", f"/containers/{name}/exec", {"Cmd": list(command), "AttachStdout": True, "Tty": True}
    )
    status, answer = machine.request("POST", f"/exec/{made['Id']}/start", {"Detach": False, "Tty": True})
    assert status == 200
    return answer.decode().replace("\r\n", "\n")


def test_two_samples_and_one(machine: Machine, run: Callable[..., str]) -> None:
    """stream=0 fills precpu_stats, one-shot does not; the CLI's percentage can be computed."""
    name = run(
        "sh", "-c", "while :; do :; done", host={"Memory": 64 * MIB, "PidsLimit": 20, "NetworkMode": "bridge"}
    )
    shown = machine.json("GET", f"/containers/{name}/stats?stream=0")
    used = shown["cpu_stats"]["cpu_usage"]["total_usage"] - shown["precpu_stats"]["cpu_usage"]["total_usage"]
    passed = shown["cpu_stats"]["system_cpu_usage"] - shown["precpu_stats"]["system_cpu_usage"]
    assert 0 < used <= passed * 1.2 and shown["cpu_stats"]["online_cpus"] > 0
    assert shown["memory_stats"]["limit"] == 64 * MIB and 0 < shown["memory_stats"]["usage"] < 64 * MIB
    assert shown["pids_stats"] == {"current": 1, "limit": 20}
    assert shown["networks"]["eth0"]["rx_packets"] >= 0 and shown["name"] == f"/{name}"
    once = machine.json("GET", f"/containers/{name}/stats?stream=0&one-shot=1")
    assert once["preread"] == "0001-01-01T00:00:00Z" and once["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    status, answer = machine.request("GET", f"/containers/{name}/stats?stream=1&one-shot=1")
    assert status == 400 and b"cannot have stream=true and one-shot=true" in answer


def test_stream_goes_on_in_zeroes_and_ends_with_the_removal(
    machine: Machine, run: Callable[..., str]
) -> None:
    """As dockerd's does."""
    name = run("sleep", "1000")
    connection = UnixConnection(str(machine.socket))
    try:
        connection.request("GET", f"/containers/{name}/stats")
        response = connection.getresponse()
        first, second = (json.loads(response.readline()) for _ in range(2))
        assert first["preread"] == "0001-01-01T00:00:00Z" and second["preread"] == first["read"]
        assert "networks" not in first
        machine.json("POST", f"/containers/{name}/kill")
        stopped = json.loads(response.readline())
        while stopped["memory_stats"]:
            stopped = json.loads(response.readline())
        assert stopped["read"] == "0001-01-01T00:00:00Z"
        machine.request("DELETE", f"/containers/{name}?force=1")
        while response.readline():
            pass
    finally:
        connection.close()


def test_stopped_container(machine: Machine, run: Callable[..., str]) -> None:
    """Zeroes at once; top refuses."""
    name = run("true")
    machine.json("POST", f"/containers/{name}/wait")
    shown = machine.json("GET", f"/containers/{name}/stats?stream=0")
    assert shown["read"] == "0001-01-01T00:00:00Z" and shown["cpu_stats"]["cpu_usage"]["total_usage"] == 0
    status, answer = machine.request("GET", f"/containers/{name}/top")
    assert status == 409 and b"is not running" in answer


def test_top(machine: Machine, run: Callable[..., str]) -> None:
    """Every process of the container and no other, in the columns asked for."""
    name = run("sh", "-c", "sleep 998 & exec sleep 999")
    shown = machine.json("GET", f"/containers/{name}/top")
    assert shown["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    deadline = time.monotonic() + 30
    while sorted(row[-1] for row in shown["Processes"]) != ["sleep 998", "sleep 999"]:
        assert time.monotonic() < deadline, shown
        shown = machine.json("GET", f"/containers/{name}/top")
    assert machine.json("GET", f"/containers/{name}/top?ps_args=aux")["Titles"][0] == "USER"
    pid = machine.json("GET", f"/containers/{name}/json")["State"]["Pid"]
    listed = machine.json("GET", f"/containers/{name}/top?ps_args=-o+pid,comm")
    assert [str(pid), "sleep"] in listed["Processes"]


def test_update_of_a_running_container(machine: Machine, run: Callable[..., str]) -> None:
    """In force at once, shown by inspect, kept over a restart of the container."""
    name = run("sleep", "1000", host={"Memory": 64 * MIB, "MemorySwap": 64 * MIB, "NanoCpus": 500_000_000})
    body = {
        "Memory": 96 * MIB,
        "MemorySwap": 128 * MIB,
        "NanoCpus": 700_000_000,
        "CpusetCpus": "0",
        "PidsLimit": 9,
    }
    assert machine.json("POST", f"/containers/{name}/update", body) == {"Warnings": None}
    assert inside(machine, name, "grep", "Cpus_allowed_list", "/proc/self/status").split() == [
        "Cpus_allowed_list:",
        "0",
    ]
    stats = machine.json("GET", f"/containers/{name}/stats?stream=0&one-shot=1")
    assert stats["memory_stats"]["limit"] == 96 * MIB and stats["pids_stats"]["limit"] == 9
    machine.json("POST", f"/containers/{name}/restart?t=0")
    stats = machine.json("GET", f"/containers/{name}/stats?stream=0&one-shot=1")
    assert stats["memory_stats"]["limit"] == 96 * MIB
    host = machine.json("GET", f"/containers/{name}/json")["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"], host["CpusetCpus"]) == (
        96 * MIB,
        700_000_000,
        9,
        "0",
    )


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"CpusetCpus": "4000"}, 400, "Requested CPUs are not available"),
        ({"Memory": 512 * MIB}, 409, "Memory limit should be smaller than already set memoryswap limit"),
        ({"Memory": 1}, 400, "Minimum memory limit allowed is 6MB"),
        ({"RestartPolicy": {"Name": "sometimes"}}, 400, "invalid restart policy"),
        ({"Memory": "x"}, 400, "into field Memory of type int64"),
    ],
)
def test_refused_updates_change_nothing(
    machine: Machine, run: Callable[..., str], body: dict[str, Any], status: int, words: str
) -> None:
    """dockerd's status and words."""
    name = run("sleep", "1000", host={"Memory": 64 * MIB})
    before = machine.json("GET", f"/containers/{name}/json")["HostConfig"]
    got, answer = machine.request("POST", f"/containers/{name}/update", body)
    assert (got, words in answer.decode()) == (status, True), answer
    assert machine.json("GET", f"/containers/{name}/json")["HostConfig"] == before


def test_restart_policy_of_a_running_container(machine: Machine, run: Callable[..., str]) -> None:
    """The new one decides at the next end."""
    name = run("sleep", "1000")
    machine.json(
        "POST",
        f"/containers/{name}/update",
        {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}},
    )
    shown = machine.json("GET", f"/containers/{name}/json")["HostConfig"]["RestartPolicy"]
    assert shown == {"Name": "on-failure", "MaximumRetryCount": 2}


def test_default_sandbox_from_inside(machine: Machine, run: Callable[..., str]) -> None:
    """Capabilities, the filter, hidden and read-only paths, devices."""
    name = run("sleep", "1000")
    status = inside(machine, name, "grep", "-E", "^(CapEff|CapInh|CapAmb|Seccomp):", "/proc/1/status")
    assert "CapEff:\t00000000a80425fb" in status and "CapInh:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    assert inside(machine, name, "sh", "-c", "cat /proc/keys /proc/timer_list | wc -c").strip() == "0"
    assert "Read-only" in inside(machine, name, "sh", "-c", "echo x > /proc/sys/kernel/hostname")
    assert "permi" in inside(machine, name, "mount", "-t", "tmpfs", "x", "/tmp")
    listed = inside(machine, name, "ls", "/dev").split()
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "stdout"} <= set(listed)
    assert "Operation not permitted" in inside(machine, name, "sh", "-c", "mknod /tmp/k b 7 0 && cat /tmp/k")


def test_device_rules_from_inside(machine: Machine, run: Callable[..., str]) -> None:
    """`--device` and `--device-cgroup-rule`."""
    device = {"PathOnHost": "/dev/full", "PathInContainer": "/dev/brimming", "CgroupPermissions": "r"}
    name = run("sleep", "1000", host={"Devices": [device], "DeviceCgroupRules": ["b 7:* r"]})
    assert inside(machine, name, "stat", "-c", "%t:%T", "/dev/brimming").strip() == "1:7"
    made = inside(machine, name, "sh", "-c", "mknod /tmp/k b 7 0 && head -c 1 /tmp/k >/dev/null && echo read")
    assert made.strip().endswith("read")


@pytest.mark.parametrize(
    ("option", "words"),
    [("seccomp=unconfined", "done"), ('seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":2}]}', "No such file")],
)  # fmt: skip
def test_seccomp_options(machine: Machine, run: Callable[..., str], option: str, words: str) -> None:
    """No filter, and a profile of one's own."""
    name = run("sleep", "1000", host={"SecurityOpt": [option]})
    assert words in inside(machine, name, "sh", "-c", "mkdir /tmp/d && echo done")


def test_memory_limit_kills_and_says_so(machine: Machine, run: Callable[..., str]) -> None:
    """OOMKilled, 137, and the event."""
    name = run("sh", "-c", "tail /dev/zero", host={"Memory": 16 * MIB, "MemorySwap": 16 * MIB})
    assert machine.json("POST", f"/containers/{name}/wait")["StatusCode"] == 137
    assert machine.json("GET", f"/containers/{name}/json")["State"]["OOMKilled"] is True


@pytest.mark.parametrize("more", [("--no-stream",), ()])
def test_stats_of_what_is_not_there(machine: Machine, run: Callable[..., str], more: tuple[str, ...]) -> None:
    """As docker: every fault in the order of the names, and nothing else."""
    name = run("sleep", "1000")
    done = machine.run(str(BIN / "ketch"), "stats", *more, "nosuch2", name, "nosuch1", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error response from daemon: No such container: nosuch2\n"
        "Error response from daemon: No such container: nosuch1\n"
    )
