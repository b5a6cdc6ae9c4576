"""Sizes, durations, times and CPUs: read as docker reads them, written as it writes them. Pure."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

NANOSECOND = 1
SECOND = 1_000_000_000
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": SECOND,
    "m": 60 * SECOND,
    "h": 3600 * SECOND,
}
_BINARY = "bkmgtp"


def parse_size(text: str) -> int:
    """`512m`, `1.5GiB`, `-1` as bytes, in powers of 1024. Raises ValueError. Source: go-units, RAMInBytes."""
    end = max((at + 1 for at, letter in enumerate(text) if letter in "0123456789. "), default=-1)
    if end < 0:
        raise ValueError(f"invalid size: '{text}'")
    number, suffix = text[:end], text[end:]
    if number.endswith(" "):
        number = number[:-1]
    try:
        value = float(number)
        if number != number.strip() or "_" in number or "n" in number.lower():
            raise ValueError
    except ValueError:
        raise ValueError(f"invalid size: '{text}'") from None
    if value < 0:
        if value == -1 and not suffix:
            return -1
        raise ValueError(f"invalid size: '{text}'")
    lower = suffix.lower()
    if lower in ("", "b"):
        return int(value)
    if lower[0] not in _BINARY[1:] or lower[1:] not in ("", "b", "ib"):
        raise ValueError(f"invalid suffix: '{suffix}'")
    return int(value * 1024 ** _BINARY.index(lower[0]))


def parse_duration(text: str) -> int:
    """`1h2m3.5s` as nanoseconds. Raises ValueError. Source: Go, time.ParseDuration."""
    invalid = ValueError(f'time: invalid duration "{text}"')
    rest, sign = text, 1
    if rest[:1] in ("-", "+"):
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total = 0
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        unit_end = digits
        while unit_end < len(rest) and rest[unit_end] not in "0123456789.":
            unit_end += 1
        number, unit, rest = rest[:digits], rest[digits:unit_end], rest[unit_end:]
        if not number or number == "." or number.count(".") > 1:
            raise invalid
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        whole, _, fraction = number.partition(".")
        total += int(whole or 0) * _UNITS[unit]
        if fraction:
            total += int(fraction) * _UNITS[unit] // 10 ** len(fraction)
    return sign * total


def parse_nano_cpus(text: str) -> int:
    """`1.5` or `3/2` CPUs as billionths of one. Raises ValueError. Source: docker/cli opts, ParseCPUs."""
    from fractions import Fraction

    try:
        if text != text.strip():
            raise ValueError
        nano = Fraction(text) * 1_000_000_000
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if nano.denominator != 1:
        raise ValueError("value is too precise")
    return int(nano)


def human_size(size: float, precision: int = 4) -> str:
    """`12.3MB`, in powers of 1000. Source: go-units, HumanSizeWithPrecision."""
    return _scaled(size, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"), precision)


def binary_size(size: float) -> str:
    """`12.3MiB`, in powers of 1024. Source: go-units, BytesSize."""
    return _scaled(size, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"), 4)


def _scaled(size: float, base: float, units: tuple[str, ...], precision: int) -> str:
    at = 0
    while size >= base and at < len(units) - 1:
        size /= base
        at += 1
    text = f"{size:.{precision}g}"
    if "e" in text:
        text = str(int(float(text)))
    return text + units[at]


def human_duration(seconds: float) -> str:
    """`2 minutes`. Source: go-units, HumanDuration."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"


def parse_time(text: str) -> datetime:
    """An RFC 3339 time of the API, whose fraction may have nine digits. Raises ValueError."""
    head, dot, rest = text.partition(".")
    if dot:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        head += "." + rest[:digits][:6].ljust(6, "0") + rest[digits:]
    return datetime.fromisoformat(head.replace("Z", "+00:00"))


def parse_moment(text: str, now: float) -> str:
    """`--since` and `--until`: a duration before `now`, a date, or seconds, as the API's `seconds.nanoseconds`.

    Raises ValueError. Source: docker/docker api/types/time, GetTimestamp.
    """
    ago = None
    with contextlib.suppress(ValueError):
        ago = parse_duration(text) if text != "0" else None  # that one is 1970
    if ago is not None:
        nanoseconds = int(now * 1_000_000_000) - ago
        return f"{nanoseconds // SECOND}.{nanoseconds % SECOND:09d}"
    if text.replace(".", "", 1).isdigit():
        return text
    try:
        moment = parse_time(text)
    except ValueError:
        raise ValueError(f'failed to parse value as time or duration: "{text}"') from None
    if moment.tzinfo is None:
        moment = moment.astimezone()
    _, _, fraction = text.partition(".")
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    return f"{int(moment.timestamp() // 1)}.{digits[:9].ljust(9, '0')}"


def local_time(seconds: float) -> str:
    """A moment as docker's templates show it: `2026-11-24 16:18:00 +0000 UTC`."""
    moment = datetime.fromtimestamp(int(seconds), UTC).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S %z} {moment.tzname()}"
