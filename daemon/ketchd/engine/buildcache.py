"""The build cache as users see it: its rows in `system df`, and what `builder prune` takes away.

Source: Engine API, BuildPrune and SystemDataUsage; buildkit's DiskUsage and Prune for the meaning of filters.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd import tracepoint
from ketchd.build.cache import BuildCache, CacheRow
from ketchd.engine.rooms import Rooms
from ketchd.model.times import parse_timestamp, rfc3339

tracepoint.declare("buildprune.forgotten")

_FILTERS = frozenset(
    {"until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private"}
)
_ID_LENGTH = 25


@dataclass(frozen=True, slots=True)
class PruneLimits:
    """Bytes. reserved: what is kept anyhow; maximum: what may be used in all; free: what must be free on the disk. 0: not asked."""

    reserved: int = 0
    maximum: int = 0
    free: int = 0


def cache_usage(rooms: Rooms, version: tuple[int, int]) -> list[dict[str, Any]]:
    """The rows of `system df`'s BuildCache."""
    used, cache = _held(rooms), rooms.cache
    return [_show(row, row.diff_id in used or cache.is_mount_used(row.key), version) for row in cache.rows()]


def _show(row: CacheRow, in_use: bool, version: tuple[int, int]) -> dict[str, Any]:
    shown: dict[str, Any] = {"ID": row.key[:_ID_LENGTH]}
    if version < (1, 42):
        shown["Parent"] = row.parent[:_ID_LENGTH]
    return {
        **shown,
        "Type": row.kind,
        "Description": row.description,
        "InUse": in_use,
        "Shared": row.is_shared,
        "Size": row.size,
        "CreatedAt": rfc3339(row.created_ns),
        "LastUsedAt": rfc3339(row.last_used_ns),
        "UsageCount": row.use_count,
    }


def _held(rooms: Rooms) -> set[str]:
    return {key for kind, key in rooms.leases.held() if kind == "layer"}


async def prune_cache(
    rooms: Rooms,
    cache: BuildCache,
    filters: Mapping[str, Sequence[str]],
    limits: PruneLimits,
    *,
    everything: bool,
) -> tuple[list[str], int]:
    """(IDs of what is gone, bytes that are free now). everything: also what images share.

    Raises InvalidInput. Cancelled: what is forgotten is forgotten, its layers are garbage for the next sweep.
    """
    for name in filters:
        if name not in _FILTERS:
            raise InvalidInput(f"invalid filter '{name}'")
    held = _held(rooms)
    if limits.free:
        await rooms.trash.emptied()  # what is thrown away already still takes room
    rows = [row for row in cache.rows() if row.diff_id not in held and (everything or not row.is_shared)]
    rows = [row for row in rows if _matches(row, filters)]
    rows = _above(rows, cache.rows(), limits, _free(rooms))
    gone = cache.forget(rows, everything=everything and not filters and limits == PruneLimits())
    tracepoint.reach("buildprune.forgotten")
    reclaimed = 0
    for row in gone:
        if row.kind == "exec.cachemount":
            reclaimed += row.size
            rooms.trash.take(cache.mount_path(row.key))
    swept = await rooms.garbage.sweep([("layer", row.diff_id) for row in gone if row.diff_id is not None])
    reclaimed += sum(item.size for item in swept)
    await rooms.trash.settle()
    rooms.events.append("builder", "prune", "", {"reclaimed": str(reclaimed)})
    return [row.key[:_ID_LENGTH] for row in gone], reclaimed


def _matches(row: CacheRow, filters: Mapping[str, Sequence[str]]) -> bool:
    for name in ("until", "unused-for"):
        for text in filters.get(name, ()):
            if row.last_used_ns >= parse_timestamp(text, time.time_ns()):
                return False
    for name, value in (
        ("id", row.key),
        ("parent", row.parent),
        ("type", row.kind),
        ("description", row.description),
    ):
        wanted = filters.get(name, ())
        if wanted and not any(_fits(value, text, prefix=name in ("id", "parent")) for text in wanted):
            return False
    for name, holds in (("shared", row.is_shared), ("private", not row.is_shared), ("inuse", False)):
        for text in filters.get(name, ()):
            if text.lower() not in ("true", "1", "", "false", "0"):
                raise InvalidInput(f"invalid filter '{name}={text}'")
            if holds is not (text.lower() in ("true", "1", "")):
                return False
    return True


def _fits(value: str, text: str, *, prefix: bool) -> bool:
    """BuildKit's filters: exact, and with ~= a regular expression."""
    if text.startswith("~"):
        try:
            return re.search(text[1:].lstrip("="), value) is not None
        except re.error:
            raise InvalidInput(f"invalid filter: {text[:80]!r} is no regular expression") from None
    return value.startswith(text) if prefix and text else value == text


def _above(
    rows: Sequence[CacheRow], every: Sequence[CacheRow], limits: PruneLimits, free: int
) -> list[CacheRow]:
    """The rows to take away, least recently used first, until the limits are met; without limits all."""
    if limits == PruneLimits():
        return list(rows)
    total = sum(row.size for row in every)
    allowed = max(limits.reserved, limits.maximum) if limits.maximum else limits.reserved
    found = []
    for row in sorted(rows, key=lambda row: row.last_used_ns):
        short = limits.free and free < limits.free and total > limits.reserved
        if total <= allowed and not short:
            break
        if limits.free and not limits.maximum and not short:
            break
        found.append(row)
        total -= row.size
        free += row.size
    return found


def _free(rooms: Rooms) -> int:
    facts = os.statvfs(rooms.data_root)
    return facts.f_bavail * facts.f_frsize
