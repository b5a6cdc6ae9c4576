"""Resources on cgroup version 2, read in the container itself: limits, their change, OOM, the freezer, the figures of `stats`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ketch_testing.clients import Client
from ketch_testing.service import SCOPE, Service, cgroup_of, shown
from ketchd.kernel.cgrouplimits import cpu_weight, io_weight

MB = 1024 * 1024


def read(ketch: Client, name: str, *files: str) -> dict[str, str]:
    """Files of the container's cgroup as it sees them; those that there are not are left out."""
    script = (
        "cd /sys/fs/cgroup; for f in " + " ".join(files) + '; do [ -e $f ] && echo "$f=$(cat $f)"; done; true'
    )
    return dict(
        line.split("=", 1) for line in ketch("exec", name, "sh", "-c", script).splitlines() if "=" in line
    )


def directory(ketch: Client, name: str) -> Path:
    """The container's cgroup on the host."""
    return Path("/sys/fs/cgroup" + cgroup_of(ketch.inspect(name)["State"]["Pid"]))


def test_limits_from_inside(ketch: Client) -> None:
    """Every limit is in the file that the kernel reads, or the client was warned of it."""
    warned = ketch.warned(
        "run", "-d", "--name", "one", "--memory", "64m", "--memory-swap", "96m", "--memory-reservation", "32m",
        "--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0", "--pids-limit", "50", "--blkio-weight", "500",
        "busybox", "sleep", "3600",
    )  # fmt: skip
    wanted = {
        "memory.max": str(64 * MB), "memory.low": str(32 * MB), "memory.swap.max": str(32 * MB), "cpu.max": "50000 100000",
        "cpu.weight": str(cpu_weight(512)), "cpuset.cpus": "0", "cpuset.cpus.effective": "0", "pids.max": "50",
    }  # fmt: skip

    got = read(ketch, "one", *wanted, "io.weight", "io.bfq.weight")

    weights = {name: got.pop(name).splitlines()[0] for name in ("io.weight", "io.bfq.weight") if name in got}
    assert got == wanted
    if weights:
        assert weights.get("io.bfq.weight", "default 500").split()[-1] == "500"
        assert "io.bfq.weight" in weights or weights["io.weight"] == f"default {io_weight(500)}"
        assert warned == ""
    else:
        assert "does not support Block I/O weight or the cgroup is not mounted. Weight discarded." in warned
        assert warned.count("WARNING") == 1


def test_update(ketch: Client) -> None:
    """Limits of a running container move up and down, in an order that the kernel takes."""
    ketch("run", "-d", "--name", "one", "--memory", "64m", "--memory-swap", "96m", "busybox", "sleep", "3600")
    ketch("update", "--memory", "128m", "--memory-swap", "160m", "--cpus", "1.5", "--pids-limit", "60",
          "--cpu-shares", "2048", "--cpuset-cpus", "0", "one")  # fmt: skip
    files = ("memory.max", "memory.swap.max", "cpu.max", "pids.max", "cpu.weight", "cpuset.cpus")

    assert read(ketch, "one", *files) == {
        "memory.max": str(128 * MB), "memory.swap.max": str(32 * MB), "cpu.max": "150000 100000", "pids.max": "60",
        "cpu.weight": str(cpu_weight(2048)), "cpuset.cpus": "0",
    }  # fmt: skip

    ketch("update", "--memory", "32m", "--memory-swap", "-1", "--pids-limit", "-1", "one")
    assert read(ketch, "one", "memory.max", "memory.swap.max", "pids.max") == {
        "memory.max": str(32 * MB), "memory.swap.max": "max", "pids.max": "max",
    }  # fmt: skip


