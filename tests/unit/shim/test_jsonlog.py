"""The log's format: whatever bytes a process writes, a reader of the file gets the same bytes, as entries that Docker knows."""

from __future__ import annotations

import errno
import json
import os
from base64 import b64decode
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketchd.shim import jsonlog
from ketchd.shim.jsonlog import LINE_LIMIT, JsonLog, cut_lines, encode_lines, escape, has_long_line

# A busy machine is no reason to fail.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

STAMP = b"2026-11-23T15:21:44.518953819Z"


def read(path: Path) -> list[dict[str, str]]:
    """Every entry, rotated files first."""
    older = sorted(path.parent.glob(path.name + ".*"), key=lambda one: -int(one.suffix[1:]))
    return [json.loads(line) for one in [*older, path] for line in one.read_bytes().splitlines()]


def text_of(entries: list[dict[str, str]], stream: str) -> bytes:
    """What the stream said."""
    return b"".join(
        b64decode(one["log"]) if "encoding" in one else one["log"].encode("utf-8", "surrogateescape")
        for one in entries
        if one["stream"] == stream
    )


def test_the_entry_is_dockers() -> None:
    assert encode_lines(b"out\n", b"stdout", STAMP) == (
        b'{"log":"out\\n","stream":"stdout","time":"2026-11-23T15:21:44.518953819Z"}\n'
    )


@CALM
@given(st.binary(max_size=300))
def test_every_byte_comes_back(data: bytes) -> None:
    line = data.replace(b"\n", b" ") + b"\n"

    entry = json.loads(encode_lines(line, b"stderr", STAMP))

    assert text_of([entry], "stderr") == line
    assert entry["time"] == STAMP.decode()


@CALM
@given(st.text(max_size=200))
def test_text_stays_readable(text: str) -> None:
    """UTF-8 is written as it is: other readers of the file see letters, not escapes."""
    escaped = escape(text.encode("utf-8", "replace").replace(b"\n", b""))

    assert not [
        char
        for char in text
        if char.isalpha() and char.isprintable() and char.encode("utf-8", "replace") not in escaped
    ]


