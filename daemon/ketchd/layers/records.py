"""LayerRecords: what the catalogue knows of layers, whose files are the LayerStore's."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from ketch_wire.faults import NotFound
from ketchd.catalogue.database import Catalogue
from ketchd.model.digest import Digest


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer as the catalogue knows it. kind: `erofs` (a file) or `directory`. tar_size, disk_size: bytes.
    entries: members of the tar. implied: paths of directories that the tar omits, whose metadata is the lower layer's."""

    diff_id: Digest
    kind: str
    tar_size: int
    disk_size: int
    entries: int
    implied: tuple[bytes, ...]


class LayerRecords:
    """Rows of `layers` (and `layer_blobs`, when a layer is forgotten). `facts` is what `LayerFile.seal` returned."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def has(self, diff_id: Digest) -> bool:
        """Whether there is a record."""
        return bool(self._catalogue.query("SELECT 1 FROM layers WHERE diff_id = ?", (str(diff_id),)))

    def get(self, diff_id: Digest) -> LayerRecord:
        """Raises NotFound."""
        rows = self._catalogue.query("SELECT * FROM layers WHERE diff_id = ?", (str(diff_id),))
        if not rows:
            raise NotFound(f"no layer {diff_id}")
        row = rows[0]
        return LayerRecord(
            diff_id, row["kind"], row["tar_size"], row["disk_size"], row["entries"],
            tuple(msgpack.unpackb(row["implied"])),
        )  # fmt: skip

    def kinds(self, diff_ids: Sequence[Digest]) -> dict[Digest, str]:
        """The kinds of those that are recorded."""
        rows = self._catalogue.query(
            "SELECT diff_id, kind FROM layers WHERE diff_id IN (SELECT value FROM json_each(?))",
            (_listed(diff_ids),),
        )
        return {Digest(row["diff_id"]): row["kind"] for row in rows}

    def add(self, diff_id: Digest, facts: dict[str, Any]) -> None:
        """Record a layer that is in its place."""
        now = time.time_ns()
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO layers (diff_id, kind, tar_size, disk_size, entries, implied, created_ns, "
                "last_used_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    str(diff_id), facts["kind"], facts["tar_size"], facts["disk_size"], facts["entries"],
                    msgpack.packb(facts["implied"]), now, now,
                ),
            )  # fmt: skip

    def note_replaced(self, diff_id: Digest, facts: dict[str, Any]) -> None:
        """Its file is another one of the same tar."""
        with self._catalogue.transaction(durable=True) as connection:
            connection.execute(
                "UPDATE layers SET kind = ?, disk_size = ? WHERE diff_id = ?",
                (facts["kind"], facts["disk_size"], str(diff_id)),
            )

    def touch(self, diff_ids: Sequence[Digest]) -> None:
        """Remember that the layers were used now."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "UPDATE layers SET last_used_ns = ? WHERE diff_id IN (SELECT value FROM json_each(?))",
                (time.time_ns(), _listed(diff_ids)),
            )

    def forget(self, connection: sqlite3.Connection, diff_ids: Sequence[Digest]) -> None:
        """Delete the records and those of their compressed forms, in the caller's transaction."""
        for table in ("layers", "layer_blobs"):
            connection.execute(
                f"DELETE FROM {table} WHERE diff_id IN (SELECT value FROM json_each(?))", (_listed(diff_ids),)
            )

    def remove(self, diff_id: Digest) -> None:
        """Delete one record; its compressed forms stay known."""
        with self._catalogue.transaction(durable=True) as connection:
            connection.execute("DELETE FROM layers WHERE diff_id = ?", (str(diff_id),))


def _listed(diff_ids: Sequence[Digest]) -> str:
    return json.dumps([str(diff_id) for diff_id in diff_ids])
