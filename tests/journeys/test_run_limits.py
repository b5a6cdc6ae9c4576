"""Flags of `run` about resources: the cgroup's files looked at from outside, what they do from inside; a warning where the host cannot."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import needs_root

from ketch_testing.clients import Client
from ketch_testing.machine import Machine
from ketch_testing.waiting import until
from ketchd.kernel.cgrouplimits import cpu_weight, io_weight
from ketchd.kernel.cgroups import Cgroups

pytestmark = [needs_root, pytest.mark.root]
CGROUPS = Cgroups.detect(type("Log", (), {"warning": staticmethod(lambda *a, **k: None)}))
MB = 1024 * 1024


def running(client: Client, *options: str) -> tuple[str, str]:
    """A container that sleeps: (its id, what the client warned of)."""
    done = client.machine.run(client.program, "run", "-d", *options, "busybox", "sleep", "3600")
    return done.stdout.strip(), done.stderr


def file_of(container: str, version1: str, version2: str) -> str:
    """A file's content in the container's cgroup."""
    relative = version1 if CGROUPS.version == 1 else version2
    plan = CGROUPS.plan(container, "/docker", {})
    for directory in plan.join:
        controller, _, name = relative.rpartition("/")
        hierarchy = directory.removeprefix("/sys/fs/cgroup/").split("/", 1)[0].split(",")
        if (not controller or controller in hierarchy) and os.path.exists(f"{directory}/{name}"):
            return Path(directory, name).read_text().strip()
    raise AssertionError(f"no {relative} of {container}")


def has(version1: str, version2: str) -> bool:
    """Whether this host can set the limit."""
    return CGROUPS.has(version1 if CGROUPS.version == 1 else version2)


def test_memory(client: Client) -> None:
    """--memory, --memory-swap, --memory-reservation."""
    container, warned = running(
        client, "--memory", "32m", "--memory-swap", "48m", "--memory-reservation", "16m"
    )
    if not has("memory/memory.limit_in_bytes", "memory.max"):
        assert "Your kernel does not support memory limit capabilities" in warned
        return
    assert file_of(container, "memory/memory.limit_in_bytes", "memory.max") == str(32 * MB)
    assert file_of(container, "memory/memory.soft_limit_in_bytes", "memory.low") == str(16 * MB)
    if has("memory/memory.memsw.limit_in_bytes", "memory.swap.max"):
        total = 48 if CGROUPS.version == 1 else 16
        assert file_of(container, "memory/memory.memsw.limit_in_bytes", "memory.swap.max") == str(total * MB)
        assert warned == ""
    else:
        assert "Your kernel does not support swap limit capabilities or the cgroup is not mounted" in warned
    host = client.inspect(container)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["MemoryReservation"]) == (32 * MB, 48 * MB, 16 * MB)


def test_swap_is_twice_the_memory(client: Client) -> None:
    """Without --memory-swap; -1 is without limit."""
    container, _ = running(client, "--memory", "32m")
    assert client.inspect(container)["HostConfig"]["MemorySwap"] == 64 * MB
    container, _ = running(client, "--memory", "32m", "--memory-swap", "-1")
    assert client.inspect(container)["HostConfig"]["MemorySwap"] == -1


def test_swappiness(client: Client) -> None:
    """--memory-swappiness, which version 2 has not."""
    container, warned = running(client, "--memory-swappiness", "7")
    if CGROUPS.version == 1 and has("memory/memory.swappiness", ""):
        assert file_of(container, "memory/memory.swappiness", "") == "7"
        client.machine.json(
            "POST", f"/containers/{container}/update", {"MemorySwappiness": 0, "CpuShares": 77}
        )
        assert file_of(container, "memory/memory.swappiness", "") == "7"
        host = client.inspect(container)["HostConfig"]
        assert (host["MemorySwappiness"], host["CpuShares"]) == (7, 77)
    else:
        assert "does not support memory swappiness capabilities" in warned
    for wrong in (-2, 101):
        status, answer = client.machine.request(
            "POST", f"/containers/{container}/update", {"MemorySwappiness": wrong}
        )
        words = f"Invalid value: {wrong}, valid memory swappiness range is 0-100"
        assert (status, json.loads(answer)) == (400, {"message": words})


def test_out_of_memory(client: Client, machine: Machine) -> None:
    """A container that eats more than it may: 137, OOMKilled, an `oom` event before its `die`."""
    if not has("memory/memory.limit_in_bytes", "memory.max"):
        pytest.skip("the host has no memory cgroup that we may use")
    client(
        "run", "--name", "eater", "--memory", "16m", "--memory-swap", "16m", "busybox", "sh", "-c",
        "exec tail /dev/zero", code=137,
    )  # fmt: skip
    state = client.inspect("eater")["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
    status, answer = machine.request("GET", _events("eater"))
    assert status == 200
    actions = [json.loads(line)["Action"] for line in answer.splitlines() if line.strip()]
    assert actions.index("oom") < actions.index("die")
    client("start", "eater")
    client("wait", "eater")
    client("run", "--name", "modest", "--memory", "16m", "busybox", "true")
    assert client.inspect("modest")["State"]["OOMKilled"] is False


# Memory in the shell's children: the one that outgrows it is killed, the container's first process is not.
_GROW = "awk 'BEGIN { s = \"x\"; while (1) s = s s }'"


def _ooms(client: Client, name: str) -> int:
    status, answer = client.machine.request("GET", _events(client.inspect(name)["Id"]))
    assert status == 200
    actions = [json.loads(line)["Action"] for line in answer.splitlines() if line.strip()]
    return actions.count("oom")


def _growing(client: Client, name: str, *options: str) -> Path:
    """A container that outgrows its memory each time that the returned file is made, and notes so by removing it."""
    if not has("memory/memory.limit_in_bytes", "memory.max"):
        pytest.skip("the host has no memory cgroup that we may use")
    script = f"while :; do if [ -e /go ]; then {_GROW}; rm /go; fi; sleep 0.02; done"
    client("run", "-d", "--name", name, "--memory", "16m", "--memory-swap", "16m", *options, "busybox", "sh", "-c", script)  # fmt: skip
    return Path(f"/proc/{client.inspect(name)['State']['Pid']}/root/go")


def test_out_of_memory_is_told_while_the_container_runs_on(client: Client) -> None:
    """One `oom` for each time, none with the end; OOMKilled is the end's, whatever its code, as in dockerd."""
    go = _growing(client, "survivor")
    for times in (1, 2):
        go.touch()
        until(lambda: not go.exists())
        until(lambda times=times: _ooms(client, "survivor") == times)  # type: ignore[misc]
    assert client.inspect("survivor")["State"]["OOMKilled"] is False

    client("stop", "-t", "0", "survivor")

    assert _ooms(client, "survivor") == 2
    assert client.inspect("survivor")["State"]["OOMKilled"] is True
    client("start", "survivor")
    assert client.inspect("survivor")["State"]["OOMKilled"] is False
    client("kill", "survivor")
    client("wait", "survivor")
    assert client.inspect("survivor")["State"]["OOMKilled"] is False
    assert _ooms(client, "survivor") == 2


