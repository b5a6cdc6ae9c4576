"""Times as the Engine API writes and reads them. Pure."""

from __future__ import annotations

import functools
import json
import re
from datetime import UTC, datetime

from ketch_wire.faults import InvalidInput

ZERO_TIME = "0001-01-01T00:00:00Z"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def rfc3339(time_ns: int) -> str:
    """RFC3339Nano in UTC, trailing zeros of the fraction trimmed, as Go prints it."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    trimmed = f"{fraction:09d}".rstrip("0")
    return f"{_second(seconds)}.{trimmed}Z" if trimmed else f"{_second(seconds)}Z"


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    """Lines of a log and results of probes come many to a second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def go_quote(text: str) -> str:
    """`text` in double quotes, as Go's %q writes it (but for letters outside ASCII, which stay)."""
    return json.dumps(text, ensure_ascii=False)


def parse_timestamp(text: str, now_ns: int) -> int:
    """`1700000000`, `1700000000.5`, RFC 3339, or a Go duration before now, as ns since the epoch. Raises InvalidInput."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        whole, _, fraction = text.partition(".")
        return int(whole) * 1_000_000_000 + int((fraction + "000000000")[:9])
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text.lstrip("-"):
        return now_ns - int(sum(float(number) * _UNITS_NS[unit] for number, unit in parts))
    try:
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        raise InvalidInput(f"failed to parse value as time or duration: {go_quote(text[:60])}") from None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1_000_000) * 1000
