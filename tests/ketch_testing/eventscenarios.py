"""Small stories told through the Engine API, and the events that they make, in a form that two engines can be compared by.

Run as a program it records what an engine says: `python -m ketch_testing.eventscenarios SOCKET > tests/golden/events.json`.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ketch_testing.machine import UnixConnection
from ketch_testing.waiting import until

_HEX = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
# Docker 20.10, which the recording was made with, does not have these; 28 does (streams.md).
_NEWER = {("container", "die"): {"execDuration"}}
_COUNTED = frozenset({"reclaimed", "execDuration"})


class Api:
    """One engine behind a unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        raw: bytes | None = None,
        kind: str = "application/json",
    ) -> Any:
        """One request; the JSON answer, or the bytes when it is none. Raises AssertionError on an error status."""
        connection = UnixConnection(self.path)
        try:
            sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
            connection.request(method, path, sent, {"Content-Type": kind} if sent is not None else {})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        assert response.status < 400, f"{method} {path}: {response.status} {answer[:500]!r}"
        try:
            return json.loads(answer)
        except ValueError:
            return answer

    @contextmanager
    def hijacked(self, path: str, body: Any = None) -> Iterator[socket.socket]:
        """A POST that becomes a stream; its answer's head is read."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(self.path)
            content = b"" if body is None else json.dumps(body).encode()
            client.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                + content
            )
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(1)
                assert piece, head
                head += piece
            assert b" 101 " in head.split(b"\r\n", 1)[0], head
            yield client

    def create(self, name: str, *command: str, **more: Any) -> str:
        """A container of busybox."""
        body = {"Image": "busybox", "Cmd": list(command), "StopTimeout": 0, **more}
        return str(self("POST", f"/containers/create?name={name}", body)["Id"])

    def run(self, name: str, *command: str, **more: Any) -> str:
        """The same, started."""
        made = self.create(name, *command, **more)
        self("POST", f"/containers/{made}/start")
        return made

    def wait(self, name: str, condition: str = "not-running") -> None:
        """Until it has ended."""
        self("POST", f"/containers/{name}/wait?condition={condition}")

    def remove(self, name: str, query: str = "force=1&v=1") -> None:
        """rm -f -v."""
        self("DELETE", f"/containers/{name}?{query}")

    def events(self, since: float, until: float) -> list[dict[str, Any]]:
        """What happened from `since` to `until`."""
        answer = self.lines(f"/events?since={since:.9f}&until={until:.9f}")
        return [json.loads(line) for line in answer if line]

    def lines(self, path: str) -> list[bytes]:
        """A GET whose answer is lines."""
        connection = UnixConnection(self.path)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().splitlines()
        except http.client.HTTPException as error:
            raise AssertionError(f"{path}: {error}") from error
        finally:
            connection.close()


def drain(client: socket.socket) -> bytes:
    """Read to the end."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


# The stories. Each cleans up after itself: what it removes is part of it.


def run_detached_and_exit(api: Api) -> None:
    api.run("one", "true")
    api.wait("one")
    api.remove("one")


def run_with_labels_and_failure(api: Api) -> None:
    api.run("lab", "sh", "-c", "exit 7", Labels={"tier": "web", "empty": ""})
    api.wait("lab")
    api.remove("lab")


def run_attached_and_removed_by_itself(api: Api) -> None:
    made = api.create("att", "echo", "hi", HostConfig={"AutoRemove": True}, AttachStdout=True)
    with api.hijacked(f"/containers/{made}/attach?stream=1&stdout=1&stderr=1") as client:
        waiting = UnixConnection(api.path)
        waiting.request("POST", f"/containers/{made}/wait?condition=removed")
        response = waiting.getresponse()
        api("POST", f"/containers/{made}/start")
        drain(client)
        response.read()
        waiting.close()