def test_out_of_memory_while_no_ketchd_runs(client: Client, machine: Machine) -> None:
    """After kill -9: what was told is not told again, what came meanwhile is told once, what comes later as ever."""
    go = _growing(client, "survivor")
    go.touch()
    until(lambda: _ooms(client, "survivor") == 1 and not go.exists())
    machine.kill()
    machine.start()
    assert _ooms(client, "survivor") == 1
    machine.kill()
    go.touch()
    until(lambda: not go.exists())
    machine.start()
    assert _ooms(client, "survivor") == 2
    go.touch()
    until(lambda: _ooms(client, "survivor") == 3)
    until(lambda: not go.exists())
    machine.kill()
    go.touch()
    until(lambda: not go.exists())
    os.kill(int(go.parent.parent.name), signal.SIGKILL)
    until(lambda: not go.parent.exists())
    machine.start()

    assert _ooms(client, "survivor") == 4
    state = client.inspect("survivor")["State"]
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 137, True)


def test_out_of_memory_with_the_killer_switched_off(client: Client) -> None:
    """--oom-kill-disable: told when the container stands still for want of memory, and again when it has tried in vain."""
    if CGROUPS.version != 1 or not has("memory/memory.oom_control", ""):
        pytest.skip("the host has no version 1 memory cgroup that we may use")
    go = _growing(client, "still", "--oom-kill-disable")
    container = client.inspect("still")["Id"]
    go.touch()
    until(lambda: _ooms(client, "still") >= 1)
    until(lambda: "under_oom 1" in file_of(container, "memory/memory.oom_control", ""))
    assert client.inspect("still")["State"]["Running"] is True

    client("kill", "still")
    client("wait", "still")

    assert _ooms(client, "still") >= 1
    assert client.inspect("still")["State"]["OOMKilled"] is True


