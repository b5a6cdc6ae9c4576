"""A new image's config: Dockerfile instructions applied to a container's settings (`commit -c`, `import -c`), and its JSON. Pure.

Source: moby's builder/dockerfile BuildFromConfig (which instructions are allowed) and image.NewChildImage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.build import instructions, lexer
from ketchd.build.evaluate import Scope
from ketchd.build.stages import Options
from ketchd.model.digest import Digest
from ketchd.model.times import rfc3339

_ALLOWED = frozenset(
    {
        "CMD", "ENTRYPOINT", "HEALTHCHECK", "ENV", "EXPOSE", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME",
        "WORKDIR", "SHELL",
    }
)  # fmt: skip
_KEYS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal",
    "ArgsEscaped", "Healthcheck", "OnBuild", "Shell",
)  # fmt: skip
_EMPTY: tuple[Any, ...] = (None, "", [], {}, False)


def apply_changes(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`config` after the instructions. Raises InvalidInput in dockerd's words."""
    scope = Scope(config, "", {}, Options(), {}, "\\", set())
    for change in changes:
        source = lexer.read(change, "change")
        for line in source.lines:
            keyword = lexer.split_word(line.text)[0]
            if keyword.upper() not in _ALLOWED:
                raise InvalidInput(f"{keyword} is not a valid change command")
            try:
                scope.apply(instructions.parse_line(line, source.escape), _no_source)
            except InvalidInput as fault:
                raise InvalidInput(line.place.bare(fault.message)) from fault
    return scope.config


def _no_source(name: str) -> tuple[int | None, str]:
    raise InvalidInput(f"{name} cannot be used in a change")


def run_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a container's config an image keeps, empty values left out."""
    return {key: config[key] for key in _KEYS if config.get(key) not in _EMPTY}


def image_document(
    *,
    config: Mapping[str, Any],
    layers: Sequence[Digest],
    history: Sequence[Mapping[str, Any]],
    created_ns: int,
    architecture: str,
    os: str = "linux",
    variant: str = "",
    author: str = "",
    comment: str = "",
    further: Mapping[str, Any] | None = None,
) -> bytes:
    """The config whose digest is the new image's ID. history: entries as they stand in it, oldest first. further: keys beside them."""
    document: dict[str, Any] = {"architecture": architecture}
    if author:
        document["author"] = author
    if comment:
        document["comment"] = comment
    document |= {
        "config": run_part(config),
        "created": rfc3339(created_ns),
        "history": [dict(entry) for entry in history],
        "os": os,
        "rootfs": {"type": "layers", "diff_ids": [layer.text for layer in layers]},
    }
    if variant:
        document["variant"] = variant
    document |= further or {}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def history_entry(
    created_ns: int, *, created_by: str = "", author: str = "", comment: str = "", empty: bool = False
) -> dict[str, Any]:
    """One line of an image's history."""
    entry: dict[str, Any] = {"created": rfc3339(created_ns)}
    for key, value in (("created_by", created_by), ("author", author), ("comment", comment)):
        if value:
            entry[key] = value
    if empty:
        entry["empty_layer"] = True
    return entry
