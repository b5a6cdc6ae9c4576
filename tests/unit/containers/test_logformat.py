"""What the logs endpoint makes of stored entries: the fast way and the slow one say the same, whatever was logged."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketch_wire.stdcopy import StreamReader
from ketchd.containers import logformat
from ketchd.containers.logformat import LogFormat, details, parse_line, render, stamp, time_of
from ketchd.shim.jsonlog import encode_binary, encode_lines, encode_piece

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SECOND = 1_000_000_000
TRICKY = st.sampled_from(
    [b'"', b"\\", b"\\n", b'\\"', b'"}', b'{"log":"', b'","stream":"stdout","time":"', b"\xff", b"\xed\xb3\xbf", b"\0",
     b"\\u001b", b"\x1b[1m", b"\t", b"\r", b"\xc3\xa9", b"x" * 40, b'"attrs":{"a":"b"}', b"\\udc80"]
)  # fmt: skip
TEXT = st.lists(st.one_of(TRICKY, st.binary(max_size=5)), max_size=6).map(
    lambda parts: b"".join(parts).replace(b"\n", b"")
)
ENTRY = st.tuples(TEXT, st.booleans(), st.booleans(), st.integers(0, 20), st.booleans())
FORMAT = st.builds(
    LogFormat, stdout=st.booleans(), stderr=st.booleans(), timestamps=st.booleans(), details=st.booleans(), framed=st.booleans(),
    since=st.sampled_from([b"", stamp(5 * SECOND)]), until=st.sampled_from([b"", stamp(15 * SECOND)]),
)  # fmt: skip


def stored(entries: list[tuple[bytes, bool, bool, int, bool]]) -> bytes:
    """The file's bytes of (text, has a newline, is stderr, second, has attributes)."""
    lines = []
    for text, whole, is_error, second, has_attrs in entries:
        stream = b"stderr" if is_error else b"stdout"
        attrs = b'"attrs":{"tag":"a b"},' if has_attrs else b""
        if whole:
            lines.append(encode_lines(text + b"\n", stream, stamp(second * SECOND), attrs))
        else:
            lines.append(encode_piece(text, stream, stamp(second * SECOND), attrs))
    return b"".join(lines)


def expected(entries: list[tuple[bytes, bool, bool, int, bool]], wanted: LogFormat) -> tuple[bytes, bool]:
    """The contract, written down as plainly as can be."""
    sent = b""
    for text, whole, is_error, second, has_attrs in entries:
        time = stamp(second * SECOND)
        if wanted.until and time > wanted.until:
            return sent, True
        if (wanted.since and time < wanted.since) or not (wanted.stderr if is_error else wanted.stdout):
            continue
        shown = text + (b"\n" if whole else b"")
        if wanted.details:
            shown = (b"tag=a+b " if has_attrs else b" ") + shown
        if wanted.timestamps:
            shown = time + b" " + shown
        if wanted.framed:
            sent += bytes((2 if is_error else 1, 0, 0, 0)) + len(shown).to_bytes(4, "big")
        sent += shown
    return sent, False


@CALM
@given(st.lists(ENTRY, min_size=1, max_size=12), FORMAT)
def test_every_entry_comes_as_it_was_written(
    entries: list[tuple[bytes, bool, bool, int, bool]], wanted: LogFormat
) -> None:
    assert render(stored(entries), wanted) == expected(entries, wanted)


@CALM
@given(st.lists(ENTRY, min_size=1, max_size=8))
def test_usual_entries_take_the_fast_way(entries: list[tuple[bytes, bool, bool, int, bool]]) -> None:
    """Without this the measured speed would be another program's."""
    plain = [(text, whole, is_error, second, False) for text, whole, is_error, second, _ in entries]
    try:
        b"".join(text for text, *_ in plain).decode()
    except UnicodeDecodeError:
        return
    assert b"\\udc" in stored(plain) or logformat._cut(stored(plain)) is not None


@pytest.mark.parametrize(
    "wanted", [LogFormat(framed=False), LogFormat(), LogFormat(timestamps=True), LogFormat(stderr=False)]
)
def test_what_is_no_text_comes_back_too(wanted: LogFormat) -> None:
    """Before it, behind it and within a text there is what looks like it."""
    pieces = [bytes(range(256)), b"\0" * 600 + b"\n"]
    texts = [b'","encoding":"base64"\n', b"text\n"]
    block = (
        encode_lines(texts[0], b"stdout", stamp(SECOND))
        + encode_binary(pieces, b"stderr", stamp(2 * SECOND), b'"attrs":{"tag":"t"},')
        + encode_lines(texts[1], b"stdout", stamp(3 * SECOND))
    )
    entries = [(texts[0][:-1], True, False, 1, False)]
    entries += [(one.removesuffix(b"\n"), one.endswith(b"\n"), True, 2, True) for one in pieces]
    entries += [(texts[1][:-1], True, False, 3, False)]

    assert render(block, wanted) == expected(entries, wanted)


def test_what_a_crash_cut_short_is_left_out() -> None:
    good = encode_lines(b"good\n", b"stdout", stamp(SECOND))
    block = good + b'{"log":"cut of\n' + good + b"\n" + b'{"log":1}\n' + b"nonsense\n"

    sent, over = render(block, LogFormat(framed=False))

    assert (sent, over) == (b"good\ngood\n", False)


@pytest.mark.parametrize("bad", [b"", b"{}", b"[" * 5000, b'{"log":"x"}', b"\xff\xfe", b"null"])
def test_damage_is_no_line(bad: bytes) -> None:
    assert parse_line(bad) is None
    assert time_of(bad) == b""


def test_a_stamp_orders_as_its_time() -> None:
    times = [0, 1, 999_999_999, SECOND, 1_700_000_000 * SECOND + 5, 1 << 62]

    assert [stamp(one) for one in times] == sorted(stamp(one) for one in times)
    assert stamp(1795447304_518953819) == b"2026-11-23T15:21:44.518953819Z"
    assert {len(stamp(one)) for one in (*times, -5)} == {30}


def test_details_are_a_query() -> None:
    assert details({"b": "2&", "a": "x y"}) == "a=x+y,b=2%26"
    assert details({}) == ""


def test_a_frame_for_each_entry() -> None:
    block = encode_lines(b"one\n\n", b"stdout", stamp(0)) + encode_lines(b"two\n", b"stderr", stamp(0))

    frames = StreamReader().feed(render(block, LogFormat())[0])

    assert [(one.stream, one.payload) for one in frames] == [(1, b"one\n"), (1, b"\n"), (2, b"two\n")]
    assert json.loads(block.splitlines()[1])["log"] == "\n"
