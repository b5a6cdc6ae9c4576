"""Reading a container's json-file log: history, tail, since, until, follow, across rotation.

On disk: ID-json.log (newest), ID-json.log.1, .2 … older; one JSON object a line: {"log", "stream", "time"}.
Written by the shim; read here whether or not ketchd was there when the lines came. Source: Engine API, ContainerLogs.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiofiles

from ketchd.kernel.inotify import IN_CREATE, IN_MODIFY, IN_MOVED_TO, Inotify

_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines. tail: None for all. since_ns, until_ns: inclusive, 0 for no limit."""

    stdout: bool
    stderr: bool
    follow: bool = False
    tail: int | None = None
    since_ns: int = 0
    until_ns: int = 0


@dataclass(frozen=True, slots=True)
class LogLine:
    """One stored entry. time: as written, RFC 3339 with nanoseconds."""

    stream: str
    text: bytes
    time: str


def parse_line(line: bytes) -> LogLine | None:
    """One line of the file, or None for one that a crash cut short."""
    try:
        entry = json.loads(line)
        return LogLine(entry["stream"], entry["log"].encode("utf-8", "surrogateescape"), entry["time"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def time_ns(text: str) -> int:
    """`2026-11-23T15:21:44.518953819Z` as ns since the epoch; 0 when it is none."""
    try:
        whole, _, fraction = text.rstrip("Z").partition(".")
        seconds = int(datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())
        return seconds * 1_000_000_000 + int((fraction + "000000000")[:9])
    except ValueError:
        return 0


def files_of(path: Path) -> list[Path]:
    """The log's files that exist, oldest first."""
    rotated = []
    number = 1
    while (older := path.with_name(f"{path.name}.{number}")).exists():
        rotated.append(older)
        number += 1
    return [*reversed(rotated), path] if path.exists() else list(reversed(rotated))


def tail_start(files: list[Path], lines: int) -> tuple[int, int]:
    """(index of file, offset) where the last `lines` entries begin. Reads backwards, never the whole log."""
    missing = lines
    for index in range(len(files) - 1, -1, -1):
        with files[index].open("rb") as handle:
            end = handle.seek(0, os.SEEK_END)
            position = end
            while position > 0:
                step = min(_CHUNK, position)
                handle.seek(position - step)
                chunk = handle.read(step)
                if position == end and chunk.endswith(b"\n"):
                    missing += 1  # the newline at the very end closes the last line
                count = chunk.count(b"\n")
                if count >= missing:
                    cut = len(chunk)
                    for _ in range(missing):
                        cut = chunk.rindex(b"\n", 0, cut)
                    return index, position - step + cut + 1
                missing -= count
                position -= step
            missing -= 1  # the file's first line has no newline before it
            if missing <= 0:
                return index, 0
    return 0, 0


class LogReader:
    """Reads one container's log for one client."""

    def __init__(
        self, path: Path, query: LogQuery, is_running: Callable[[], bool], ended: asyncio.Future[int] | None
    ):
        self._path = path
        self._query = query
        self._is_running = is_running
        self._ended = ended

    def _wanted(self, line: LogLine) -> bool:
        query = self._query
        if line.stream == "stderr":
            if not query.stderr:
                return False
        elif not query.stdout:
            return False
        return not (query.since_ns and time_ns(line.time) < query.since_ns)

    async def batches(self) -> AsyncIterator[list[LogLine]]:
        """The lines, some at a time, in the order of the log. With follow: until the container ends.

        Cancelled: files and watch are closed.
        """
        files = await asyncio.to_thread(files_of, self._path)
        start, offset = 0, 0
        if self._query.tail is not None:
            start, offset = await asyncio.to_thread(tail_start, files, self._query.tail)
            if self._query.tail == 0 and files:
                start, offset = len(files) - 1, files[-1].stat().st_size
        watch = Inotify() if self._query.follow else None
        try:
            if watch is not None:
                watch.add(str(self._path.parent), IN_MODIFY | IN_CREATE | IN_MOVED_TO)
            for index in range(start, len(files)):
                newest = files[index] == self._path
                async for batch in self._one_file(
                    files[index], offset if index == start else 0, watch if newest else None
                ):
                    yield batch
            if watch is not None and self._path not in files:
                async for batch in self._one_file(self._path, 0, watch):
                    yield batch
        finally:
            if watch is not None:
                watch.close()

    async def _one_file(self, path: Path, offset: int, watch: Inotify | None) -> AsyncIterator[list[LogLine]]:
        while watch is not None and not path.exists():
            if not await self._grown(watch):
                if not path.exists():
                    return
                break
        handle = await aiofiles.open(path, "rb")
        try:
            await handle.seek(offset)
            rest = b""
            while True:
                over = (
                    watch is None or not self._is_running()
                )  # looked at before reading: nothing after it is missed
                chunk = await handle.read(_CHUNK)
                if chunk:
                    *lines, rest = (rest + chunk).split(b"\n")
                    batch, done = self._select(lines)
                    if batch:
                        yield batch
                    if done:
                        return
                    continue
                if over or watch is None:
                    return
                if await self._rotated(path, handle.fileno()):
                    await handle.close()
                    handle = await aiofiles.open(path, "rb")
                    rest = b""
                    continue
                await self._grown(watch)
        finally:
            await handle.close()

    def _select(self, lines: list[bytes]) -> tuple[list[LogLine], bool]:
        batch: list[LogLine] = []
        for raw in lines:
            line = parse_line(raw)
            if line is None:
                continue
            if self._query.until_ns and time_ns(line.time) > self._query.until_ns:
                return batch, True
            if self._wanted(line):
                batch.append(line)
        return batch, False

    @staticmethod
    async def _rotated(path: Path, fd: int) -> bool:
        try:
            return os.stat(path).st_ino != os.fstat(fd).st_ino
        except FileNotFoundError:
            return False

    async def _grown(self, watch: Inotify) -> bool:
        """Wait until something happened to the log or the container ended; False for the end."""
        if not self._is_running():
            return False
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()

        def note() -> None:
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(watch.fd, note)
        try:
            waiting: set[asyncio.Future[None] | asyncio.Future[int]] = {readable}
            if self._ended is not None:
                waiting.add(self._ended)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            watch.drain()
        finally:
            loop.remove_reader(watch.fd)
        return self._is_running()
