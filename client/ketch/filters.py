"""`--filter` values as the API's `filters` parameter. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Filters = dict[str, dict[str, bool]]


def build_filters(texts: Iterable[str], **fixed: str) -> Filters:
    """`key=value` texts and fixed ones as `{"key": {"value": true}}`. Source: docker/cli opts, FilterOpt."""
    found: Filters = {}
    for text in texts:
        key, _, value = text.partition("=")
        found.setdefault(key.strip().lower(), {})[value.strip()] = True
    for key, value in fixed.items():
        found.setdefault(key, {})[value] = True
    return found
