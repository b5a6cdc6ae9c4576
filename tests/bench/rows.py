"""The rows: what is timed, how often, and what must be reached. Each returns one figure for one engine; the order alternates."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import content
from bench.engines import installed_ketch, proportional_kib

from ketch_testing.machine import UnixConnection

_READ_ALL = "find /usr /etc /var -xdev -type f -print0 | xargs -0 cat | wc -c"


@dataclass(slots=True)
class Row:
    """One line of the table. measure(engine) -> figure in `unit`.

    target: at most this share of dockerd's. limit: at most this much, whatever dockerd takes, in `unit`. alone: dockerd has
    nothing like it, or takes minutes, and is not measured.
    """

    name: str
    measure: Callable[[Any], float]
    rounds: int
    target: float | None = None
    unit: str = "ms"
    limit: float | None = None
    alone: bool = False
    figures: dict[str, list[float]] = field(default_factory=dict)


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that `action` took."""
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1000


@contextmanager
def container(engine: Any, *words: str, image: str = "busybox") -> Iterator[str]:
    """A container that sleeps, gone afterwards."""
    name = engine.docker("run", "-d", *words, image, "sleep", "3600").strip()
    try:
        yield name
    finally:
        engine.docker("rm", "-f", name)


def run_rows(base: Path, rounds: int) -> list[Row]:
    """Containers: one start, one exec, fifty at once. base: for the client, installed as users have it."""

    def run(*words: str) -> Callable[[Any], float]:
        return lambda engine: timed(lambda: engine.docker("run", "--rm", *words, "busybox", "true"))

    held: dict[str, str] = {}

    def execute(engine: Any) -> float:
        if engine.name not in held:
            held[engine.name] = engine.docker(
                "run", "-d", "--name", "bench-exec", "busybox", "sleep", "3600"
            ).strip()
        return timed(lambda: engine.docker("exec", "bench-exec", "true"))

    def version(engine: Any) -> float:
        program = installed_ketch(base)
        return timed(
            lambda: subprocess.run([program, "version"], env=engine.env, capture_output=True, check=True)
        )

    return [
        Row("ketch version, whole process", version, rounds, limit=60, alone=True),
        Row("run --rm busybox true, bridge", run(), rounds, 0.25),
        Row("run --rm --net none busybox true", run("--net", "none"), rounds, 0.25),
        Row("exec C true", execute, rounds, 0.6),
        Row("50 x run -d, 8 at a time, then rm -f", fifty, 3, 0.3, "ms"),
    ]


def fifty(engine: Any) -> float:
    """Fifty containers started eight at a time, then removed at once."""

    def all_of_them() -> None:
        names, running = [f"fifty{number}" for number in range(50)], []
        for name in names:
            if len(running) >= 8:
                assert running.pop(0).wait() == 0
            running.append(engine.spawn("run", "-d", "--name", name, "busybox", "sleep", "3600"))
        for process in running:
            assert process.wait() == 0
        engine.docker("rm", "-f", *names)

    return timed(all_of_them)


def build_rows(base: Path, rounds: int) -> list[Row]:
    """Builds of twelve instructions, cold and cached, and a big context with nothing changed."""
    context = content.twelve_instructions(base / "twelve")
    big = content.big_context(base / "big")
    warm: set[str] = set()

    def cold(engine: Any) -> float:
        figure = timed(
            lambda: engine.docker("build", "--no-cache", "-q", "-t", "bench-cold", ".", cwd=context)
        )
        engine.docker("rmi", "-f", "bench-cold")
        return figure

    def cached(engine: Any) -> float:
        if engine.name not in warm:
            warm.add(engine.name)
            engine.docker("build", "-q", "-t", "bench-warm", ".", cwd=context)
        return timed(lambda: engine.docker("build", "-q", "-t", "bench-warm", ".", cwd=context))

    seen: set[str] = set()

    def unchanged(engine: Any) -> float:
        if engine.name not in seen:
            seen.add(engine.name)
            engine.docker("build", "-q", "-t", "bench-big", ".", cwd=big)
        return timed(lambda: engine.docker("build", "-q", "-t", "bench-big", ".", cwd=big))

    return [
        Row("build, 12 instructions, cold", cold, rounds, 0.3),
        Row("build, 12 instructions, cached", cached, rounds, 0.6),
        Row("build, context of 10,000 files, cached", unchanged, 3, 0.7),
    ]