def stop_with_its_signal(api: Api) -> None:
    api.run("stp", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.01; done", StopTimeout=10)
    time.sleep(0.5)
    api("POST", "/containers/stp/stop")
    api.remove("stp")


def stop_by_force(api: Api) -> None:
    api.run("frc", "sleep", "100")
    api("POST", "/containers/frc/stop?t=0")
    api.remove("frc")


def kill(api: Api) -> None:
    api.run("kll", "sleep", "100")
    api("POST", "/containers/kll/kill")
    api.wait("kll")
    api.remove("kll")


def kill_with_another_signal(api: Api) -> None:
    api.run("usr", "sh", "-c", "trap : USR1; while :; do sleep 0.01; done")
    time.sleep(0.3)
    api("POST", "/containers/usr/kill?signal=USR1")
    api.remove("usr")


def restart(api: Api) -> None:
    api.run("rst", "sleep", "100")
    api("POST", "/containers/rst/restart?t=0")
    api.remove("rst")


def restart_of_a_stopped_one(api: Api) -> None:
    api.run("rs2", "true")
    api.wait("rs2")
    api("POST", "/containers/rs2/restart?t=0")
    api.wait("rs2")
    api.remove("rs2")


def restart_by_policy(api: Api) -> None:
    policy = {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}}
    api.run("pol", "sh", "-c", "exit 5", HostConfig=policy)
    deadline = time.monotonic() + 30
    while True:
        state = api("GET", "/containers/pol/json")
        if (
            state["RestartCount"] == 2
            and state["State"]["Status"] == "exited"
            and state["State"]["ExitCode"] == 5
        ):
            break
        assert time.monotonic() < deadline, state["State"]
        time.sleep(0.05)
    api.remove("pol")


def start_that_fails(api: Api) -> None:
    api.create("bad", "/nope")
    try:
        api("POST", "/containers/bad/start")
    except AssertionError:
        pass
    api.remove("bad")


def pause_and_unpause(api: Api) -> None:
    api.run("pse", "sleep", "100")
    api("POST", "/containers/pse/pause")
    api("POST", "/containers/pse/unpause")
    api.remove("pse")


_QUIET = {"NetworkMode": "none"}
_TRAPS = "trap 'exit 3' TERM; trap : USR1; while :; do sleep 0.01; done"


def _run_paused(api: Api, name: str, script: str, **more: Any) -> None:
    """A container that has set its traps before it is frozen."""
    host = {**_QUIET, **more.pop("HostConfig", {})}
    made = api.create(name, "sh", "-c", script, HostConfig=host, Tty=True, **more)
    with api.hijacked(f"/containers/{made}/attach?stream=1&stdout=1") as client:
        api("POST", f"/containers/{made}/start")
        client.recv(1)
    api("POST", f"/containers/{made}/pause")


def paused_and_stopped(api: Api) -> None:
    _run_paused(api, "pst", f"echo x; {_TRAPS}", StopTimeout=10)
    api("POST", "/containers/pst/stop")
    api.remove("pst")


def paused_and_stopped_by_force(api: Api) -> None:
    _run_paused(api, "psf", "trap : TERM; echo x; while :; do sleep 0.01; done")
    api("POST", "/containers/psf/stop?t=1")
    api.remove("psf")


def paused_and_killed(api: Api) -> None:
    _run_paused(api, "pkl", "echo x; sleep 100", HostConfig={"RestartPolicy": {"Name": "always"}})
    api("POST", "/containers/pkl/kill")
    api.wait("pkl")
    api.remove("pkl")


def paused_and_sent_a_signal(api: Api) -> None:
    _run_paused(api, "psg", f"echo x; {_TRAPS}")
    api("POST", "/containers/psg/kill?signal=USR1")
    until(lambda: not api("GET", "/containers/psg/json")["State"]["Paused"])
    api.remove("psg")


def paused_and_sent_another_than_its_stop_signal(api: Api) -> None:
    _run_paused(api, "pan", f"echo x; {_TRAPS}", StopSignal="USR2")
    api("POST", "/containers/pan/kill?signal=USR1")
    assert api("GET", "/containers/pan/json")["State"]["Paused"]
    api("POST", "/containers/pan/unpause")
    api.remove("pan")


def paused_and_restarted(api: Api) -> None:
    _run_paused(api, "prs", f"echo x; {_TRAPS}", StopTimeout=10)
    api("POST", "/containers/prs/restart")
    api.remove("prs")


def paused_and_removed(api: Api) -> None:
    _run_paused(api, "prm", "echo x; sleep 100")
    api.remove("prm")


def stopped_and_removed_by_itself(api: Api) -> None:
    _run_paused(api, "srm", f"echo x; {_TRAPS}", StopTimeout=10, HostConfig={"AutoRemove": True})
    api("POST", "/containers/srm/unpause")
    waiting = UnixConnection(api.path)
    waiting.request("POST", "/containers/srm/wait?condition=removed")
    response = waiting.getresponse()
    api("POST", "/containers/srm/stop")
    response.read()
    waiting.close()