def _events(name: str) -> str:
    return (
        f"/events?since=0&until={time.time() + 0.001:.6f}&filters={quote(json.dumps({'container': [name]}))}"
    )


def test_cpu(client: Client) -> None:
    """--cpu-shares, --cpu-period with --cpu-quota, --cpus, --cpuset-cpus."""
    container, _ = running(
        client, "--cpu-shares", "512", "--cpu-period", "50000", "--cpu-quota", "25000", "--cpuset-cpus", "0"
    )
    weight = file_of(container, "cpu/cpu.shares", "cpu.weight")
    assert weight == ("512" if CGROUPS.version == 1 else str(cpu_weight(512)))
    if CGROUPS.version == 1:
        assert file_of(container, "cpu/cpu.cfs_quota_us", "") == "25000"
        assert file_of(container, "cpu/cpu.cfs_period_us", "") == "50000"
    else:
        assert file_of(container, "", "cpu.max") == "25000 50000"
    assert file_of(container, "cpuset/cpuset.cpus", "cpuset.cpus") == "0"
    assert (
        client("exec", container, "sh", "-c", "grep Cpus_allowed_list /proc/self/status")
        == "Cpus_allowed_list:\t0\n"
    )
    container, _ = running(client, "--cpus", "0.5")
    wanted = "50000" if CGROUPS.version == 1 else "50000 100000"
    assert file_of(container, "cpu/cpu.cfs_quota_us", "cpu.max") == wanted


def test_cpu_shares_out_of_range(client: Client) -> None:
    """Version 1 has 2 to 262144: a start and an update beyond them fail in runc's words. Version 2 takes the nearest weight."""
    if CGROUPS.version != 1 or not CGROUPS.has("cpu/cpu.shares"):
        container, _ = running(client, "--cpu-shares", "1")
        assert client.inspect(container)["State"]["Running"] is True
        return
    for shares, words in (
        ("1", "minimum allowed cpu-shares is 2"),
        ("262145", "maximum allowed cpu-shares is 262144"),
    ):
        name = f"shares{shares}"
        said = client.says("run", "--name", name, "--cpu-shares", shares, "busybox", "true", code=125)
        assert (
            f"error during container init: error setting cgroup config for procHooks process: the {words}: unknown"
            in said
        )
        state = client.inspect(name)["State"]
        assert (state["Status"], state["ExitCode"]) == ("created", 128) and words in state["Error"]
    for shares in ("2", "262144"):
        container, _ = running(client, "--cpu-shares", shares)
        assert file_of(container, "cpu/cpu.shares", "") == shares
    status, answer = client.machine.request("POST", f"/containers/{container}/update", {"CpuShares": 1})
    assert (status, json.loads(answer)["message"]) == (
        500,
        f"Cannot update container {container}: runc did not terminate successfully: exit status 1: "
        "the minimum allowed cpu-shares is 2\n: unknown",
    )
    assert client.inspect(container)["HostConfig"]["CpuShares"] == 262144
    assert file_of(container, "cpu/cpu.shares", "") == "262144"


def test_pids(client: Client) -> None:
    """--pids-limit: the file, and a fork that is refused."""
    container, _ = running(client, "--pids-limit", "5")
    assert file_of(container, "pids/pids.max", "pids.max") == "5"
    said = client.machine.run(
        client.program, "run", "--rm", "--pids-limit", "4", "busybox", "sh", "-c",
        "for i in 1 2 3 4 5 6; do sleep 5 & done; true", check=False,
    )  # fmt: skip
    assert "can't fork" in said.stderr
    container, _ = running(client, "--pids-limit", "-1")
    assert client.inspect(container)["HostConfig"]["PidsLimit"] is None


