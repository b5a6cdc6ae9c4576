"""Limits as they are typed: ulimits, device rates and weights, restart policies. Pure."""

from __future__ import annotations

from typing import Any

from ketch.quantities import parse_size

# Source: go-units, ulimit.go.
ULIMITS = frozenset(
    (
        "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
        "rttime", "sigpending", "stack",
    )
)  # fmt: skip


def parse_ulimit(text: str) -> dict[str, Any]:
    """`nofile=1024[:2048]`, soft and hard, as the API takes it. Raises ValueError."""
    name, assigned, values = text.partition("=")
    if not assigned:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    parts = values.split(":")
    if len(parts) > 2:
        raise ValueError(f"too many limit value arguments - {values}, can only have up to two, `soft[:hard]`")
    numbers = [_limit(part) for part in parts]
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and (soft > hard or soft == -1):
        shown = f"{soft} > {hard}" if soft != -1 else f"soft: -1 (unlimited), hard: {hard}"
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {shown}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def _limit(text: str) -> int:
    digits = text[1:] if text[:1] in ("-", "+") else text
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _device(text: str) -> tuple[str, str]:
    path, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, value


def parse_weight(text: str) -> dict[str, Any]:
    """`/dev/sda:100`. Raises ValueError."""
    path, value = _device(text)
    if not (value.isascii() and value.isdigit()) or (int(value) and not 10 <= int(value) <= 1000):
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": int(value)}


def parse_byte_rate(text: str) -> dict[str, Any]:
    """`/dev/sda:1mb`, bytes a second. Raises ValueError."""
    path, value = _device(text)
    try:
        rate = parse_size(value)
    except ValueError:
        rate = -1
    if rate < 0:
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]."
            " Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        )
    return {"Path": path, "Rate": rate}


def parse_operation_rate(text: str) -> dict[str, Any]:
    """`/dev/sda:100`, operations a second. Raises ValueError."""
    path, value = _device(text)
    if not (value.isascii() and value.isdigit()):
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. Number must be a positive integer"
        )
    return {"Path": path, "Rate": int(value)}


def parse_restart(text: str) -> dict[str, Any]:
    """`on-failure:3`, as the API takes it; which names there are is the engine's to say. Raises ValueError."""
    name, colon, count = text.partition(":")
    if colon and not name:
        raise ValueError("invalid restart policy format: no policy provided before colon")
    policy = {"Name": name, "MaximumRetryCount": 0}
    if count:
        digits = count[1:] if count[0] in "+-" else count
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError("invalid restart policy format: maximum retry count must be an integer")
        policy["MaximumRetryCount"] = int(count)
    return policy
