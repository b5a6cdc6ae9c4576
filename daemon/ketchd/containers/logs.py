"""Reading a container's log for one client: history, tail, since, until, follow, across rotation, without a gap or a double.

Written by the shim (`ketchd.shim.jsonlog`); read here whether or not ketchd was there when the lines came. Every step (read,
choose, frame) is one job in a thread and one block in memory. Source: Engine API, ContainerLogs.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ketch_wire import stdcopy
from ketchd.containers.logfiles import BLOCK, LogFile, open_all, open_successor
from ketchd.containers.logformat import LogFormat, render
from ketchd.kernel.inotify import IN_CREATE, IN_MODIFY, IN_MOVED_TO, Inotify

_LONGEST = 4 * 1024 * 1024  # of something that is no entry
_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines. tail: None for all; counted before `format` chooses, as dockerd does."""

    format: LogFormat = field(default_factory=LogFormat)
    follow: bool = False
    tail: int | None = None


class Step(Enum):
    """What a cursor has come to."""

    MORE = "there is more to read"
    WAIT = "this is the newest file's end"
    OVER = "nothing more is wanted"


class LogCursor:
    """A place in a log. Blocking; used by one thread at a time. Close it."""

    def __init__(self, path: Path, query: LogQuery) -> None:
        self._path = path
        self._query = query
        self._current: LogFile | None = None
        self._newest: LogFile | None = (
            None  # as it was at the beginning: held, so that its identity stays its own
        )
        self._border = 0
        self._rest = b""
        self._rotated = False
        self._skip = 0

    def open(self) -> None:
        """Find where to begin."""
        files = open_all(self._path)
        try:
            if not files:
                return
            place = len(files) - 1
            if self._query.tail is not None:
                place = self._seek_tail(files, self._query.tail)
            elif since := self._query.format.since:
                while place and files[place].ends_before(since):
                    place -= 1
                files[place].seek_time(since)
            self._current, self._newest = files[place], files[0]
            self._skip = files[place].skip
            self._border = _ENDLESS if files[0].compressed else files[0].size
        finally:
            for one in files:
                if one is not self._current and one is not self._newest:
                    one.close()

    @staticmethod
    def _seek_tail(files: list[LogFile], missing: int) -> int:
        if not missing:
            files[0].position = files[0].size
            return 0
        for place, one in enumerate(files):
            missing = one.seek_tail(missing)
            if not missing:
                return place
        return len(files) - 1

    def step(self) -> tuple[bytes, Step]:
        """The next bytes to send, and where that leads. Raises OSError, zlib.error."""
        if self._current is None:
            if not self._query.follow:
                return b"", Step.OVER
            files = open_all(self._path)
            if not files:
                return b"", Step.WAIT
            self._current = files[-1]
            for one in files[:-1]:
                one.close()
        current, limit = self._current, BLOCK
        ends_here = not self._query.follow and current is self._newest
        if ends_here:
            limit = min(limit, self._border - current.position)
        data = current.read(limit) if limit > 0 else b""
        if data:
            self._rotated = False
            block, over = self._render(data)
            return block, Step.OVER if over else Step.MORE
        return (b"", Step.OVER) if ends_here else self._go_on(current)

    def _render(self, data: bytes) -> tuple[bytes, bool]:
        data = self._rest + data if self._rest else data
        cut = data.rfind(b"\n") + 1
        self._rest = data[cut:] if len(data) - cut < _LONGEST else b""
        block = data[:cut]
        if self._skip:
            block = self._without_skipped(block)
        return render(block, self._query.format) if block else (b"", False)

    def _without_skipped(self, block: bytes) -> bytes:
        at = 0
        while self._skip and at < len(block):
            self._skip -= 1
            at = block.index(b"\n", at) + 1
        return block[at:]

    def _go_on(self, current: LogFile) -> tuple[bytes, Step]:
        """At the end of `current`: to the file behind it, once it is sure that nothing was added before it was renamed."""
        following, known = open_successor(self._path, current)
        if following is None:
            return b"", Step.WAIT if self._query.follow else Step.OVER
        if not self._rotated:
            self._rotated = True
            following.close()
            return b"", Step.MORE
        self._rotated = False
        self._rest = b""
        newest = self._newest
        if not self._query.follow and newest is not None and following.is_same(newest):
            following.close()
            following = newest
        elif not (self._query.follow or known or newest is None or self._still_there(newest)):
            following.close()
            return b"", Step.OVER  # the writer has overtaken this reader: all that it wanted is gone
        self._release()
        self._current = following
        return b"", Step.MORE

    def _still_there(self, newest: LogFile) -> bool:
        following, known = open_successor(self._path, newest)
        if following is not None:
            following.close()
        return known

    def _release(self) -> None:
        if self._current is not None and self._current is not self._newest:
            self._current.close()
        self._current = None

    def close(self) -> None:
        """May be called twice."""
        self._release()
        if self._newest is not None:
            self._newest.close()
            self._newest = None


class LogReader:
    """Reads one container's log for one client. ended: done when the run that is followed has ended, None when there is none."""

    def __init__(self, path: Path, query: LogQuery, ended: asyncio.Future[int] | None) -> None:
        self._path = path
        self._query = query
        self._ended = ended

    def _is_over(self) -> bool:
        return self._ended is None or self._ended.done()

    async def blocks(self) -> AsyncIterator[bytes]:
        """What to send, some at a time, in the order of the log. With follow: until the run has ended.

        A log that cannot be read ends with a frame that says why. Cancelled: files and watch are closed.
        """
        cursor = LogCursor(self._path, self._query)
        watch = Inotify() if self._query.follow else None
        running: asyncio.Future[Any] | None = None
        try:
            if watch is not None:
                watch.add(str(self._path.parent), IN_MODIFY | IN_CREATE | IN_MOVED_TO)
            running = opening = asyncio.ensure_future(asyncio.to_thread(cursor.open))
            await asyncio.shield(opening)
            while True:
                over = (
                    self._is_over()
                )  # looked at before reading: nothing that was written until the end is missed
                running = reading = asyncio.ensure_future(asyncio.to_thread(cursor.step))
                block, step = await asyncio.shield(reading)
                if block:
                    yield block
                if step is Step.OVER or (step is Step.WAIT and (over or watch is None)):
                    return
                if step is Step.WAIT and watch is not None:
                    await self._something_happens(watch)
        except (OSError, zlib.error) as error:
            text = f"Error grabbing logs: {error}\n".encode()
            yield stdcopy.frame(stdcopy.SYSTEM_ERROR, text) if self._query.format.framed else text
        finally:
            if running is not None and not running.done():
                await asyncio.wait(
                    [running]
                )  # a thread cannot be cancelled: the files are its own until it is through
            cursor.close()
            if watch is not None:
                watch.close()

    async def _something_happens(self, watch: Inotify) -> None:
        """Wait until something happened to the log or the run has ended."""
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(watch.fd, lambda: None if readable.done() else readable.set_result(None))
        try:
            waiting: set[asyncio.Future[None] | asyncio.Future[int]] = {readable}
            if self._ended is not None:
                waiting.add(self._ended)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            watch.drain()
        finally:
            loop.remove_reader(watch.fd)
