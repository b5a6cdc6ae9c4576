"""`stats`: what containers use, as it changes."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from ketch.engine import Engine
from ketch.faults import CommandFailed
from ketch.filters import build_filters
from ketch.options import Command, Given
from ketch.quantities import binary_size, human_size
from ketch.session import Session
from ketch.views import FORMAT_HELP, chosen_format, render_rows, short_id

STATS = Command(
    "[OPTIONS] [CONTAINER...]",
    f"""
-a, --all  Show all containers, not only those that run
--format string  Format output using a custom template:{FORMAT_HELP}
--no-stream  Show it once
--no-trunc  Do not truncate output
""",
    (0, None),
)
TITLES = {
    "Container": "CONTAINER",
    "Name": "NAME",
    "ID": "CONTAINER ID",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
TABLE = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"
INTERVAL_SECONDS = 0.5


class Watched:
    """The containers that are looked at, and the newest sample of each. Filled by threads."""

    def __init__(self, engine: Engine, stream: bool) -> None:
        self._engine = engine
        self._stream = stream
        self._lock = threading.Lock()
        self._samples: dict[str, dict[str, Any] | None] = {}
        self._first: dict[str, threading.Event] = {}
        self._faults: dict[str, CommandFailed] = {}

    def add(self, name: str) -> None:
        """Begin to look at a container."""
        with self._lock:
            if name in self._samples:
                return
            self._samples[name] = None
            self._first[name] = threading.Event()
        threading.Thread(target=self._follow, args=(name,), daemon=True).start()

    def drop(self, name: str) -> None:
        """Look at it no more."""
        with self._lock:
            self._samples.pop(name, None)

    def wait_first(self, seconds: float) -> None:
        """Until every container has a sample, or there will be none."""
        deadline = time.monotonic() + seconds
        for event in list(self._first.values()):
            event.wait(max(0.0, deadline - time.monotonic()))

    def check(self, names: list[str]) -> None:
        """Raises CommandFailed with every fault, in the order of `names`."""
        told = [self._faults[name].message for name in dict.fromkeys(names) if name in self._faults]
        if told:
            raise CommandFailed("\n".join(told))

    def samples(self) -> list[tuple[str, dict[str, Any] | None]]:
        """(name, newest sample), in the order in which they were added."""
        with self._lock:
            return list(self._samples.items())

    def _follow(self, name: str) -> None:
        query = {"stream": "1" if self._stream else "0"}
        try:
            answer = self._engine.request("GET", f"/containers/{name}/stats", query)
            for message in self._engine.messages(answer):
                with self._lock:
                    if name not in self._samples:
                        return
                    self._samples[name] = message
                self._first[name].set()
        except CommandFailed as error:
            self._faults[name] = error
            self.drop(name)
        finally:
            self._first[name].set()


def stats(session: Session, given: Given) -> int:
    """Show it until it is interrupted, or once."""
    form = chosen_format(session, given, "statsFormat")
    engine = session.engine
    stream = not given.on("no-stream")
    engine.version  # noqa: B018
    watched = Watched(engine, stream)
    names = given.arguments
    if names:
        for name in names:
            watched.add(name)
    else:
        for one in reversed(engine.get("/containers/json", {"all": given.on("all")})):
            watched.add(one["Id"])
        if stream:
            threading.Thread(
                target=_follow_events, args=(engine, watched, given.on("all")), daemon=True
            ).start()
    watched.wait_first(3.0)
    trunc = not given.on("no-trunc")
    while True:
        watched.check(names)
        if not stream:
            _write(session, form, watched, trunc, "")
            return 0
        _write(session, form, watched, trunc, "\x1b[H" if form != "json" else "")
        if names and not watched.samples():
            return 0
        time.sleep(INTERVAL_SECONDS)


def _write(session: Session, form: str, watched: Watched, trunc: bool, home: str) -> None:
    rows = [stats_row(name, sample, trunc) for name, sample in watched.samples()]
    text = render_rows(form, rows, TITLES, TABLE)
    if home:
        # Every line over the old one; what is below is erased.
        text = home + text.replace("\n", "\x1b[K\n") + "\x1b[J"
    session.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()


def _follow_events(engine: Engine, watched: Watched, every: bool) -> None:
    """Containers come and go."""
    filters = build_filters(["type=container", "event=create", "event=start", "event=die", "event=destroy"])
    try:
        answer = engine.request("GET", "/events", {"filters": filters})
        for message in engine.messages(answer):
            container = str((message.get("Actor") or {}).get("ID", ""))
            action = message.get("Action")
            if action == "start" or (every and action == "create"):
                watched.add(container)
            elif action == "destroy" or (action == "die" and not every):
                watched.drop(container)
    except CommandFailed:
        return  # what is shown stays as it is; a daemon that is gone shows everywhere else


def stats_row(name: str, sample: dict[str, Any] | None, trunc: bool) -> dict[str, str]:
    """A sample as `--format` sees it. Source: docker/cli cli/command/container/stats_helpers.go."""
    if sample is None:
        shown = short_id(name) if trunc else name
        empty = dict.fromkeys(("CPUPerc", "MemPerc", "NetIO", "BlockIO", "PIDs"), "--")
        return {"Container": shown, "ID": shown, "Name": "--", "MemUsage": "-- / --", **empty}
    memory = sample.get("memory_stats") or {}
    used, limit = memory_used(memory), float(memory.get("limit") or 0)
    read, written = block_bytes(sample.get("blkio_stats") or {})
    received, sent = network_bytes(sample.get("networks") or {})
    identity = str(sample.get("id") or name)
    return {
        "Container": name,
        "ID": short_id(identity) if trunc else identity,
        "Name": str(sample.get("name") or "").removeprefix("/") or "--",
        "CPUPerc": f"{cpu_percent(sample):.2f}%",
        "MemUsage": f"{binary_size(used)} / {binary_size(limit)}",
        "MemPerc": f"{used / limit * 100 if limit else 0:.2f}%",
        "NetIO": f"{human_size(received, 3)} / {human_size(sent, 3)}",
        "BlockIO": f"{human_size(read, 3)} / {human_size(written, 3)}",
        "PIDs": str(int((sample.get("pids_stats") or {}).get("current") or 0)),
    }


def cpu_percent(sample: dict[str, Any]) -> float:
    """The share of one CPU between this sample and the one before, in percent."""
    now, before = sample.get("cpu_stats") or {}, sample.get("precpu_stats") or {}
    usage, usage_before = now.get("cpu_usage") or {}, before.get("cpu_usage") or {}
    spent = float(usage.get("total_usage") or 0) - float(usage_before.get("total_usage") or 0)
    passed = float(now.get("system_cpu_usage") or 0) - float(before.get("system_cpu_usage") or 0)
    cpus = float(now.get("online_cpus") or len(usage.get("percpu_usage") or ()))
    return spent / passed * cpus * 100 if spent > 0 and passed > 0 else 0.0


def memory_used(memory: dict[str, Any]) -> float:
    """What is used without the page cache that could be dropped."""
    usage, details = float(memory.get("usage") or 0), memory.get("stats") or {}
    # The first name is that of cgroup v1, the second that of v2.
    for name in ("total_inactive_file", "inactive_file"):
        if name in details:
            cache = float(details[name])
            return usage - cache if cache < usage else usage
    return usage


def block_bytes(blocks: dict[str, Any]) -> tuple[float, float]:
    """(read, written)."""
    read = written = 0.0
    for one in blocks.get("io_service_bytes_recursive") or ():
        letter = str(one.get("op") or "")[:1].lower()
        read += float(one.get("value") or 0) if letter == "r" else 0
        written += float(one.get("value") or 0) if letter == "w" else 0
    return read, written


def network_bytes(networks: dict[str, Any]) -> tuple[float, float]:
    """(received, sent)."""
    links = networks.values()
    received = sum(float(one.get("rx_bytes") or 0) for one in links)
    return received, sum(float(one.get("tx_bytes") or 0) for one in links)


COMMANDS = {"stats": (STATS, stats)}
