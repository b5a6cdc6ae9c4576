"""BlobStore: immutable bytes by digest, exactly as they were transferred."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ketch_wire.faults import EngineFailure, NotFound
from ketchd.catalogue.database import Catalogue
from ketchd.layers.endings import to_the_end
from ketchd.layers.placing import disk_fault
from ketchd.layers.trash import Trash
from ketchd.model.digest import Digest


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """One compressed form of a layer, as registries know it. Its bytes may be gone: ask `BlobStore.has`."""

    diff_id: Digest
    digest: Digest
    media_type: str
    size: int


class BlobStore:
    """`blobs/sha256/HEX`, each recorded in the catalogue.

    Published last, never changed, removed record first.

    A file that the catalogue does not know is rubbish (a crash between rename and record) and goes at the
    next start. `root` is the data root: `blobs/` and `stage/` are made in it.
    """

    def __init__(self, root: Path, catalogue: Catalogue, trash: Trash | None = None) -> None:
        self._catalogue = catalogue
        self._trash = trash or Trash(root)
        self._placing: Counter[Digest] = Counter()
        self._directory = root / "blobs" / "sha256"
        self._stage = root / "stage"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o710)
        self._stage.mkdir(exist_ok=True, mode=0o710)

    def path(self, digest: Digest) -> Path:
        """Where the blob lies or would lie."""
        return self._directory / digest.hex

    def has(self, digest: Digest) -> bool:
        """Whether the blob is recorded and its file is there."""
        rows = self._catalogue.query("SELECT 1 FROM blobs WHERE digest = ?", (str(digest),))
        return bool(rows) and self.path(digest).exists()

    def size(self, digest: Digest) -> int:
        """Bytes. Raises NotFound."""
        rows = self._catalogue.query("SELECT size FROM blobs WHERE digest = ?", (str(digest),))
        if not rows:
            raise NotFound(f"no blob {digest}")
        return int(rows[0]["size"])

    def read(self, digest: Digest) -> bytes:
        """A small blob (config, manifest) whole.

        Raises NotFound; EngineFailure when the bytes are damaged.
        """
        try:
            content = self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"no blob {digest}") from error
        if Digest.of(content) != digest:
            raise EngineFailure(f"blob {digest} is damaged on disk")
        return content

    def stage_path(self) -> Path:
        """A new unique path below `stage/`; nothing is made. What is left there goes at the next start."""
        return self._stage / uuid.uuid4().hex

    async def publish(self, staged: Path, digest: Digest, size: int, media_type: str) -> None:
        """Make the staged file the blob: sync, rename, sync the directory, record.

        The caller has verified digest and size.

        Idempotent: of two equal blobs the second replaces the first. Cancelled: the blob may be there, never
        half.
        """
        await self._publish(partial(_place, staged, self.path(digest)), digest, size, media_type)

    async def put(self, content: bytes, media_type: str) -> Digest:
        """Store small content; nothing is written when it is there already."""
        digest = Digest.of(content)
        if self.has(digest):
            self.touch(digest)
            return digest
        staged = self.stage_path()
        work = partial(_write_and_place, content, staged, self.path(digest))
        await self._publish(work, digest, len(content), media_type)
        return digest

    async def _publish(self, work: Callable[[], None], digest: Digest, size: int, media_type: str) -> None:
        """Have it placed, then record it. Who removes the blob meanwhile leaves the file alone: it is the new one's."""

        async def place_and_record() -> None:
            self._placing[digest] += 1
            try:
                await asyncio.to_thread(work)
                self._record(digest, size, media_type)
            finally:
                self._placing[digest] -= 1
                if not self._placing[digest]:
                    del self._placing[digest]

        await to_the_end(place_and_record())

    def touch(self, digest: Digest) -> None:
        """Remember that the blob was used now."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "UPDATE blobs SET last_used_ns = ? WHERE digest = ?", (time.time_ns(), str(digest))
            )

    def drop(self, digest: Digest) -> None:
        """Let the bytes go, and keep what is known of them: which layer they are a form of, and where they can be had.

        May be called twice.
        """
        with self._catalogue.transaction(durable=True) as connection:
            connection.execute("DELETE FROM blobs WHERE digest = ?", (str(digest),))
        self.discard([digest])

    def remove(self, digest: Digest) -> None:
        """Forget the blob, then remove it. May be called twice.

        What refers to it is the caller's question.
        """
        with self._catalogue.transaction(durable=True) as connection:
            self.forget(connection, [digest])
        self.discard([digest])

    def forget(self, connection: sqlite3.Connection, digests: Sequence[Digest]) -> None:
        """Delete the records, in the caller's transaction. `discard` them after the commit, before anything is awaited.

        Whose form a blob is stays known while the layer is here.
        """
        keys = json.dumps([str(digest) for digest in digests])
        for records in (
            "blobs WHERE",
            "blob_sources WHERE",
            "layer_blobs WHERE diff_id NOT IN (SELECT diff_id FROM layers) AND",
        ):
            connection.execute(f"DELETE FROM {records} digest IN (SELECT value FROM json_each(?))", (keys,))

    def discard(self, digests: Sequence[Digest]) -> None:
        """Move the files of blobs that have no record any more to the trash. Raises EngineFailure."""
        for digest in digests:
            if digest not in self._placing:
                self._trash.take(self.path(digest))

    def add_source(self, digest: Digest, repository: str) -> None:
        """Remember that `repository` (`docker.io/library/x`) holds the blob.

        A push can mount it from there.
        """
        with self._catalogue.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO blob_sources VALUES (?, ?)", (str(digest), repository))

    def drop_source(self, digest: Digest, repository: str) -> None:
        """The repository turned out not to hold the blob any more."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "DELETE FROM blob_sources WHERE digest = ? AND repository = ?", (str(digest), repository)
            )

    def sources(self, digest: Digest) -> list[str]:
        """Repositories known to hold the blob."""
        rows = self._catalogue.query(
            "SELECT repository FROM blob_sources WHERE digest = ? ORDER BY repository", (str(digest),)
        )
        return [row["repository"] for row in rows]

    def relate(self, diff_id: Digest, digest: Digest, media_type: str, size: int) -> None:
        """Remember that the blob is a (compressed) form of the layer."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO layer_blobs (diff_id, digest, media_type, size) VALUES (?, ?, ?, ?)",
                (str(diff_id), str(digest), media_type, size),
            )

    def of_layer(self, diff_id: Digest) -> list[LayerBlob]:
        """The known forms of a layer, whether their bytes are here or not."""
        rows = self._catalogue.query(
            "SELECT digest, media_type, size FROM layer_blobs WHERE diff_id = ? ORDER BY digest",
            (str(diff_id),),
        )
        return [LayerBlob(diff_id, Digest(row["digest"]), row["media_type"], row["size"]) for row in rows]

    def layer_of(self, digest: Digest) -> Digest | None:
        """The layer that the blob is a form of, if it was ever unpacked here."""
        rows = self._catalogue.query("SELECT diff_id FROM layer_blobs WHERE digest = ?", (str(digest),))
        return Digest(rows[0]["diff_id"]) if rows else None

    def _record(self, digest: Digest, size: int, media_type: str) -> None:
        now = time.time_ns()
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO blobs (digest, size, media_type, created_ns, last_used_ns) "
                "VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (digest) DO UPDATE "
                "SET size = excluded.size, last_used_ns = excluded.last_used_ns",
                (str(digest), size, media_type, now, now),
            )


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(staged: Path, final: Path) -> None:
    try:
        descriptor = os.open(staged, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(staged, final)
        sync_directory(final.parent)
    except OSError as error:
        raise disk_fault(error, f"cannot store blob {final.name[:12]}") from error


def _write_and_place(content: bytes, staged: Path, final: Path) -> None:
    try:
        try:
            staged.write_bytes(content)
        except OSError as error:
            raise disk_fault(error, f"cannot store blob {final.name[:12]}") from error
        _place(staged, final)
    finally:
        staged.unlink(missing_ok=True)