def test_blkio_weight(client: Client) -> None:
    """--blkio-weight where the scheduler has weights, a warning elsewhere."""
    container, warned = running(client, "--blkio-weight", "300")
    if CGROUPS.version == 1 and CGROUPS.has("blkio/blkio.weight"):
        assert file_of(container, "blkio/blkio.weight", "") == "300"
    elif CGROUPS.version == 2 and CGROUPS.has("io.weight"):
        assert file_of(container, "", "io.weight") == f"default {io_weight(300)}"
    elif not CGROUPS.has("blkio/blkio.bfq.weight") and not CGROUPS.has("io.bfq.weight"):
        assert (
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
            in warned
        )
        # What is discarded is not shown as a limit either, and an update does not bring it back.
        host = client.inspect(container)["HostConfig"]
        assert (host["BlkioWeight"], host["CpuShares"]) == (0, 0)
        sent = {"BlkioWeight": 400, "CpuShares": 77}
        answer = client.machine.json("POST", f"/containers/{container}/update", sent)
        assert [text for text in answer["Warnings"] if "Weight discarded" in text]
        host = client.inspect(container)["HostConfig"]
        assert (host["BlkioWeight"], host["CpuShares"]) == (0, 77)


def test_ulimit(client: Client) -> None:
    """--ulimit, soft and hard; what the daemon may not raise is lowered to what it has, and the start goes on."""
    got = client.inside(
        "--ulimit", "nofile=100:200", "--ulimit", "core=0", script="ulimit -Sn; ulimit -Hn; ulimit -c"
    )
    assert got == "100\n200\n0"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    seen = int(client.inside("--ulimit", f"nofile={most + 10}:{most + 10}", script="ulimit -Hn"))
    assert seen in (most, most + 10)
    assert "invalid ulimit" in client.says("run", "--ulimit", "shoes=1", "busybox", code=125)


def test_oom_score(client: Client) -> None:
    """--oom-score-adj: raised as asked; below the daemon's own only with privilege."""
    assert client.inside("--oom-score-adj", "321", script="cat /proc/self/oom_score_adj") == "321"
    assert client.inside(script="cat /proc/self/oom_score_adj") == "0"
    seen = client.inside("--oom-score-adj", "-500", script="cat /proc/self/oom_score_adj")
    assert seen in ("0", "-500")


def test_cgroup_parent(client: Client) -> None:
    """--cgroup-parent."""
    container, _ = running(client, "--cgroup-parent", "/ketch-tests-parent")
    try:
        text = Path(f"/proc/{client.inspect(container)['State']['Pid']}/cgroup").read_text()
        assert f"/ketch-tests-parent/{container}" in text
    finally:
        client("rm", "-f", container)


def test_kernel_memory_by_version_of_the_client(machine: Machine) -> None:
    """dockerd's answers: a warning for an old client, and nothing for one to which the field is none."""
    version1 = has("memory/memory.kmem.limit_in_bytes", "none")
    deprecated = "Specifying a kernel memory limit is deprecated and will be removed in a future release."

    def create(version: str, **limits: int) -> tuple[int, Any, Any]:
        wanted = {"Image": "busybox", "Cmd": ["true"], "HostConfig": limits}
        status, answer = machine.request("POST", f"/{version}/containers/create?name=it", wanted)
        shown = None
        if status == 201:
            host = machine.json("GET", f"/{version}/containers/it/json")["HostConfig"]
            shown = {key: value for key, value in host.items() if key.startswith("Kernel")}
        return status, json.loads(answer), shown

    try:
        status, answer, shown = create("v1.41", KernelMemory=8 << 20, KernelMemoryTCP=1 << 20)
        assert status == 201 and answer["Warnings"][0] == deprecated
        assert shown == {"KernelMemoryTCP": 1 << 20, **({"KernelMemory": 8 << 20} if version1 else {})}
        changed = machine.json("POST", "/v1.41/containers/it/update", {"KernelMemory": 16 << 20})
        assert changed["Warnings"][0] == deprecated
        assert machine.json("POST", "/v1.42/containers/it/update", {"KernelMemory": 1})["Warnings"] is None
        machine.request("DELETE", "/containers/it")
        if version1:
            refused = {"message": "Minimum kernel memory limit allowed is 6MB"}
            assert create("v1.41", KernelMemory=3 << 20) == (400, refused, None)
        status, answer, shown = create("v1.42", KernelMemory=3 << 20)
        assert (status, answer["Warnings"], shown) == (201, [], {})
        machine.request("DELETE", "/containers/it")
        status, answer, shown = create("v1.39", KernelMemoryTCP=1 << 20)
        assert (status, answer["Warnings"], shown) == (201, [], {})
    finally:
        machine.request("DELETE", "/containers/it?force=1")
