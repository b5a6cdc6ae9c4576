"""BuildCache: results of steps by key in the catalogue, and cache mounts' directories. Survives restarts and kill -9.

A row is written after its layer was published, so a key never leads to a layer that was never whole. Rows keep their layers from the
garbage collector; pruning takes rows away and lets it collect. Kinds: `regular` (a step), `exec.cachemount`, and `internal`
(what the last build of a thing looked like, and names for keys).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ketchd.build.explain import Past
from ketchd.build.keys import Inputs
from ketchd.catalogue.database import Catalogue

STEP, MOUNT, INTERNAL = "regular", "exec.cachemount", "internal"


@dataclass(frozen=True, slots=True)
class Cached:
    """A step's kept result. layer: diff ID, None when it changed no file. content: how history names a COPY's sources."""

    key: str
    created_ns: int
    layer: str | None
    content: str
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class CacheRow:
    """One record as `system df` and `builder prune` show it. Times: ns since the epoch. size: bytes on disk."""

    key: str
    parent: str
    kind: str
    description: str
    diff_id: str | None
    size: int
    created_ns: int
    last_used_ns: int
    use_count: int
    is_shared: bool


class BuildCache:
    """The build_cache table and `cachemounts/HEX` below the data root. Used on the event loop's thread.

    It alone knows which cache mounts are in use: there is one of a store.
    """

    def __init__(self, catalogue: Catalogue, data_root: Path) -> None:
        self._catalogue = catalogue
        self._mounts = data_root / "cachemounts"
        self._used: dict[str, int] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def unowned(self) -> list[Path]:
        """Cache mounts that no row owns, left by a crash between making and recording one."""
        rows = self._catalogue.query("SELECT key FROM build_cache WHERE kind = ?", (MOUNT,))
        owned = {row["key"] for row in rows}
        return [
            path
            for path in (self._mounts.iterdir() if self._mounts.is_dir() else ())
            if path.name not in owned
        ]

    def find(self, key: str) -> Cached | None:
        """The result of a step with this key whose layer is recorded."""
        rows = self._catalogue.query(
            "SELECT result, build_cache.diff_id, layers.diff_id AS there FROM build_cache LEFT JOIN layers USING (diff_id) "
            "WHERE key = ? AND build_cache.kind = ?",
            (key, STEP),
        )
        if not rows or (rows[0]["diff_id"] is not None and rows[0]["there"] is None):
            return None
        result = json.loads(rows[0]["result"])
        return Cached(key, result["created"], result["layer"], result.get("content", ""), result["inputs"])

    def store(self, cached: Cached, *, parent: str, description: str) -> None:
        """Record a step's result; its layer is published. A result that is there already is replaced."""
        now = time.time_ns()
        result = {
            "created": cached.created_ns, "layer": cached.layer, "content": cached.content, "inputs": cached.inputs,
        }  # fmt: skip
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO build_cache "
                "(key, parent_key, kind, description, result, diff_id, created_ns, last_used_ns, use_count, size) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, "
                "coalesce((SELECT disk_size FROM layers WHERE diff_id = ?), 0))",
                (
                    cached.key, parent, STEP, description[:4096], json.dumps(result), cached.layer, cached.created_ns, now,
                    cached.layer,
                ),
            )  # fmt: skip

    def alias(self, key: str, meant: str) -> None:
        """Remember that the cheap `key` came out as the dear key `meant`."""
        self._internal(f"alias:{key}", {"key": meant}, meant)

    def aliased(self, key: str) -> str | None:
        """The dear key that a cheap one came out as."""
        found = self._read_internal(f"alias:{key}")
        return None if found is None else str(found["key"])

    def touch(self, keys: Iterable[str]) -> None:
        """Count a use of each."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "UPDATE build_cache SET last_used_ns = ?, use_count = use_count + 1 "
                "WHERE key IN (SELECT value FROM json_each(?))",
                (time.time_ns(), json.dumps(list(keys))),
            )

    def remember_build(self, lineage: str, steps: Sequence[tuple[int, str, str]]) -> None:
        """Keep what the build looked like: (stage, line, key or "") of every step."""
        if self._read_internal(f"build:{lineage}") != {"steps": [list(step) for step in steps]}:
            self._internal(f"build:{lineage}", {"steps": steps}, "")

    def last_build(self, lineage: str) -> list[Past]:
        """The steps of the last build of the same thing, with their inputs."""
        found = self._read_internal(f"build:{lineage}")
        past = []
        for stage, text, key in (found or {}).get("steps", ()):
            cached = self.find(key) if key else None
            past.append(Past(stage, text, cached.inputs if cached else None))
        return past

    def _internal(self, key: str, value: Any, parent: str) -> None:
        now = time.time_ns()
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO build_cache (key, parent_key, kind, description, result, created_ns, last_used_ns) "
                "VALUES (?, ?, ?, '', ?, ?, ?)",
                (key, parent, INTERNAL, json.dumps(value), now, now),
            )

    def _read_internal(self, key: str) -> Any:
        rows = self._catalogue.query(
            "SELECT result FROM build_cache WHERE key = ? AND kind = ?", (key, INTERNAL)
        )
        return json.loads(rows[0]["result"]) if rows else None

    # -- cache mounts

    def mount_path(self, key: str) -> Path:
        """Where a cache mount's files lie."""
        return self._mounts / key

    def open_mount(self, key: str, description: str, mode: int, uid: int, gid: int) -> tuple[Path, bool]:
        """(the mount's directory, made and recorded at its first use; whether somebody else uses it now). Call `close_mount`."""
        path = self.mount_path(key)
        if not path.is_dir():
            path.mkdir(parents=True, mode=0o710)
            os.chown(path, uid, gid)
            path.chmod(mode)
        now = time.time_ns()
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO build_cache (key, kind, description, result, created_ns, last_used_ns) "
                "VALUES (?, ?, ?, '{}', ?, ?) ON CONFLICT (key) DO UPDATE SET last_used_ns = excluded.last_used_ns, "
                "use_count = use_count + 1",
                (key, MOUNT, description, now, now),
            )
        count = self._used[key] = self._used.get(key, 0) + 1
        return path, count > 1

    def mount_lock(self, key: str) -> asyncio.Lock:
        """For steps, of all builds, that want the cache mount one at a time."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def is_mount_used(self, key: str) -> bool:
        """Whether a step under way has the cache mount."""
        return key in self._used

    def close_mount(self, key: str, size: int | None) -> None:
        """The step is over. size: bytes that lie there now, None when nobody has counted them."""
        self._used[key] -= 1
        if not self._used[key]:
            del self._used[key]
        with self._catalogue.transaction() as connection:
            connection.execute("UPDATE build_cache SET size = coalesce(?, size) WHERE key = ?", (size, key))

    # -- what is there

    def rows(self) -> list[CacheRow]:
        """Every record but internal ones, oldest first."""
        found = self._catalogue.query(
            "SELECT *, EXISTS (SELECT 1 FROM image_layers WHERE image_layers.diff_id = build_cache.diff_id) AS shared "
            "FROM build_cache WHERE kind != ? ORDER BY created_ns, key",
            (INTERNAL,),
        )
        return [
            CacheRow(
                row["key"], row["parent_key"], row["kind"], row["description"], row["diff_id"], row["size"], row["created_ns"],
                row["last_used_ns"], row["use_count"], bool(row["shared"]),
            )
            for row in found
        ]  # fmt: skip

    def forget(self, rows: Sequence[CacheRow], *, everything: bool) -> list[CacheRow]:
        """Take the rows away, those in use left out; what is gone. Layers are garbage then, and cache mounts the caller's to remove.

        everything: what is remembered of past builds goes too.
        """
        gone = [row for row in rows if row.key not in self._used]
        with self._catalogue.transaction(durable=True) as connection:
            connection.executemany("DELETE FROM build_cache WHERE key = ?", [(row.key,) for row in gone])
            if everything:
                connection.execute("DELETE FROM build_cache WHERE kind = ?", (INTERNAL,))
            else:
                connection.executemany(
                    "DELETE FROM build_cache WHERE kind = ? AND parent_key = ?",
                    [(INTERNAL, row.key) for row in gone],
                )
        return gone
