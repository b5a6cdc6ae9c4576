"""What to delete when the disk fills: which things, in which order, why. Pure.

The cheapest loss goes first: what nobody needs, then what has arrived of downloads that ended early, then compressed forms of
layers that are unpacked here, then results of builds that nobody has used for long. Images, containers and volumes are never among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ketch_wire.faults import InvalidInput

Class = Literal["garbage", "partial", "blob", "cache"]
ORDER: tuple[Class, ...] = ("garbage", "partial", "blob", "cache")
_HOUR_NS = 3600 * 1_000_000_000
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True)
class Policy:
    """low, high: free space of the data root's file system in percent: below low deleting begins, at high it ends.

    partial_bytes, blob_bytes, cache_bytes: budgets, bytes that downloads that ended early, compressed layers and the build cache
    may take at any time; 0: as much as there is. cache_hours: a build's result younger than that stays, short of space or not.
    partial_hours: how long a download that ended early waits for who goes on with it. garbage_hours: how long what nobody needs
    stays. interval_seconds: between two looks at the disk; 0: none.
    """

    low: float = 10.0
    high: float = 15.0
    partial_bytes: int = 10 << 30
    partial_hours: float = 7 * 24.0
    blob_bytes: int = 0
    cache_bytes: int = 0
    cache_hours: float = 48.0
    garbage_hours: float = 1.0
    interval_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system. Bytes."""

    total: int
    free: int

    @property
    def percent(self) -> float:
        """Of it that is free."""
        return 100.0 * self.free / self.total if self.total else 100.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A thing that may go. size: bytes that its going frees. rank: among those of its class, the lower first."""

    kind: str
    key: str
    size: int
    last_used_ns: int
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Deletion:
    """What goes, and why."""

    candidate: Candidate
    reason: str


def read_policy(sent: Mapping[str, Any]) -> Policy:
    """The `gc` object of the configuration file, its keys with hyphens. Raises InvalidInput by name.

    Sizes are bytes, or texts with a unit (`20G`).
    """
    known = {
        "low", "high", "partial-budget", "partial-hours", "blob-budget", "cache-budget", "cache-hours", "garbage-hours",
        "interval",
    }  # fmt: skip
    if unknown := sorted(set(sent) - known):
        raise InvalidInput(f"ketch.gc has no setting {', '.join(unknown)}")
    plain = Policy()
    policy = Policy(
        low=_number(sent, "low", plain.low),
        high=_number(sent, "high", max(plain.high, _number(sent, "low", plain.low))),
        partial_bytes=_bytes(sent, "partial-budget", plain.partial_bytes),
        partial_hours=_number(sent, "partial-hours", plain.partial_hours),
        blob_bytes=_bytes(sent, "blob-budget", plain.blob_bytes),
        cache_bytes=_bytes(sent, "cache-budget", plain.cache_bytes),
        cache_hours=_number(sent, "cache-hours", plain.cache_hours),
        garbage_hours=_number(sent, "garbage-hours", plain.garbage_hours),
        interval_seconds=_number(sent, "interval", plain.interval_seconds),
    )
    if not 0 <= policy.low <= policy.high <= 100:
        raise InvalidInput(
            f"ketch.gc: low ({policy.low:g}) and high ({policy.high:g}) are percentages, low not above high"
        )
    return policy


def decide(
    policy: Policy,
    disk: Disk,
    candidates: Mapping[Class, Sequence[Candidate]],
    used: Mapping[Class, int],
    now_ns: int,
    *,
    asked: bool = False,
) -> list[Deletion]:
    """What goes now, in this order. used: bytes that each class takes in all. asked: by a user, who wants garbage gone in any case."""
    found: list[Deletion] = []
    is_short = disk.percent < policy.low
    free, wanted = disk.free, disk.total * policy.high / 100
    for name in ORDER:
        left = used.get(name, 0)
        budget = {
            "garbage": 0, "partial": policy.partial_bytes, "blob": policy.blob_bytes, "cache": policy.cache_bytes
        }[name]  # fmt: skip
        for one in sorted(candidates.get(name, ()), key=lambda one: (one.rank, one.last_used_ns, one.key)):
            unused_hours = max(0, now_ns - one.last_used_ns) / _HOUR_NS
            reason = ""
            if name == "garbage":
                if unused_hours >= policy.garbage_hours and (asked or is_short):
                    reason = f"nothing needs it, and nobody used it for {_age(unused_hours)}"
            elif name == "partial" and unused_hours >= policy.partial_hours:
                reason = f"the download ended early, and nobody went on with it for {_age(unused_hours)}"
            elif budget and left > budget:
                reason = f"{_TITLES[name]} takes {_shown(left)}, its budget is {_shown(budget)}"
            elif is_short and free < wanted and (name != "cache" or unused_hours >= policy.cache_hours):
                reason = (
                    f"{disk.percent:.1f} % of the disk was free, less than {policy.low:g} %: {_WHY[name]}, "
                    f"not used for {_age(unused_hours)}"
                )
            if reason:
                found.append(Deletion(one, reason))
                free += one.size
                left -= one.size
    return found


_TITLES = {
    "partial": "what has arrived of downloads that ended early",
    "blob": "the compressed form of unpacked layers",
    "cache": "the build cache",
}
_WHY = {
    "partial": "the download can begin anew",
    "blob": "its layer is unpacked here",
    "cache": "a build makes it again",
}


def _age(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _number(sent: Mapping[str, Any], key: str, default: float) -> float:
    value = sent.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InvalidInput(f"ketch.gc: {key} is no number that could be meant: {str(value)[:40]!r}")
    return float(value)


def _bytes(sent: Mapping[str, Any], key: str, default: int) -> int:
    value = sent.get(key, default)
    text = str(value).strip().lower().removesuffix("b").removesuffix("i")
    unit = text[-1:] if text[-1:] in _UNITS else ""
    digits = text.removesuffix(unit)
    if isinstance(value, bool) or not digits.isdecimal() or len(digits) > 18:
        raise InvalidInput(f"ketch.gc: {key} is no size: {str(value)[:40]!r}")
    return int(digits) * _UNITS[unit]