def image_rows(
    base: Path, source: str, empty: Callable[[], Any], directories: Callable[[], Any]
) -> list[Row]:
    """Pull, push, save, load and rmi of the five-layer Debian image. `source`: host:port of its registry. directories: the ketchd
    whose layers are directories; the others have it in rows of their own."""
    name = f"{source}/{content.DEBIAN}"

    def pull(engine: Any) -> float:
        engine.docker("rmi", "-f", name, check=False)
        return timed(lambda: engine.docker("pull", "-q", name))

    def push(engine: Any) -> float:
        with empty() as host:
            target = f"{host}/pushed:latest"
            engine.docker("tag", name, target)
            figure = timed(lambda: engine.docker("push", "-q", target))
            engine.docker("rmi", target)
        return figure

    def push_built(engine: Any) -> float:
        context = base / "fresh"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(
            f"FROM busybox\nRUN head -c 60000000 /dev/urandom | od -x > /data && echo {time.time_ns()}\n"
        )
        with empty() as host:
            target = f"{host}/fresh:latest"
            engine.docker("build", "-q", "-t", target, ".", cwd=context)
            figure = timed(lambda: engine.docker("push", "-q", target))
            engine.docker("rmi", target)
        return figure

    def pull_memory(engine: Any) -> float:
        engine.docker("rmi", "-f", name, check=False)
        return peak_mib(engine, lambda: engine.docker("pull", "-q", name))

    archive = base / "five.tar"

    def save(engine: Any) -> float:
        return timed(lambda: engine.docker("save", "-o", str(archive), name))

    def load(engine: Any) -> float:
        engine.docker("save", "-o", str(archive), name)
        engine.docker("rmi", "-f", name)
        return timed(lambda: engine.docker("load", "-q", "-i", str(archive)))

    def remove(engine: Any) -> float:
        engine.docker("pull", "-q", name)
        figure = timed(lambda: engine.docker("rmi", "-f", name))
        engine.docker("pull", "-q", name)
        return figure

    def read(cold: bool) -> Callable[[Any], float]:
        """Every file of the image through a container's root: a layer is mounted, dockerd's lie in directories."""

        def measure(engine: Any) -> float:
            engine.docker("pull", "-q", name)
            with container(engine, image=name) as one:
                if cold:
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                return timed(lambda: engine.docker("exec", one, "sh", "-c", _READ_ALL))

        return measure

    def unpacked(measure: Callable[[Any], float]) -> Callable[[Any], float]:
        return lambda engine: measure(directories() if engine.name == "ketchd" else engine)

    return [
        Row("pull, 5 layers, loopback registry", pull, 3, 0.25),
        Row("pull, directory layers", unpacked(pull), 3, 0.5),
        Row("reading 17,000 files of it in a container, from the disk", read(True), 5, 1.0),
        Row("reading them in a new container, from memory", read(False), 5, 1.0),
        Row("peak memory of all its processes in that pull, PSS", pull_memory, 3, 1.2, "MiB"),
        Row("push of it to an empty registry", push, 3, 0.10),
        Row("push of a freshly built image", push_built, 3, 0.5),
        Row("save", save, 3, 0.5),
        Row("load", load, 3, 0.5),
        Row("rmi", remove, 3, 0.2),
        Row("rmi, directory layers", unpacked(remove), 3, 0.2),
    ]


def memory_row() -> Row:
    """The daemon's own processes, nothing running for a while."""

    def idle(engine: Any) -> float:
        time.sleep(15)  # what a daemon keeps warm for the next request is no idle daemon's
        return proportional_kib(engine.pids()) / 1024

    return Row("memory of the idle daemon, PSS", idle, 3, 0.6, "MiB")


def peak_mib(engine: Any, action: Callable[[], object], every_seconds: float = 0.02) -> float:
    """The most that the engine's processes together took while `action` ran: PSS, MiB, looked at every few milliseconds."""
    ended, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, proportional_kib(engine.pids()))
            if ended.wait(every_seconds):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        ended.set()
        watcher.join()
    return peak / 1024


def listing_row(base: Path, count: int = 5000) -> Row:
    """GET /images/json with thousands of images, the client's part left out: the target is 100 ms, whatever dockerd takes."""
    filled: set[str] = set()

    def listed(engine: Any) -> float:
        if engine.name not in filled:
            filled.add(engine.name)
            engine.docker("load", "-q", "-i", str(content.many_images(base / "many.tar", count)))
        connection = UnixConnection(str(engine.socket), 600)
        try:
            begun = time.perf_counter()
            connection.request("GET", "/v1.41/images/json")
            body = connection.getresponse().read()
            figure = (time.perf_counter() - begun) * 1000
        finally:
            connection.close()
        assert body.count(b'"RepoTags"') >= count
        return figure

    return Row(f"list of {count} images", listed, 7, limit=100, alone=True)


def clean(engine: Any, base: Path) -> None:
    """What the rows leave."""
    engine.docker("rm", "-f", "bench-exec", check=False)
    shutil.rmtree(base, ignore_errors=True)
