"""Documents: indexes of several platforms and artifacts, kept byte for byte while something names them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ketchd.catalogue.database import Catalogue
from ketchd.content.marking import live
from ketchd.model.digest import Digest
from ketchd.model.reference import Reference

Kind = Literal["index", "artifact"]


@dataclass(frozen=True, slots=True)
class Document:
    """One index or artifact. size: bytes of itself. parts: digests of what it refers to, here or not."""

    digest: Digest
    kind: Kind
    media_type: str
    size: int
    parts: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Released:
    """What was forgotten. images: those that nothing but the documents needed. blobs: theirs, which may be garbage now."""

    images: tuple[Digest, ...] = ()
    blobs: tuple[Digest, ...] = ()


class Documents:
    """A document's bytes are a blob, its record says what it needs. It is named by tags and digest names, by a document that
    it is a part of, and an artifact by its place among the images; `release` forgets those that nothing names.

    Images that are parts of a document need no name of their own.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def keep(self, document: Document) -> None:
        """Record it. Idempotent. Its blob is there; name it before anything is awaited, or `release` may come between."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO documents (digest, kind, media_type, size) VALUES (?, ?, ?, ?)",
                (str(document.digest), document.kind, document.media_type, document.size),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO document_parts (document, part) VALUES (?, ?)",
                [(str(document.digest), str(part)) for part in document.parts],
            )

    def get(self, digest: Digest) -> Document | None:
        """What is known of it."""
        rows = self._catalogue.query("SELECT * FROM documents WHERE digest = ?", (str(digest),))
        if not rows:
            return None
        parts = self._catalogue.query(
            "SELECT part FROM document_parts WHERE document = ? ORDER BY part", (str(digest),)
        )
        (row,) = rows
        return Document(
            digest, row["kind"], row["media_type"], row["size"], tuple(Digest(part[0]) for part in parts)
        )

    def named(self, reference: Reference) -> Document | None:
        """The index or artifact that an exact name means; without tag or digest `latest`. None for one image's name."""
        if reference.digest is not None:
            rows = self._catalogue.query(
                "SELECT digest FROM repo_digests WHERE repository = ? AND digest = ?",
                (reference.repository, str(reference.digest)),
            )
        else:
            name = reference.with_default_tag().canonical()
            rows = self._catalogue.query(
                "SELECT coalesce(document, image_id) FROM tags WHERE name = ?", (name,)
            )
        return self.get(Digest(rows[0][0])) if rows else None

    def of_image(self, image_id: Digest) -> Document | None:
        """The document that the image's newest tag means, else one that its digest names have; an artifact's own."""
        rows = self._catalogue.query(
            "SELECT document FROM tags WHERE image_id = :id AND document IS NOT NULL ORDER BY updated_ns DESC LIMIT 1", {"id": str(image_id)}
        ) or self._catalogue.query(
            "SELECT documents.digest FROM documents LEFT JOIN repo_digests USING (digest) "
            "WHERE image_id = :id OR documents.digest = :id ORDER BY 1 LIMIT 1", {"id": str(image_id)}
        )  # fmt: skip
        return self.get(Digest(rows[0][0])) if rows else None

    def image_of(self, manifest: Digest) -> Digest | None:
        """The image that is here of a manifest."""
        rows = self._catalogue.query("SELECT image_id FROM manifests WHERE digest = ?", (str(manifest),))
        return Digest(rows[0][0]) if rows else None

    def members(self) -> set[Digest]:
        """Every image that is a part of a document."""
        rows = self._catalogue.query(
            "SELECT DISTINCT image_id FROM document_parts JOIN manifests ON manifests.digest = part"
        )
        return {Digest(row[0]) for row in rows}

    def images_of(self, documents: Iterable[Digest]) -> set[Digest]:
        """Every image that is a part of one of them, or of a document that is."""
        rows = self._catalogue.query(
            "WITH RECURSIVE reached (digest) AS (SELECT value FROM json_each(?) UNION "
            "SELECT part FROM document_parts JOIN reached ON document = reached.digest) "
            "SELECT DISTINCT image_id FROM manifests JOIN reached USING (digest)",
            (_list(map(str, documents)),),
        )
        return {Digest(row[0]) for row in rows}

    def release(self) -> Released:
        """Forget the documents that nothing names any more."""
        with self._catalogue.transaction(durable=True) as connection:
            return release(connection)


def release(connection: sqlite3.Connection) -> Released:
    """`Documents.release` inside of a transaction."""
    known = {row[0] for row in connection.execute("SELECT digest FROM documents")}
    if not known:
        return Released()
    parts: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for document, part in connection.execute("SELECT document, part FROM document_parts"):
        parts.setdefault(("document", document), []).append(("document", part))
    roots = connection.execute(
        "SELECT document FROM tags WHERE document IS NOT NULL UNION SELECT digest FROM repo_digests "
        "UNION SELECT id FROM images WHERE artifact_type IS NOT NULL"
    )
    named = {key for _, key in live([("document", row[0]) for row in roots], parts)}
    dead = known - named
    if not dead:
        return Released()
    before = _images_of(connection, dead)
    connection.execute(
        "DELETE FROM documents WHERE digest IN (SELECT value FROM json_each(?))", (_list(dead),)
    )
    nameless = connection.execute(
        "SELECT id FROM images WHERE id IN (SELECT value FROM json_each(?)) AND id NOT IN (SELECT image_id FROM tags) "
        "AND id NOT IN (SELECT image_id FROM repo_digests)",
        (_list(before - _images_of(connection, known - dead)),),
    )
    blobs = dead | {key for document in dead for _, key in parts.get(("document", document), ())}
    return Released(
        tuple(Digest(row[0]) for row in nameless.fetchall()), tuple(Digest(key) for key in sorted(blobs))
    )


def _images_of(connection: sqlite3.Connection, documents: Iterable[str]) -> set[str]:
    rows = connection.execute(
        "SELECT DISTINCT image_id FROM document_parts JOIN manifests ON manifests.digest = part "
        "WHERE document IN (SELECT value FROM json_each(?))",
        (_list(documents),),
    )
    return {row[0] for row in rows}


def _list(keys: Iterable[str]) -> str:
    return json.dumps(sorted(keys))
