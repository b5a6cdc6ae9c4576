"""Reading a log while its writer turns, compresses and removes files: every order of what the two do, no line lost or doubled."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketch_testing.contained import until
from ketchd.containers.logfiles import open_all
from ketchd.containers.logformat import LogFormat, stamp
from ketchd.containers.logs import LogCursor, LogQuery, LogReader, Step
from ketchd.shim.jsonlog import JsonLog, encode_lines

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
PLAIN = LogFormat(framed=False)
SECOND = 1_000_000_000


class Later:
    """A loop whose timers come when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def step(self) -> None:
        if self.calls:
            self.calls.pop(0)()


class Writer:
    """A log that numbers its lines."""

    def __init__(self, path: Path, files: int, compress: bool) -> None:
        self.loop = Later()
        loop: Any = self.loop if compress else None
        self.log = JsonLog(str(path), 600, files, compressor=loop)
        self.count = 0

    def write(self, lines: int) -> None:
        for _ in range(lines):
            self.log.write(b"stdout", b"%d\n" % self.count)
            self.count += 1


def numbers(data: bytes) -> list[int]:
    return [int(line) for line in data.split()]


def read_all(path: Path, query: LogQuery) -> bytes:
    cursor = LogCursor(path, query)
    cursor.open()
    data = b""
    while True:
        block, step = cursor.step()
        data += block
        if step is not Step.MORE:
            cursor.close()
            return data


@CALM
@given(
    st.lists(
        st.one_of(st.integers(1, 12), st.just("read"), st.just("step"), st.just("compress")), max_size=80
    ),
    st.integers(2, 5),
    st.booleans(),
)
def test_a_follower_gets_what_is_kept_in_order_and_once(
    actions: list[Any], files: int, compress: bool
) -> None:
    """It may be overtaken by the bound; then it goes on with the oldest that there is."""
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "x-json.log"
        writer = Writer(path, files, compress)
        cursor = LogCursor(path, LogQuery(PLAIN, follow=True))
        cursor.open()
        got: list[int] = []

        def read_on() -> None:
            kept = numbers(read_all(path, LogQuery(PLAIN)))
            assert kept == list(range(writer.count - len(kept), writer.count))
            while True:
                block, step = cursor.step()
                got.extend(numbers(block))
                if step is Step.WAIT:
                    break
            assert set(kept) <= set(got)

        for action in actions:
            if isinstance(action, int):
                writer.write(action)
            elif action == "compress":
                writer.loop.step()
            elif action == "step":
                got += numbers(cursor.step()[0])
            else:
                read_on()
        read_on()
        cursor.close()
        writer.log.close()

        assert got == sorted(set(got))
        assert not writer.count or got[-1] == writer.count - 1


@CALM
@given(
    st.lists(st.integers(1, 10), min_size=1, max_size=40),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 70),
)
def test_the_tail_is_the_end_of_the_whole(writes: list[int], files: int, compress: bool, tail: int) -> None:
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "x-json.log"
        writer = Writer(path, files, compress)
        for lines in writes:
            writer.write(lines)
            writer.loop.step()
        whole = numbers(read_all(path, LogQuery(PLAIN)))
        assert whole == list(range(writer.count - len(whole), writer.count))
        assert numbers(read_all(path, LogQuery(PLAIN, tail=tail))) == (whole[-tail:] if tail else [])
        writer.log.close()


@pytest.mark.parametrize("at", [0, 1, 7, 2500, 49_999, 50_000])
def test_since_halves_the_file(tmp_path: Path, at: int) -> None:
    path = tmp_path / "x-json.log"
    path.write_bytes(
        b"".join(encode_lines(b"%d\n" % one, b"stdout", stamp(one * SECOND)) for one in range(50_000))
    )
    query = LogQuery(replace(PLAIN, since=stamp(at * SECOND)))

    assert numbers(read_all(path, query)) == list(range(at, 50_000))
    (file,) = open_all(path)
    file.seek_time(stamp(at * SECOND))
    first = file.read().split(b"\n", 1)[0]
    file.close()
    if 0 < at < 50_000:
        assert stamp((at - 6000) * SECOND) <= first[-32:-2] <= stamp(at * SECOND)


def test_until_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "x-json.log"
    path.write_bytes(
        b"".join(encode_lines(b"%d\n" % one, b"stdout", stamp(one * SECOND)) for one in range(100))
    )

    assert numbers(read_all(path, LogQuery(replace(PLAIN, until=stamp(41 * SECOND))))) == list(range(42))


def test_what_grows_while_it_is_read_is_not_chased(tmp_path: Path) -> None:
    """Without follow a reader that is slower than the writer would never come to an end."""
    path = tmp_path / "x-json.log"
    writer = Writer(path, 5, False)
    writer.write(3)
    cursor = LogCursor(path, LogQuery(PLAIN))
    cursor.open()
    data = b""
    for _ in range(100):
        writer.write(2)
        block, step = cursor.step()
        data += block
        if step is Step.OVER:
            break
    cursor.close()
    writer.log.close()
    assert (numbers(data), step) == ([0, 1, 2], Step.OVER)


async def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "none", LogQuery(PLAIN), None)
    assert [block async for block in reader.blocks()] == []


async def test_a_log_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "x-json.log").mkdir()
    blocks = [block async for block in LogReader(tmp_path / "x-json.log", LogQuery(), None).blocks()]
    assert blocks[-1][0] == 3 and b"Error grabbing logs: " in blocks[-1]


async def test_a_follower_that_is_cancelled_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "x-json.log"
    path.write_bytes(encode_lines(b"1\n", b"stdout", stamp(0)))
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    got: list[bytes] = []

    async def follow() -> None:
        async for block in LogReader(path, LogQuery(PLAIN, follow=True), ended).blocks():
            got.append(block)

    task = asyncio.ensure_future(follow())
    await until(lambda: len(got) == 1)
    with path.open("ab") as log:
        log.write(encode_lines(b"2\n", b"stdout", stamp(1)))
    await until(lambda: len(got) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert got == [b"1\n", b"2\n"] and task.cancelled()


def test_a_new_file_may_have_the_inode_of_one_that_was_compressed(tmp_path: Path) -> None:
    """It is another file all the same."""
    path = tmp_path / "x-json.log"
    writer = Writer(path, 4, True)
    for _ in range(40):
        writer.write(3)
        for _ in range(4):
            writer.loop.step()
        kept = numbers(read_all(path, LogQuery(PLAIN)))
        assert kept == list(range(writer.count - len(kept), writer.count))
    assert len(kept) > 18
    writer.log.close()
