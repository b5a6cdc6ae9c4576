"""The search journey: what a registry finds for a term, filtered as dockerd filters it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.engine.rooms import Rooms
from ketchd.registry.errors import Refused
from ketchd.registry.tokens import Credentials

DEFAULT_LIMIT = 25
_KNOWN = ("is-automated", "is-official", "stars")
_TRUE, _FALSE = ("1", "true"), ("0", "false")


async def search(
    rooms: Rooms, term: str, limit: int, filters: Mapping[str, Sequence[str]], credentials: Credentials
) -> list[dict[str, Any]]:
    """Rows as the API shows them. Raises InvalidInput, EngineFailure. Source: Engine API, ImageSearch."""
    if not 1 <= limit <= 100:
        raise InvalidInput(f"Limit {limit} is outside the range of [1, 100]")
    for name in filters:
        if name not in _KNOWN:
            raise InvalidInput(f"Invalid filter '{name}'")
    official, automated = _flag(filters, "is-official"), _flag(filters, "is-automated")
    stars = _stars(filters)
    if term.startswith(("http://", "https://")):
        raise InvalidInput(
            f"invalid repository name: repository name ({term[:100]}) should not have a scheme"
        )
    try:
        rows = [_shown(row) for row in await rooms.registry.search(term, limit, credentials)]
    except Refused as fault:
        raise EngineFailure(fault.message) from fault
    return [
        row
        for row in rows
        if (official is None or row["is_official"] == official)
        and (automated is None or row["is_automated"] == automated)
        and row["star_count"] >= stars
    ]


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    stars = row.get("star_count")
    return {
        "star_count": stars if isinstance(stars, int) else 0,
        "is_official": bool(row.get("is_official")),
        "name": str(row.get("name") or ""),
        "is_automated": bool(row.get("is_automated")),
        "description": str(row.get("description") or ""),
    }


def _flag(filters: Mapping[str, Sequence[str]], name: str) -> bool | None:
    values = filters.get(name)
    if not values:
        return None
    if len(values) == 1 and values[0].lower() in _TRUE + _FALSE:
        return values[0].lower() in _TRUE
    raise InvalidInput(f"Invalid filter '{name}=[{' '.join(values)}]'")


def _stars(filters: Mapping[str, Sequence[str]]) -> int:
    least = 0
    for value in filters.get("stars", ()):
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise InvalidInput(f"Invalid filter 'stars={value}'")
        least = max(least, int(value))
    return least
