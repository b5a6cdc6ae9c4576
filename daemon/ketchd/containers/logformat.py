"""From stored log entries to what the logs endpoint sends: chosen, stamped and framed, a block at a time. Pure.

An entry is one line: {"log":TEXT[,"encoding":"base64"],"stream":"stdout"|"stderr"[,"attrs":{…}],"time":T}, written by
`ketchd.shim.jsonlog` alone.
T has always 30 characters, so what stands behind TEXT has a fixed length and a block is cut by slices: a log of 100 MB has a
million entries, and decoding each as JSON took five times as long. Source: Engine API, ContainerLogs.
"""

from __future__ import annotations

import binascii
import json
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote_plus

_HEAD = b'{"log":"'
_NEXT = b'"}\n{"log":"'
_TIME = 30
_LAST = 253402300799 * 1_000_000_000  # of the year 9999
_TAIL = len(b'","stream":"stdout","time":"') + _TIME
_STREAM_AT = -(_TAIL - len(b'","stream":"std'))
_OUT, _ERR = b'","stream":"stdout","time":"', b'","stream":"stderr","time":"'
_ENCODED = b'","encoding":"'
_FRAME = struct.Struct(">B3xI").pack
_ESCAPE = re.compile(rb'\\(?:u00..|["trbf])', re.DOTALL)
_LETTERS = {b'\\"': b'"', b"\\t": b"\t", b"\\r": b"\r", b"\\b": b"\b", b"\\f": b"\f"}
_LETTERS |= {b"\\u%04x" % code: bytes((code,)) for code in range(0x20)}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One stored entry. time: as written, RFC 3339 with nine digits of fraction. attrs: of `--log-opt labels` and the like."""

    stream: str
    text: bytes
    time: str
    attrs: dict[str, str]


@dataclass(frozen=True, slots=True)
class LogFormat:
    """What is wanted of an entry. since, until: made by `stamp`, both inclusive, b"" for no limit. framed: as stdcopy frames."""

    stdout: bool = True
    stderr: bool = True
    since: bytes = b""
    until: bytes = b""
    timestamps: bool = False
    details: bool = False
    framed: bool = True


def parse_line(line: bytes) -> LogLine | None:
    """One line of the file, or None for one that a crash cut short."""
    try:
        entry = json.loads(line)
        if "encoding" in entry:
            text = binascii.a2b_base64(entry["log"])
        else:
            text = entry["log"].encode("utf-8", "surrogateescape")
        return LogLine(entry["stream"], text, entry["time"], entry.get("attrs") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def stamp(time_ns: int) -> bytes:
    """A moment as entries have it: the order of such texts is the order of times."""
    seconds, nanoseconds = divmod(max(0, min(time_ns, _LAST)), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z".encode()


def time_of(line: bytes) -> bytes:
    """When a whole line, its newline left out, was written; b"" for a damaged one."""
    time = line[-2 - _TIME : -2]
    return time if line.startswith(_HEAD) and line.endswith(b'Z"}') and time[10:11] == b"T" else b""


def render(block: bytes, wanted: LogFormat) -> tuple[bytes, bool]:
    """What is sent for `block`, which holds whole lines and is not empty; and whether `until` was passed, so that it is over."""
    parts = None
    if not wanted.details:
        parts = _cut(block)
    if parts is None:
        return _render_slowly(block, wanted)
    if not (wanted.until or wanted.since or wanted.timestamps) and wanted.stdout and wanted.stderr:
        if not wanted.framed:
            return b"".join([part[:-_TAIL] for part in parts]), False
        if _ERR not in block:
            return b"".join([_FRAME(1, len(part) - _TAIL) + part[:-_TAIL] for part in parts]), False
    return _choose(parts, wanted)


def _choose(parts: list[bytes], wanted: LogFormat) -> tuple[bytes, bool]:
    stdout, stderr, since, until = wanted.stdout, wanted.stderr, wanted.since, wanted.until
    framed, timestamps = wanted.framed, wanted.timestamps
    sent: list[bytes] = []
    over = False
    for part in parts:
        time = part[-_TIME:]
        if until and time > until:
            over = True
            break
        if since and time < since:
            continue
        is_error = part[_STREAM_AT] == 0x65  # std*e*rr
        if not (stderr if is_error else stdout):
            continue
        text = part[:-_TAIL]
        if timestamps:
            text = time + b" " + text
        if framed:
            sent.append(_FRAME(2 if is_error else 1, len(text)))
        sent.append(text)
    return b"".join(sent), over


def _cut(block: bytes) -> list[bytes] | None:
    """The entries, their text decoded, `","stream":…` behind it; None when some are not of the usual shape."""
    entries = block.count(b"\n")
    if block.count(_OUT) + block.count(_ERR) != entries or not block.startswith(_HEAD):
        return None  # attributes, or an entry that a crash cut short
    if _ENCODED in block:
        return None  # what is no text; in a text, the quotes would have backslashes
    if b"\\" in block:
        if b"\\udc" in block:
            return None  # bytes that are no text
        # 0xff never stands in the file, which is valid UTF-8; newlines stand only where a text ends.
        doubled = b"\\\\" in block
        if doubled:
            block = block.replace(b"\\\\", b"\xff")
        block = block.replace(b'\\n","stream":"', b'\n","stream":"')
        if b"\\" in block:
            for escaped in set(_ESCAPE.findall(block)):  # few kinds, each of them often
                if escaped not in _LETTERS:
                    return None
                block = block.replace(escaped, _LETTERS[escaped])
        if doubled:
            block = block.replace(b"\xff", b"\\")
    parts = block[len(_HEAD) : -3].split(_NEXT)
    return parts if len(parts) == entries else None


def _render_slowly(block: bytes, wanted: LogFormat) -> tuple[bytes, bool]:
    sent: list[bytes] = []
    for raw in block.split(b"\n"):
        line = parse_line(raw) if raw else None
        if line is None:
            continue
        time = line.time.encode()
        if wanted.until and time > wanted.until:
            return b"".join(sent), True
        is_error = line.stream == "stderr"
        if not (wanted.stderr if is_error else wanted.stdout) or (wanted.since and time < wanted.since):
            continue
        text = line.text
        if wanted.details:
            text = details(line.attrs).encode() + b" " + text
        if wanted.timestamps:
            text = time + b" " + text
        sent.append(_FRAME(2 if is_error else 1, len(text)) + text if wanted.framed else text)
    return b"".join(sent), False


def details(attrs: dict[str, str]) -> str:
    """Attributes as `k=v,k2=v2`, sorted and escaped as in a URL's query."""
    return ",".join(f"{quote_plus(key)}={quote_plus(str(value))}" for key, value in sorted(attrs.items()))
