"""ImageConfig: what an image is, read from the JSON whose digest is the image's ID. Pure.

The bytes are kept by the blob store and never written again: unknown keys are part of the ID.
Source: image-spec config.md; Docker's extra fields of `config`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.model.digest import Digest

SIZE_LIMIT = 8 * 1024 * 1024
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What a container of the image starts with.

    None where the image says nothing and an empty list would mean something.
    """

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    healthcheck: dict[str, Any] | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] | None = None
    args_escaped: bool = False


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One instruction. created as written; empty_layer: it has no diff ID."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    @property
    def created_ns(self) -> int | None:
        """ns since the epoch."""
        return time_ns(self.created)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A parsed config. raw: the decoded object, to be read only."""

    architecture: str
    os: str
    variant: str
    created: str | None
    author: str
    run: RunConfig
    diff_ids: tuple[Digest, ...]
    history: tuple[HistoryEntry, ...]
    raw: dict[str, Any]

    @property
    def created_ns(self) -> int | None:
        """ns since the epoch; None when the image does not say."""
        return time_ns(self.created)

    @property
    def comment(self) -> str:
        """Docker's: the config's own, else the newest history entry's."""
        own = self.raw.get("comment")
        if isinstance(own, str) and own:
            return own
        return self.history[-1].comment if self.history else ""

    @staticmethod
    def parse(content: bytes) -> ImageConfig:
        """Read a config. null is absent. Raises InvalidInput."""
        if len(content) > SIZE_LIMIT:
            raise InvalidInput(f"image config is larger than {SIZE_LIMIT} bytes")
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidInput("image config is not JSON") from error
        if not isinstance(raw, dict):
            raise InvalidInput("image config is not a JSON object")
        rootfs = _typed(raw, "rootfs", dict)
        if rootfs is None:
            raise InvalidInput("image config has no rootfs")
        kind = rootfs.get("type", "layers")
        if kind != "layers":
            raise InvalidInput(f"image config has rootfs of type {str(kind)[:40]!r}, not 'layers'")
        history = _typed(raw, "history", list) or []
        return ImageConfig(
            architecture=_text(raw, "architecture"),
            os=_text(raw, "os") or "linux",
            variant=_text(raw, "variant"),
            created=_text(raw, "created") or None,
            author=_text(raw, "author"),
            run=parse_run(_typed(raw, "config", dict) or {}),
            diff_ids=tuple(Digest(text) for text in _strings(rootfs, "diff_ids") or ()),
            history=tuple(_history(entry) for entry in history),
            raw=raw,
        )


def parse_run(raw: dict[str, Any]) -> RunConfig:
    """The `config` object. Raises InvalidInput."""
    return RunConfig(
        user=_text(raw, "User"),
        env=_strings(raw, "Env") or (),
        entrypoint=_strings(raw, "Entrypoint"),
        cmd=_strings(raw, "Cmd"),
        working_dir=_text(raw, "WorkingDir"),
        exposed_ports=tuple(_typed(raw, "ExposedPorts", dict) or ()),
        volumes=tuple(_typed(raw, "Volumes", dict) or ()),
        labels={key: _label(key, value) for key, value in (_typed(raw, "Labels", dict) or {}).items()},
        stop_signal=_text(raw, "StopSignal"),
        healthcheck=_typed(raw, "Healthcheck", dict),
        on_build=_strings(raw, "OnBuild") or (),
        shell=_strings(raw, "Shell"),
        args_escaped=bool(raw.get("ArgsEscaped")),
    )


def time_ns(text: str | None) -> int | None:
    """RFC 3339 as ns since the epoch; None for nothing or nonsense (such images exist and must load)."""
    match = _TIME.fullmatch(text) if text else None
    if match is None:
        return None
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        moment = datetime.fromisoformat(match[1].upper() + zone)
    except ValueError:
        return None
    apart = moment - _EPOCH
    return (apart.days * 86400 + apart.seconds) * 1_000_000_000 + int((match[2] or "0")[:9].ljust(9, "0"))


def _typed(raw: dict[str, Any], key: str, kind: type) -> Any:
    value = raw.get(key)
    if value is not None and not isinstance(value, kind):
        raise InvalidInput(f"image config has the wrong type at {key!r}")
    return value


def _text(raw: dict[str, Any], key: str) -> str:
    text: str = _typed(raw, key, str) or ""
    return text


def _strings(raw: dict[str, Any], key: str) -> tuple[str, ...] | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(f"image config has the wrong type at {key!r}")
    return tuple(value)


def _label(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"image config has the wrong type at label {key[:80]!r}")
    return value


def _history(raw: Any) -> HistoryEntry:
    if not isinstance(raw, dict):
        raise InvalidInput("image config has the wrong type at 'history'")
    return HistoryEntry(
        created=_text(raw, "created") or None,
        created_by=_text(raw, "created_by"),
        author=_text(raw, "author"),
        comment=_text(raw, "comment"),
        empty_layer=bool(raw.get("empty_layer")),
    )