def rename_and_update(api: Api) -> None:
    api.run("old", "sleep", "100")
    api("POST", "/containers/old/rename?name=new")
    api("POST", "/containers/new/update", {"CpuShares": 512})
    api.remove("new")


def execs(api: Api) -> None:
    api.run("exe", "sleep", "100")
    made = api("POST", "/containers/exe/exec", {"Cmd": ["sh", "-c", "exit 4"], "AttachStdout": True})["Id"]
    with api.hijacked(f"/exec/{made}/start", {"Detach": False}) as client:
        drain(client)
    made = api("POST", "/containers/exe/exec", {"Cmd": ["true"]})["Id"]
    api("POST", f"/exec/{made}/start", {"Detach": True})
    until(lambda: not api("GET", f"/exec/{made}/json")["Running"])
    api.remove("exe")


def exec_that_cannot_start(api: Api) -> None:
    api.run("exn", "sleep", "100")
    made = api("POST", "/containers/exn/exec", {"Cmd": ["nope"], "AttachStdout": True})["Id"]
    with api.hijacked(f"/exec/{made}/start", {"Detach": False}) as client:
        drain(client)
    api.remove("exn")


def exec_detached_by_keys(api: Api) -> None:
    api.run("exd", "sleep", "100")
    wanted = {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True, "Tty": True}
    made = api("POST", "/containers/exd/exec", wanted)["Id"]
    with api.hijacked(f"/exec/{made}/start", {"Detach": False, "Tty": True}) as client:
        client.sendall(b"a\n")
        client.recv(100)
        time.sleep(0.3)
        client.sendall(b"\x10\x11")
        drain(client)
    api.remove("exd")


def attach_detach_and_resize(api: Api) -> None:
    made = api.run("tty", "cat", Tty=True, OpenStdin=True)
    with api.hijacked(f"/containers/{made}/attach?stream=1&stdin=1&stdout=1") as client:
        api("POST", f"/containers/{made}/resize?h=20&w=70")
        client.sendall(b"a\r")
        client.recv(100)
        client.sendall(b"\x10\x11")
        drain(client)
    api.remove("tty")


def top_export_copy_and_commit(api: Api) -> None:
    api.run("cpy", "sleep", "100")
    api("GET", "/containers/cpy/top")
    api("GET", "/containers/cpy/archive?path=/etc/passwd")
    archive = api("GET", "/containers/cpy/archive?path=/etc/group")
    api("PUT", "/containers/cpy/archive?path=/tmp", raw=archive, kind="application/x-tar")
    api("GET", "/containers/cpy/export")
    api("POST", "/commit?container=cpy&repo=made&tag=1&comment=why")
    api.remove("cpy")
    api("DELETE", "/images/made:1")


def volumes(api: Api) -> None:
    api("POST", "/volumes/create", {"Name": "vol"})
    api.run(
        "vls",
        "true",
        HostConfig={"Binds": ["vol:/data", "/tmp:/host:ro", "made:/made:ro"]},
        Volumes={"/anon": {}},
    )
    api.wait("vls")
    api.remove("vls")
    api("DELETE", "/volumes/vol")
    api("DELETE", "/volumes/made")


def networks(api: Api) -> None:
    api("POST", "/networks/create", {"Name": "net", "IPAM": {"Config": [{"Subnet": "10.214.9.0/24"}]}})
    api.run("nwk", "sleep", "100")
    api("POST", "/networks/net/connect", {"Container": "nwk"})
    api("POST", "/networks/net/disconnect", {"Container": "nwk"})
    api.remove("nwk")
    api("DELETE", "/networks/net")


def no_network_and_the_hosts(api: Api) -> None:
    api.run("non", "true", HostConfig={"NetworkMode": "none"})
    api.wait("non")
    api.remove("non")
    api.run("hst", "true", HostConfig={"NetworkMode": "host"})
    api.wait("hst")
    api.remove("hst")


def remove_of_a_running_one(api: Api) -> None:
    api.run("rmf", "sleep", "100")
    api.remove("rmf")


def remove_of_one_that_never_ran(api: Api) -> None:
    api.create("nvr", "true")
    api.remove("nvr", "")


