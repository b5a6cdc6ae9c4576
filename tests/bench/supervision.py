"""The rows of the run supervisor: what an idle container costs, whether cost stays flat, and how much flows through."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.engines import proportional_kib
from bench.rows import Row, timed

MEGABYTE = 1_000_000
# dockerd keeps a log whole unless told otherwise, ketchd 3 x 16 MB: the same for both.
WHOLE = ("--log-opt", "max-size=1g", "--log-opt", "max-file=1")
ROTATED = ("--log-opt", "max-size=16m", "--log-opt", "max-file=3")
LINE = (
    b"%09d GET /some/page HTTP/1.1 200 1234 a line as servers write them, which is about a hundred bytes.\n"
)


def rows(base: Path) -> list[Row]:
    """All of them. base: a directory of theirs, for what flows."""
    return [
        Row("memory of an idle container's shim, PSS", shim, 1, unit="MiB", limit=2),
        Row("start of container 300 against container 3", flat, 1, unit="x", limit=1.3, alone=True),
        Row("100 containers, HTTP check every second, of one core", checked, 1, unit="%", limit=10, alone=True),
        Row("logs of 100 MB", logs, 3, 1.0),
        Row("1 GB of lines through run", lambda engine: timed(lambda: flow(engine, lines(base))), 3, 1.0),
        Row("1 GB of random bytes through run", lambda engine: timed(lambda: flow(engine, noise(base))), 3, 1.0),
        Row("memory that 1 GB through run adds, RSS at most", lambda engine: swelling(engine, noise(base)), 1, unit="MiB", limit=16),
    ]  # fmt: skip


# what a container costs


@contextlib.contextmanager
def many(engine: Any, count: int, words: Iterable[str], command: Iterable[str]) -> Iterator[list[str]]:
    """Containers, gone afterwards: their names."""
    names: list[str] = []
    try:
        for number in range(count):
            name = f"many{number}"
            engine.docker("run", "-d", "--name", name, *words, "busybox", *command)
            names.append(name)
        yield names
    finally:
        for at in range(0, len(names), 50):
            engine.docker("rm", "-f", *names[at : at + 50])


def shim(engine: Any) -> float:
    """MiB that the process costs which keeps an idle container, where ten run: its PSS, so a tenth of what the ten share, and its
    part of what they share with ketchd. The container's own process is not in it."""
    with many(engine, 10, (), ("sleep", "3600")) as names:
        time.sleep(1)
        return proportional_kib([_parent(pid) for pid in inside(engine, names)]) / 1024 / 10


def inside(engine: Any, names: list[str]) -> list[int]:
    """The containers' own first processes."""
    if not names:
        return []
    return [int(pid) for pid in engine.docker("inspect", "--format", "{{.State.Pid}}", *names).split()]


def keepers(engine: Any) -> set[int]:
    """Every process of the engine and every one that keeps a container of it, the containers' own left out."""
    contained = set(inside(engine, engine.docker("ps", "-q").split()))
    return {_parent(pid) for pid in contained} | set(engine.pids()) - contained


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on. Source: proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def flat(engine: Any, count: int = 300, starts: int = 11) -> float:
    """How much longer the last of many containers takes to start than the third: 1.0 is flat. Each is the median of `starts`
    starts and removals of that container, while the ones before it run."""
    figures = []
    with contextlib.ExitStack() as undo:
        names: list[str] = []
        undo.callback(
            lambda: [engine.docker("rm", "-f", *names[at : at + 50]) for at in range(0, len(names), 50)]
        )
        for number in range(1, count + 1):
            name = f"flat{number}"
            words = ("run", "-d", "--name", name, "busybox", "sleep", "3600")
            if number in (3, count):
                several = []
                for _ in range(starts):
                    several.append(timed(lambda words=words: engine.docker(*words)))  # type: ignore[misc]
                    engine.docker("rm", "-f", name)
                figures.append(statistics.median(several))
            else:
                engine.docker(*words)
                names.append(name)
    third, last = figures
    return last / third


def checked(engine: Any, count: int = 100, seconds: float = 20) -> float:
    """Percent of one core that the engine and its shims take while `count` containers are asked over HTTP every second."""
    words = ("--label", "ketch.health.http=http://:8080/passwd", "--health-interval", "1s")
    with many(engine, count, words, ("httpd", "-f", "-p", "8080", "-h", "/etc")) as names:
        deadline = time.monotonic() + 60
        while "healthy" not in engine.docker("inspect", "--format", "{{.State.Health.Status}}", names[-1]):
            assert time.monotonic() < deadline, "no container became healthy"
            time.sleep(1)
        states = engine.docker("inspect", "--format", "{{.State.Health.Status}}", *names).split()
        assert states == ["healthy"] * count, states
        pids = keepers(engine)
        before, begun = cpu_seconds(pids), time.monotonic()
        time.sleep(seconds)
        return (cpu_seconds(pids) - before) / (time.monotonic() - begun) * 100


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of `pids` and of their children that have ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(int(field) for field in _stat(pid)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


# what flows through


def logs(engine: Any) -> float:
    """Milliseconds for `docker logs` of a container that has written 100 MB of lines."""
    name = "bench-logs"
    if not engine.docker("ps", "-aq", "--filter", f"name=^{name}$").strip():
        script = (
            "yes 'a line as servers write them, which is about a hundred bytes long, some more, some less'"
        )
        engine.docker(
            "run", "--name", name, *WHOLE, "busybox", "sh", "-c", f"{script} | head -c {100 * MEGABYTE}"
        )
    return timed(lambda: discard(engine, "logs", name))


def discard(engine: Any, *words: str) -> None:
    """One docker command whose output goes nowhere."""
    assert engine.spawn(*words).wait() == 0


def flow(engine: Any, path: Path) -> None:
    """The file through a container's standard output, its log and the client."""
    discard(
        engine, "run", "--rm", "--net", "none", *ROTATED, "-v", f"{path}:/flow:ro", "busybox", "cat", "/flow"
    )


def lines(base: Path) -> Path:
    """A file of 1 GB of lines; made once."""
    block = b"".join(LINE % number for number in range(100_000))
    return _made(base / "lines", lambda: block)


def noise(base: Path) -> Path:
    """A file of 1 GB of random bytes; made once."""
    return _made(base / "noise", lambda: os.urandom(16 * MEGABYTE))


def _made(path: Path, block: Callable[[], bytes], size: int = 1000 * MEGABYTE) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as made:
            while made.tell() < size:
                made.write(block()[: size - made.tell()])
    return path


def swelling(engine: Any, path: Path) -> float:
    """MiB that engine and shim hold at most, added up, while 1 GB flows, over the least that each of them holds: before, or while
    it flows, since a garbage collector may give back in between. What a shim holds at rest is that of an idle container's."""
    with many(engine, 1, ROTATED, ("sleep", "3600")) as names:
        least = {pid: _resident_kib(pid) for pid in keepers(engine)}
        at_rest = sum(_resident_kib(_parent(pid)) for pid in inside(engine, names))
    peaks = dict(least)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            with contextlib.suppress(OSError, subprocess.SubprocessError, AssertionError, ValueError):
                for pid in keepers(engine):
                    held = _resident_kib(pid)
                    peaks[pid] = max(peaks.get(pid, at_rest), held)
                    least[pid] = min(least.get(pid, at_rest), held or at_rest)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        flow(engine, path)
    finally:
        over.set()
        watcher.join()
    return sum(peak - least[pid] for pid, peak in peaks.items()) / 1024


def _resident_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(_stat(pid)[21]) * os.sysconf("SC_PAGESIZE") // 1024
    return 0
