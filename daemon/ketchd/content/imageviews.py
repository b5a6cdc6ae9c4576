"""An image as list, inspect and history show it. Pure.

Source: Engine API 1.50, ImageList, ImageInspect, ImageHistory; what older versions see is in "API version history".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ketchd.content.imagerows import ImageRow
from ketchd.content.images import ImageRecord
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import HistoryEntry, ImageConfig
from ketchd.model.times import ZERO_TIME, rfc3339

Version = tuple[int, int]
_YEAR_ONE, _EARLIEST_NS = -62_135_596_800, -(1 << 63)
STORAGE_DRIVER = "overlay2"  # the name that tools know; layers are mounted by overlayfs

_NO_CONFIG = ImageConfig.parse(b'{"rootfs": {"type": "layers"}}')  # what an artifact shows

_CONFIG_KEYS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal",
    "ArgsEscaped", "Healthcheck", "OnBuild", "Shell",
)  # fmt: skip
_CONTAINER_CONFIG: dict[str, Any] = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "", "Volumes": None,
    "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
}  # fmt: skip


def summary(
    image: ImageRow, version: Version, *, tags: Sequence[str], digests: Sequence[str]
) -> dict[str, Any]:
    """One row of the list. tags, digests: the names to show. Containers and SharedSize are -1: not computed."""
    shown_tags, shown_digests = list(tags), list(digests)
    if version < (1, 43) and not shown_tags and not shown_digests:
        shown_tags, shown_digests = ["<none>:<none>"], ["<none>@<none>"]
    row: dict[str, Any] = {
        "Containers": -1,
        "Created": 0 if image.created_ns is None else _seconds(image.created_ns),
        "Id": image.id,
        "Labels": image.labels,
        "ParentId": image.parent,
        "RepoDigests": shown_digests,
        "RepoTags": shown_tags,
        "SharedSize": -1,
        "Size": image.size,
    }
    if version < (1, 44):
        row["VirtualSize"] = image.size
    return row


def inspect(record: ImageRecord, version: Version, descriptor: Mapping[str, Any] | None) -> dict[str, Any]:
    """The whole object. descriptor: of the manifest it came with, None when there is none. Raises EngineFailure."""
    config = _NO_CONFIG if record.artifact_type is not None else record.config
    raw: dict[str, Any] = config.raw
    shown: dict[str, Any] = {
        "Id": record.id.text,
        "RepoTags": record.repo_tags,
        "RepoDigests": record.repo_digests,
        "Parent": "" if record.parent is None else record.parent.text,
        "Comment": config.comment,
    }
    if record.created_ns is not None:
        is_one = _seconds(record.created_ns) == _YEAR_ONE
        shown["Created"] = ZERO_TIME if is_one else rfc3339(record.created_ns)
    elif version < (1, 44):
        shown["Created"] = ZERO_TIME
    if version < (1, 45):
        shown["Container"] = raw.get("container") or ""
        shown["ContainerConfig"] = {**_CONTAINER_CONFIG, **(raw.get("container_config") or {})}
    shown |= {
        "DockerVersion": raw.get("docker_version") or "",
        "Author": config.author,
        "Config": _config(raw.get("config") or {}, version),
        "Architecture": record.architecture,
    }
    if record.variant:
        shown["Variant"] = record.variant
    shown["Os"] = record.os
    if raw.get("os.version"):
        shown["OsVersion"] = raw["os.version"]
    shown["Size"] = record.size
    if version < (1, 44):
        shown["VirtualSize"] = record.size
    shown |= {
        "GraphDriver": {"Data": None, "Name": STORAGE_DRIVER},
        "RootFS": {"Type": "layers", "Layers": [layer.text for layer in record.layers]},
        "Metadata": {"LastTagTime": rfc3339(record.last_tag_ns) if record.last_tag_ns else ZERO_TIME},
    }
    if descriptor is not None and version >= (1, 48):
        shown["Descriptor"] = dict(descriptor)
    return shown


def _config(raw: Mapping[str, Any], version: Version) -> dict[str, Any]:
    present = {key: raw[key] for key in _CONFIG_KEYS if raw.get(key) not in (None, "", [], {}, False)}
    return present if version >= (1, 50) else {**_CONTAINER_CONFIG, **present}


def history(
    entries: Sequence[HistoryEntry], layers: Sequence[Digest], sizes: Mapping[Digest, int]
) -> list[dict[str, Any]]:
    """Rows, newest first, without images: every Id is `<missing>`, every Tags null. sizes: bytes by layer.

    A config whose history does not fit its layers is shown as far as it goes; some tools write such.
    """
    waiting = iter(layers)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        layer = None if entry.empty_layer else next(waiting, None)
        rows.append(
            {
                "Comment": entry.comment,
                "Created": 0 if entry.created_ns is None else entry.created_ns // 1_000_000_000,
                "CreatedBy": entry.created_by,
                "Id": "<missing>",
                "Size": 0 if layer is None else sizes.get(layer, 0),
                "Tags": None,
            }
        )
    rows.reverse()
    return rows


def _seconds(created_ns: int) -> int:
    """The earliest time that the catalogue knows stands for all before it: of those, Go's zero time is what images have."""
    return _YEAR_ONE if created_ns == _EARLIEST_NS else created_ns // 1_000_000_000