def test_out_of_memory(service: Service, ketch: Client) -> None:
    """The container is killed, and shown so; neither systemd nor anything else takes it out on its neighbours."""
    ketch("run", "-d", "--name", "neighbour", "busybox", "sleep", "3600")
    daemon = service.pid

    ketch("run", "--name", "eater", "--memory", "16m", "--memory-swap", "16m", "busybox", "sh", "-c",
          "exec tail /dev/zero", code=137)  # fmt: skip

    state = ketch.inspect("eater")["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
    assert ketch.inspect("neighbour")["State"]["Running"] is True
    assert shown("ketchd-containers.scope", "ActiveState") == "active" and service.pid == daemon


def test_out_of_memory_is_told_while_the_container_runs_on(ketch: Client) -> None:
    """Each growth of memory.events' oom_kill is an `oom` at once; the killed process is not the first one."""
    since = f"{time.time():.9f}"
    ketch("run", "-d", "--name", "one", "--memory", "16m", "--memory-swap", "16m", "busybox", "sh", "-c",
          "(tail /dev/zero); sleep 1; (tail /dev/zero); exec sleep 3600")  # fmt: skip

    def ooms() -> int:
        return ketch("events", "--since", since, "--until", f"{time.time():.9f}", "--filter", "container=one",
                     "--filter", "event=oom").count("\n")  # fmt: skip

    deadline = time.monotonic() + 60
    while ooms() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    state = ketch.inspect("one")["State"]
    assert (state["Running"], state["OOMKilled"]) == (True, False)
    ketch("kill", "one")
    ketch("wait", "one")
    assert ooms() == 2 and ketch.inspect("one")["State"]["OOMKilled"] is True


def test_pids_limit(ketch: Client) -> None:
    """fork fails at the limit, inside."""
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done 2>&1; kill $(jobs -p); true"
    done = ketch.machine.run(
        ketch.program, "run", "--rm", "--pids-limit", "4", "busybox", "sh", "-c", script, check=False
    )
    assert "can't fork" in done.stdout + done.stderr


def test_pause(ketch: Client) -> None:
    """cgroup.freeze: no process of it runs until it is thawed; exec waits for nobody but is refused."""
    ketch("run", "-d", "--name", "one", "busybox", "sh", "-c", "while :; do :; done")
    files = directory(ketch, "one")

    def frozen() -> tuple[str, bool]:
        return (files / "cgroup.freeze").read_text().strip(), "frozen 1" in (
            files / "cgroup.events"
        ).read_text()

    assert frozen() == ("0", False)
    ketch("pause", "one")
    assert frozen() == ("1", True) and ketch.inspect("one")["State"]["Status"] == "paused"
    used = (files / "cpu.stat").read_text().splitlines()[0]
    time.sleep(0.3)
    assert (files / "cpu.stat").read_text().splitlines()[0] == used
    assert "is paused" in ketch.says("exec", "one", "true", code=1)
    ketch("unpause", "one")
    assert frozen() == ("0", False) and ketch.inspect("one")["State"]["Status"] == "running"


def _number(path: Path, name: str = "") -> int:
    text = path.read_text()
    return int(
        next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1] if name else text
    )


def test_stats(service: Service, ketch: Client) -> None:
    """Each figure lies between what the kernel said before and after."""
    ketch("run", "-d", "--name", "one", "--memory", "96m", "--pids-limit", "40", "--tmpfs", "/t", "busybox", "sh", "-c",
          "head -c 20000000 /dev/zero >/t/x; sleep 3600 & while :; do :; done")  # fmt: skip
    files = directory(ketch, "one")
    deadline = time.monotonic() + 60
    while _number(files / "memory.stat", "shmem") < 20_000_000 or _number(files / "pids.current") < 2:
        assert time.monotonic() < deadline, "the container has not written its file"
        time.sleep(0.1)
    before = _number(files / "cpu.stat", "usage_usec") * 1000

    shown_: dict[str, Any] = service.json("GET", "/containers/one/stats?stream=0")

    after = _number(files / "cpu.stat", "usage_usec") * 1000
    assert before <= shown_["cpu_stats"]["cpu_usage"]["total_usage"] <= after
    assert (
        shown_["precpu_stats"]["cpu_usage"]["total_usage"] < shown_["cpu_stats"]["cpu_usage"]["total_usage"]
    )
    memory = shown_["memory_stats"]
    assert memory["limit"] == 96 * MB and 20_000_000 <= memory["usage"] <= 96 * MB
    assert memory["stats"]["shmem"] >= 20_000_000
    assert shown_["pids_stats"] == {"current": 2, "limit": 40}
    assert set(shown_["networks"]) == {"eth0"}
    line = ketch("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "one")
    assert "/ 96MiB 2" in line


def test_cgroup_parent(ketch: Client) -> None:
    """--cgroup-parent: a path below the delegated cgroup, whose own limits count for all in it, and which goes with the last."""
    ketch(
        "run",
        "-d",
        "--name",
        "one",
        "--cgroup-parent",
        "/group.slice/inner",
        "--memory",
        "64m",
        "busybox",
        "sleep",
        "3600",
    )
    one = ketch.inspect("one")
    assert directory(ketch, "one") == SCOPE / "group.slice" / "inner" / one["Id"]
    assert read(ketch, "one", "memory.max") == {"memory.max": str(64 * MB)}
    ketch("rm", "-f", "one")
    assert not (SCOPE / "group.slice" / "inner" / one["Id"]).exists()
