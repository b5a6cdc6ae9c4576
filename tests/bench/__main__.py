"""ketchd against dockerd: the same client, the same run, alternating, medians. `./dev bench [--rounds N] [--only WORD] [--write]`.

Without dockerd it prints ketchd's own column. --write puts the table into docs/benchmarks.md, between its two markers.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import content, rows, supervision
from bench.engines import Dockerd, Ketch, has_dockerd

from ketch_testing.machine import registry

PROJECT = Path(__file__).parents[2]
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./dev bench")
    parser.add_argument(
        "--rounds", type=int, default=10, help="rounds of the quick rows (pulls and the like take 3)"
    )
    parser.add_argument("--only", default="", help="rows whose name contains this; --write leaves the others")
    parser.add_argument(
        "--layers", default="", help="also measure ketchd with this kind of layers (directory)"
    )
    parser.add_argument("--long", action="store_true", help="with the rows that take minutes")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: root is needed", file=sys.stderr)
        return 1
    if shutil.which("docker") is None:
        print("bench: the docker CLI is the client of every row: apt-get install docker.io", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="ketch-bench-"))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, base, True)
        engines: list[Any] = []
        for make in engine_makers(base, given.layers):
            engine = make()
            undo.callback(engine.close)
            content.import_busybox(engine)
            engines.append(engine)
        table = [
            rows.memory_row(),
            *rows.run_rows(base / "installed", given.rounds),
            *rows.build_rows(base / "contexts", given.rounds),
            *supervision.rows(base / "streams"),
        ]
        if any(
            given.only in name
            for name in ("pull", "push", "save", "load", "rmi", "peak memory", "reading", "directory layers")
        ):
            source = undo.enter_context(registry(base / "source", storage=content.debian_storage()))
            counter = iter(range(10_000))
            table += rows.image_rows(
                base, source, lambda: registry(base / f"empty{next(counter)}"), directories(base, undo)
            )
        table.append(rows.listing_row(base))
        chosen = [row for row in table if given.only in row.name]
        for row in chosen:
            measure(row, engines)
            print(line(row, engines), flush=True)
        text = render(chosen, engines)
        for engine in engines:
            engine.docker("rm", "-f", "bench-exec", check=False)
    print("\n" + text)
    if given.write:
        write(text)
    return 0


def engine_makers(base: Path, layers: str) -> list[Any]:
    """How the engines of this run are started: ketchd first, then what it is compared with."""
    makers: list[Any] = [lambda: Ketch(base / "ketch")]
    if has_dockerd():
        makers.append(lambda: Dockerd(base / "dockerd"))
    else:
        print(
            "bench: dockerd is not installed, ketchd's own column only (apt-get install docker.io)",
            file=sys.stderr,
        )
    if layers:
        makers.append(lambda: Ketch(base / "ketch-layers", layers))
    return makers


def directories(base: Path, undo: ExitStack) -> Callable[[], Ketch]:
    """A ketchd with directory layers, started when a row first wants it."""

    @cache
    def started() -> Ketch:
        engine = Ketch(base / "ketch-directories", "directory")
        undo.callback(engine.close)
        return engine

    return started


def measure(row: rows.Row, engines: list[Any]) -> None:
    """One warm-up where a row is quick, then the rounds, the engines in turn."""
    warm = row.rounds >= 5
    for number in range(row.rounds + warm):
        for engine in engines:
            if row.alone and engine.name == "dockerd":
                continue
            figure = row.measure(engine)
            if number or not warm:
                row.figures.setdefault(engine.name, []).append(figure)


def median(row: rows.Row, name: str) -> float | None:
    """The row's median for one engine."""
    figures = row.figures.get(name)
    return statistics.median(figures) if figures else None


def line(row: rows.Row, engines: list[Any]) -> str:
    """One row of the table."""
    cells = [row.name]
    ours, theirs = median(row, "ketchd"), median(row, "dockerd")
    for engine in engines:
        figure = median(row, engine.name)
        cells.append(
            ""
            if figure is None
            else f"{figure:.{2 if figure < 10 else 1 if figure < 100 else 0}f} {row.unit}"
        )
    cells.append("" if not ours or not theirs else f"{ours / theirs:.2f}")
    cells.append(aim(row))
    return "| " + " | ".join(cells) + " |"


def aim(row: rows.Row) -> str:
    """What a row must reach: a share of dockerd's, or so much in its own unit."""
    aims = []
    if row.target is not None:
        aims.append(f"<= {row.target:.2f}")
    if row.limit is not None:
        aims.append(f"<= {row.limit:g} {row.unit}")
    return ", ".join(aims)


def render(chosen: list[rows.Row], engines: list[Any]) -> str:
    """The whole table, with its date and machine."""
    names = [engine.name for engine in engines]
    dockerd = next(
        (
            engine.docker("version", "--format", "{{.Server.Version}}").strip()
            for engine in engines
            if engine.name == "dockerd"
        ),
        "none",
    )
    return "\n".join(
        [
            f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, kernel {platform.release().split('-')[0]}, "
            f"Python {platform.python_version()}; dockerd {dockerd}; medians, engines alternating in one run.",
            "",
            "| operation | " + " | ".join(names) + " | share | target |",
            "|---" * (len(names) + 3) + "|",
            *(line(row, engines) for row in chosen),
        ]
    )


def write(text: str) -> None:
    """Replace what stands between the markers, but for the rows that were not measured this time."""
    path = PROJECT / "docs" / "benchmarks.md"
    before, _, rest = path.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{merged(old, text)}\n{END}{after}")


def merged(old: str, new: str) -> str:
    """`new` with the rows that only `old` has, in `old`'s order. Both are tables as `render` makes them."""
    head, rule, measured = new.partition("|---")
    known = {_name(row): row for row in old.splitlines() if row.startswith("| ")}
    fresh = {_name(row): row for row in measured.splitlines()[1:]}
    known.pop("operation", None)
    return "\n".join([head + rule + measured.splitlines()[0], *({**known, **fresh}).values()])


def _name(row: str) -> str:
    return row.split("|")[1].strip()


if __name__ == "__main__":
    sys.exit(main())