@CALM
@given(st.lists(st.tuples(st.sampled_from([b"stdout", b"stderr"]), st.binary(max_size=3000)), max_size=12))
def test_any_cut_of_two_streams_comes_back_whole(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[bytes, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "json.log"
    log = JsonLog(str(path), 0, 1)
    for stream, chunk in chunks:
        log.write(stream, chunk)
    log.close()

    entries = read(path)
    for stream in (b"stdout", b"stderr"):
        said = b"".join(chunk for one, chunk in chunks if one == stream)
        assert text_of(entries, stream.decode()) == said
    assert all("\n" not in one["log"][:-1] for one in entries)


BLOCKS = st.sampled_from(
    [
        b"\0" * 5000,
        bytes(range(256)) * 4,
        bytes(range(256)) * 70,
        b"text\n" * 200,
        "é水".encode() * 300,
        b"\xe9\n" * 400,
        b"\n",
    ]
)


@CALM
@given(st.lists(st.tuples(st.sampled_from([b"stdout", b"stderr"]), BLOCKS), max_size=12))
def test_text_and_what_is_none_come_back_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[bytes, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "json.log"
    log = JsonLog(str(path), 0, 1)
    for stream, chunk in chunks:
        log.write(stream, chunk)
    log.close()

    entries = read(path)
    for stream in (b"stdout", b"stderr"):
        assert text_of(entries, stream.decode()) == b"".join(chunk for one, chunk in chunks if one == stream)
    assert all(len(text_of([one], one["stream"])) <= LINE_LIMIT for one in entries)


@pytest.mark.parametrize("data", [bytes(range(256)) * 4096, b"\0" * (1 << 20)], ids=["every byte", "zeros"])
def test_what_is_no_text_takes_little_more_than_itself(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "json.log"
    log = JsonLog(str(path), 0, 1)
    for start in range(0, len(data), 65536):
        log.write(b"stdout", data[start : start + 65536])
    log.close()

    assert text_of(read(path), "stdout") == data
    assert path.stat().st_size < 1.8 * len(data)


@pytest.mark.parametrize(
    "text",
    [
        "Grüße, 世界, привет\n" * 100, "\x1b[31mred\x1b[0m\r\n" * 100, "a\tb\f\b\n" * 100, "\x07\x00\x01\n",
        "the bell \x07 rings in every line of this\n" * 100,
    ],
)  # fmt: skip
def test_text_is_not_taken_for_something_else(text: str) -> None:
    entries = [json.loads(entry) for entry in cut_lines(text.encode(), b"stdout", STAMP).splitlines()]

    assert "".join(one["log"] for one in entries) == text


@pytest.mark.parametrize(
    "length", [0, 1, LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1, 3 * LINE_LIMIT, 3 * LINE_LIMIT + 5]
)
@pytest.mark.parametrize("step", [1000, LINE_LIMIT, 1 << 20])
def test_long_lines_become_pieces_wherever_the_reads_cut_them(tmp_path: Path, length: int, step: int) -> None:
    path = tmp_path / "json.log"
    log = JsonLog(str(path), 0, 1)
    data = b"x" * length + b"\nnext\n"
    for start in range(0, len(data), step):
        log.write(b"stdout", data[start : start + step])
    log.close()

    lengths = [len(one["log"]) for one in read(path)]
    assert lengths == [LINE_LIMIT] * (length // LINE_LIMIT) + [length % LINE_LIMIT + 1, 5]


@CALM
@given(st.lists(st.integers(0, 3 * LINE_LIMIT), max_size=6))
def test_long_lines_are_seen(lengths: list[int]) -> None:
    lines = b"".join(b"y" * length + b"\n" for length in lengths)

    assert has_long_line(lines) == any(length >= LINE_LIMIT for length in lengths)


def test_cut_lines_keeps_what_is_between() -> None:
    lines = b"a\n" + b"b" * (LINE_LIMIT + 2) + b"\nc\n"

    entries = [json.loads(entry)["log"] for entry in cut_lines(lines, b"stdout", STAMP).splitlines()]

    assert entries == ["a\n", "b" * LINE_LIMIT, "bb\n", "c\n"]


def test_an_entry_that_a_crash_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "json.log"
    path.write_bytes(b'{"log":"whole\\n","stream":"stdout","time":"t"}\n{"log":"cut of')
    log = JsonLog(str(path), 0, 1)
    log.write(b"stdout", b"next\n")
    log.close()

    whole, cut, following = path.read_bytes().splitlines()
    assert json.loads(whole)["log"] == "whole\n"
    assert cut == b'{"log":"cut of'
    assert json.loads(following)["log"] == "next\n"


def test_rotation_keeps_the_newest_and_cuts_between_entries(tmp_path: Path) -> None:
    path = tmp_path / "json.log"
    log = JsonLog(str(path), 1000, 3)
    for number in range(200):
        log.write(b"stdout", b"".join(b"line %d.%d\n" % (number, part) for part in range(5)))
    log.close()

    assert sorted(one.name for one in tmp_path.iterdir()) == ["json.log", "json.log.1", "json.log.2"]
    texts = [one["log"] for one in read(path)]
    assert texts[-1] == "line 199.4\n"
    wanted = [f"line {number}.{part}\n" for number in range(200) for part in range(5)]
    assert texts == wanted[-len(texts) :]


def test_a_single_file_is_another_file_after_rotation(tmp_path: Path) -> None:
    """A follower sees by the inode that it must open it again."""
    path = tmp_path / "json.log"
    log = JsonLog(str(path), 300, 1)
    log.write(b"stdout", b"first\n")
    before = path.stat().st_ino
    keep = path.open("rb")
    log.write(b"stdout", b"second line that is long enough\n" * 10)
    log.close()

    assert path.stat().st_ino != before
    keep.close()


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    log = JsonLog("/dev/full", 0, 1)

    log.write(b"stdout", b"lost\n")

    log.close()


def test_an_entry_that_a_full_disk_cut_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    log = JsonLog(str(path), 0, 1)
    log.write(b"stdout", b"first\n")
    room, write = [30], os.write

    def scarce(fd: int, data: bytes) -> int:
        """The disk has room for some bytes more."""
        if not room[0]:
            raise OSError(errno.ENOSPC, "no space left on device")
        written = write(fd, bytes(data)[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as disk:
        disk.setattr(jsonlog.os, "write", scarce)
        log.write(b"stdout", b"lost\n")
        log.write(b"stdout", b"lost too\n")
    log.write(b"stdout", b"after\n")
    log.close()

    whole = [line for line in path.read_bytes().splitlines() if line.endswith(b"}")]
    assert [json.loads(line)["log"] for line in whole] == ["first\n", "after\n"]


@pytest.mark.parametrize("call", ["rename", "open"])
def test_a_rotation_that_fails_costs_no_more_than_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """And what gets the closed file's number meanwhile, a client's socket perhaps, sees nothing of the log."""
    path = tmp_path / "log"
    log = JsonLog(str(path), 100, 3)
    log.write(b"stdout", b"first\n")
    number = log._fd

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(jsonlog.os, call, full)
        log.write(b"stdout", b"lost\n" * 9)
    other = os.memfd_create("other")
    assert other == number
    log.write(b"stdout", b"after\n")
    log.close()

    assert os.fstat(other).st_size == 0
    os.close(other)
    assert "after\n" in [entry["log"] for entry in read(path)]