def prunes(api: Api) -> None:
    api.run("prn", "true", Labels={"prune-me": ""})
    api.wait("prn")
    chosen = urllib.parse.quote(json.dumps({"label": ["prune-me"]}))
    api("POST", f"/containers/prune?filters={chosen}")
    api("POST", f"/networks/prune?filters={chosen}")
    api("POST", f"/images/prune?filters={chosen}")
    api("POST", f"/volumes/prune?filters={chosen}")


def image_names(api: Api) -> None:
    api("POST", "/images/busybox/tag?repo=again&tag=x")
    api("DELETE", "/images/again:x")


def image_save_load_and_import(api: Api) -> None:
    archive = api("GET", "/containers/json?all=1") and b""
    api.create("imp", "true")
    archive = api("GET", "/containers/imp/export")
    api.remove("imp", "")
    api("POST", "/images/create?fromSrc=-&repo=came&tag=in", raw=archive, kind="application/x-tar")
    saved = api("GET", "/images/came:in/get")
    api("DELETE", "/images/came:in")
    api("POST", "/images/load?quiet=1", raw=saved, kind="application/x-tar")
    api("DELETE", "/images/came:in")


def out_of_memory(api: Api) -> None:
    api.run(
        "oom", "sh", "-c", "head -c 200000000 /dev/zero | tail",
        HostConfig={"Memory": 20 << 20, "MemorySwap": 20 << 20},
    )  # fmt: skip
    api.wait("oom")
    api.remove("oom")


def health(api: Api) -> None:
    second = 1_000_000_000
    check = {"Test": ["CMD", "true"], "Interval": 3600 * second, "StartPeriod": 0}
    api.run("hlt", "sleep", "100", Healthcheck={**check, "Interval": second})
    until(lambda: api("GET", "/containers/hlt/json")["State"]["Health"]["Status"] == "healthy")
    api("POST", "/containers/hlt/pause")
    api("POST", "/containers/hlt/unpause")
    api.remove("hlt")


SCENARIOS: dict[str, Callable[[Api], None]] = {
    one.__name__: one
    for one in (
        run_detached_and_exit, run_with_labels_and_failure, run_attached_and_removed_by_itself, stop_with_its_signal,
        stop_by_force, kill, kill_with_another_signal, restart, restart_of_a_stopped_one, restart_by_policy,
        start_that_fails, pause_and_unpause, paused_and_stopped, paused_and_stopped_by_force, paused_and_killed,
        paused_and_sent_a_signal, paused_and_sent_another_than_its_stop_signal, paused_and_restarted, paused_and_removed,
        stopped_and_removed_by_itself, rename_and_update, execs, exec_that_cannot_start, exec_detached_by_keys,
        attach_detach_and_resize, top_export_copy_and_commit, volumes, networks, no_network_and_the_hosts,
        remove_of_a_running_one, remove_of_one_that_never_ran, prunes, image_names, image_save_load_and_import,
        out_of_memory, health,
    )
}  # fmt: skip


def tell(api: Api, scenario: Callable[[Api], None]) -> list[str]:
    """Its events, one line each, with names for what differs from run to run."""
    since = time.time()
    scenario(api)
    time.sleep(0.3)  # an engine tells some events a moment after it has answered
    return normalised(api.events(since, time.time()))


def normalised(events: list[dict[str, Any]]) -> list[str]:
    """IDs as `<1>`, `<2>` in the order of their first appearance; counts as `#`; attributes sorted."""
    known: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        return known.setdefault(match[0].removeprefix("sha256:"), f"<{len(known) + 1}>")

    lines = []
    for event in events:
        newer = _NEWER.get((event["Type"], event["Action"]), set())
        shown = [event["Type"], _HEX.sub(name, event["Action"]), _HEX.sub(name, event["Actor"]["ID"] or "-")]
        for key, value in sorted((event["Actor"]["Attributes"] or {}).items()):
            if key not in newer:
                shown.append(f"{key}={'#' if key in _COUNTED else _HEX.sub(name, value)}")
        legacy = [key for key in ("status", "id", "from") if key in event]
        lines.append(" ".join([*shown, f"({','.join(legacy)})"]))
    return lines


if __name__ == "__main__":
    engine = Api(sys.argv[1])
    chosen = sys.argv[2:] or list(SCENARIOS)
    json.dump({one: tell(engine, SCENARIOS[one]) for one in chosen}, sys.stdout, indent=1)
    print()
