"""Events: the sequences that dockerd tells of the same stories, and a journal without gaps, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.eventscenarios import SCENARIOS, Api, tell
from ketch_testing.machine import Machine, UnixConnection, running
from ketch_testing.waiting import until

pytestmark = [needs_root, pytest.mark.root]

# Made with Debian's dockerd: python -m ketch_testing.eventscenarios SOCKET
RECORDED: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "events" / "dockerd-20.10.json").read_text()
)
# Told by dockerd 28's documentation and code, and not to be recorded here: its exec ends with its terminal's client.
RECORDED["exec_detached_by_keys"] = [
    "container create <1> image=busybox name=exd (status,id,from)",
    "network connect <2> container=<1> name=bridge type=bridge ()",
    "container start <1> image=busybox name=exd (status,id,from)",
    "container exec_create: cat  <1> execID=<3> image=busybox name=exd (status,id,from)",
    "container exec_start: cat  <1> execID=<3> image=busybox name=exd (status,id,from)",
    "container exec_detach <1> execID=<3> image=busybox name=exd (status,id,from)",
    "container kill <1> image=busybox name=exd signal=9 (status,id,from)",
    "container exec_die <1> execID=<3> exitCode=137 image=busybox name=exd (status,id,from)",
    "container die <1> exitCode=137 image=busybox name=exd (status,id,from)",
    "network disconnect <2> container=<1> name=bridge type=bridge ()",
    "container destroy <1> image=busybox name=exd (status,id,from)",
]
# Story, line, by how many places it moves (None: it is left out), and why ours is not 20.10's.
DIFFERENCES: list[tuple[str, str, int | None, str]] = [
    ("top_export_copy_and_commit", "container unpause", -2, "it is thawed when its files are read, not when the image stands"),
    ("volumes", "volume create vol", None, "20.10 tells it again of a volume that exists; 28 does not"),
    ("volumes", "container destroy", -1, "28 removes the volumes after their container, 20.10 before"),
    ("networks", "network disconnect <1>", None, "dockerd tells one disconnect twice"),
]  # fmt: skip


@pytest.fixture
def api(machine: Machine) -> Api:
    return Api(str(machine.socket))


def expected(story: str) -> list[str]:
    """The recording with the differences applied."""
    lines = list(RECORDED[story])
    for where, beginning, places, _ in DIFFERENCES:
        if where == story:
            at = next(at for at, line in enumerate(lines) if line.startswith(beginning))
            line = lines.pop(at)
            if places is not None:
                lines.insert(at + places, line)
    return without_map_order(lines)


def without_map_order(lines: list[str]) -> list[str]:
    """dockerd tells of several volumes in the order of a Go map, which is none."""
    ordered: list[str] = []
    group: list[str] = []
    for line in [*lines, ""]:
        verb = " ".join(line.split()[:2])
        if group and verb != " ".join(group[0].split()[:2]):
            ordered += sorted(group)
            group = []
        if verb in ("volume mount", "volume unmount"):
            group.append(line)
        else:
            ordered.append(line)
    return ordered[:-1]


@pytest.mark.parametrize("story", list(SCENARIOS))
def test_the_sequence_is_dockerds(api: Api, story: str) -> None:
    assert without_map_order(tell(api, SCENARIOS[story])) == expected(story)


def test_die_says_how_long_it_ran(api: Api) -> None:
    """Newer than the recording."""
    since = time.time()
    api.run("die", "true")
    api.wait("die")
    api.remove("die")

    (died,) = [one for one in api.events(since, time.time()) if one["Action"] == "die"]
    assert died["Actor"]["Attributes"]["execDuration"] == "0"
    assert died["time"] == died["timeNano"] // 1_000_000_000 and died["scope"] == "local"


# Filters: what each shows of one story, as dockerd showed it.
SHOWN = [
    ({"container": ["filterme"]}, "container:create container:start container:die container:destroy"),
    ({"container": ["filt"]}, "container:create container:start container:die container:destroy image:tag"),
    ({"container": ["nope"]}, ""),
    ({"network": ["bridge"]}, "network:connect network:disconnect"),
    ({"network": ["bri"]}, "network:connect network:disconnect"),
    ({"volume": ["fvol"]}, "volume:create volume:mount volume:unmount volume:destroy"),
    ({"image": ["busybox"]}, "container:create container:start container:die container:destroy"),
    ({"image": ["busybox:latest"]}, ""),
    ({"image": ["filtagain"]}, "image:tag"),
    ({"label": ["k", "n"]}, "container:create container:start container:die container:destroy"),
    ({"label": ["k=v"], "event": ["die"]}, "container:die"),
    ({"label": ["k=x"]}, ""),
    ({"type": ["container"], "event": ["die"]}, "container:die"),
    ({"event": ["create", "die"]}, "volume:create container:create container:die"),
    ({"scope": ["swarm"]}, ""),
    ({"type": ["nonsense"]}, ""),
    ({"daemon": ["x"]}, ""),
]


def test_filters_choose_what_dockerds_choose(api: Api) -> None:
    since = time.time()
    made = api.run("filterme", "true", Labels={"k": "v", "n": ""}, HostConfig={"Binds": ["fvol:/x"]})
    api.wait("filterme")
    api.remove("filterme")
    api("DELETE", "/volumes/fvol")
    api("POST", "/images/busybox/tag?repo=filtagain&tag=x")
    api("DELETE", "/images/filtagain:x")
    until = time.time()

    def shown(filters: dict[str, list[str]]) -> str:
        query = urllib.parse.quote(json.dumps(filters))
        lines = api.lines(f"/events?since={since:.9f}&until={until:.9f}&filters={query}")
        return " ".join(f"{one['Type']}:{one['Action']}" for one in map(json.loads, lines))

    assert [(filters, shown(filters)) for filters, _ in SHOWN] == SHOWN
    by_id = "container:create container:start container:die container:destroy"
    assert shown({"container": [made]}) == shown({"container": [made[:8]]}) == by_id


def test_until_in_the_past_ends_and_since_after_until_is_refused(machine: Machine, api: Api) -> None:
    api.run("past", "true")
    api.wait("past")
    api.remove("past")

    assert api.lines("/events?since=1&until=2") == []
    status, answer = machine.request("GET", "/events?since=2&until=1")
    assert status == 400
    assert json.loads(answer)["message"] == "`since` time (2) cannot be after `until` time (1)"


def test_only_until_gives_all_that_is_kept(api: Api) -> None:
    """As dockerd: `docker events --until 0s` shows the past."""
    made = api.run("history", "true")
    api.wait("history")
    api.remove("history")

    until = f"{time.time():.9f}"
    lines = api.lines(f"/events?until={until}")
    assert lines == api.lines(f"/events?since=0&until={until}")
    actions = [one["Action"] for one in map(json.loads, lines) if one["Actor"]["ID"] == made]
    assert actions == ["create", "start", "die", "destroy"]


class Listener(threading.Thread):
    """Reads a stream of events to its end."""

    def __init__(self, socket: str, query: str = "") -> None:
        super().__init__(daemon=True)
        self._connection = UnixConnection(socket)
        self._connection.request("GET", f"/events{query}")
        self._response = (
            self._connection.getresponse()
        )  # the head comes at once: from now on nothing is missed
        self.headers = dict(self._response.getheaders())
        self.events: list[dict[str, Any]] = []
        self.start()

    def run(self) -> None:
        try:
            for line in self._response:
                if line.strip():
                    self.events.append(json.loads(line))
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        self._response.close()
        self._connection.close()


def test_a_listener_that_does_not_read_holds_nobody_up_and_misses_nothing(machine: Machine, api: Api) -> None:
    """More events than dockerd keeps, and than fit into a socket."""
    since = f"{time.time():.9f}"
    made = api.create("many", "true", Labels={"long": "x" * 2000})
    asleep = UnixConnection(str(machine.socket))
    asleep.request("GET", f"/events?since={since}")
    response = asleep.getresponse()
    for number in range(1500):
        api("POST", f"/containers/{made}/rename?name={'many' if number % 2 else 'more'}")
    api.remove(made)

    seen = []
    for line in response:
        event = json.loads(line)
        seen.append(event["Action"])
        if event["Action"] == "destroy":
            break
    response.close()
    asleep.close()

    assert seen == ["create", *["rename"] * 1500, "destroy"]
    assert [one["Action"] for one in api.events(float(since), time.time())] == seen


@pytest.fixture
def own() -> Iterator[Machine]:
    """A machine that may be killed."""
    with running() as made:
        import_busybox(made)
        yield made


def test_since_has_no_gap_across_a_kill(own: Machine) -> None:
    """A client that comes back with the time of the last event that it saw."""
    api = Api(str(own.socket))
    listener = Listener(str(own.socket))
    api.run("before", "sleep", "100")
    until(lambda: [one for one in listener.events if one["Action"] == "start"])
    own.kill()
    listener.join(30)
    listener.close()
    last = listener.events[-1]
    own.start()
    api("POST", "/containers/before/kill")
    api.wait("before")
    api.remove("before")

    again = api.events(last["timeNano"] / 1e9 - 0.000001, time.time())
    actions = [one["Action"] for one in again if one["timeNano"] > last["timeNano"]]
    assert last["Action"] == "start"
    assert actions == ["kill", "die", "disconnect", "destroy"]


def test_an_end_that_nobody_saw_is_told_after_the_restart(own: Machine) -> None:
    api = Api(str(own.socket))
    since = time.time()
    api.run("quick", "sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; exit 6")
    inside = api("GET", "/containers/quick/json")["State"]["Pid"]
    own.kill()
    Path(f"/proc/{inside}/root/go").touch()
    until(lambda: not Path(f"/proc/{inside}").exists())
    own.start()

    events = api.events(since, time.time())
    assert [one["Action"] for one in events] == ["create", "connect", "start", "die", "disconnect"]
    assert events[3]["Actor"]["Attributes"]["exitCode"] == "6"
    api.wait("quick")
    api.remove("quick")


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("create.recorded", "create"),
        ("start.recorded", "start"),
        ("start.running", "start"),
        ("end.recorded", "die"),
        ("end.released", "die"),
        ("update.written", ""),
        ("remove.forgotten", "destroy"),
        ("remove.moved", "destroy"),
        ("volume.recorded", "create"),
    ],
)
def test_a_change_and_its_event_are_one(own: Machine, point: str, action: str) -> None:
    """Killed right there, ketchd has told once what it has done, and nothing that it has not."""
    api = Api(str(own.socket))
    api.create("other", "true")

    def story() -> None:
        api.run("tale", "true")
        api.wait("tale")
        api("POST", "/containers/tale/update", {"CpuShares": 100})
        api.remove("tale")
        api("POST", "/volumes/create", {"Name": "vol"})

    with own.killed_at(point):
        since = time.time()
        with contextlib.suppress(OSError, AssertionError, http.client.HTTPException):
            story()

    def ends() -> bool:
        states = [one["State"] for one in api("GET", "/containers/json?all=1") if "/tale" in one["Names"]]
        return states in ([], ["exited"], ["created"])

    until(ends)
    told = [
        (one["Type"], one["Action"]) for one in api.events(since, time.time()) if one["Type"] != "network"
    ]
    assert len(told) == len(set(told)), told
    if action:
        kind = "volume" if point.startswith("volume") else "container"
        assert (kind, action) in told
    order = ["create", "start", "die", "update", "destroy"]
    mine = [name for kind, name in told if kind == "container"]
    assert mine == order[: len(mine)] or mine == [one for one in order if one != "update"][: len(mine)]
    there = {one["Names"][0]: one["State"] for one in api("GET", "/containers/json?all=1")}
    assert ("/tale" in there) == ("destroy" not in mine and "create" in mine)
