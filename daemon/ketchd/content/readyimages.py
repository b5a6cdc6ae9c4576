"""Images of which everything is stored, and the rows that make them known."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass

from ketch_wire.faults import NotFound
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import ImageConfig


@dataclass(frozen=True, slots=True)
class ReadyManifest:
    """A manifest among the blobs. size: bytes."""

    digest: Digest
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class ReadyImage:
    """An image whose config, manifest and layers are here, and which the catalogue does not know yet."""

    id: Digest
    config: ImageConfig
    manifest: ReadyManifest | None = None


def record_image(connection: sqlite3.Connection, ready: ReadyImage, parent: Digest | None) -> None:
    """Its rows, in a transaction of the caller's. Idempotent. Raises NotFound (a layer is missing)."""
    config, key = ready.config, str(ready.id)
    size = sum(_layer_size(connection, diff_id, ready.id) for diff_id in config.diff_ids)
    connection.execute(
        "INSERT INTO images "
        "(id, os, architecture, variant, created, size, parent, labels, stored_ns) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE "
        "SET parent = coalesce(parent, excluded.parent), size = excluded.size",
        (
            *(key, config.os, config.architecture, config.variant),
            *(_bounded(config.created_ns), size, str(parent) if parent is not None else None),
            *(json.dumps(_labels(config)), time.time_ns()),
        ),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO image_layers (image_id, position, diff_id) VALUES (?, ?, ?)",
        [(key, position, str(diff_id)) for position, diff_id in enumerate(config.diff_ids)],
    )
    if ready.manifest is not None:
        connection.execute(
            "INSERT OR REPLACE INTO manifests (digest, image_id, media_type, size) VALUES (?, ?, ?, ?)",
            (str(ready.manifest.digest), key, ready.manifest.media_type, ready.manifest.size),
        )


def _labels(config: ImageConfig) -> dict[str, str] | None:
    """None and {} are told apart: the list shows them as the config has them."""
    present = (config.raw.get("config") or {}).get("Labels") is not None
    return config.run.labels if present else None


def _layer_size(connection: sqlite3.Connection, diff_id: Digest, image_id: Digest) -> int:
    row = connection.execute("SELECT disk_size FROM layers WHERE diff_id = ?", (str(diff_id),)).fetchone()
    if row is None:
        raise NotFound(f"layer {diff_id} of image {image_id.short} is not in the store")
    return int(row["disk_size"])


def _bounded(time_ns: int | None) -> int | None:
    """Years before 1678 and after 2261 do not fit SQLite's integers as ns.

    The nearest that does stands for them.
    """
    return None if time_ns is None else max(-(1 << 63), min((1 << 63) - 1, time_ns))
