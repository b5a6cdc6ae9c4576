"""Garbage: remove blobs and layers that nothing refers to.

Roots are images and documents (they go only when somebody says so), leases, containers' layers and the build cache's
layers. An image needs its layers, its config and its manifests; a document its own bytes and its parts; a layer its
compressed forms.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ketchd.catalogue.database import Catalogue
from ketchd.content.blobs import BlobStore
from ketchd.content.marking import Node, live
from ketchd.layers.store import LayerStore
from ketchd.model.digest import Digest


@dataclass(frozen=True, slots=True)
class Collected:
    """One removed thing, its bytes on disk, and why it was garbage."""

    kind: str
    key: str
    size: int
    reason: str


class Garbage:
    """Marks by `marking.live`. What is swept together goes in one durable transaction; its files are unlinked behind the answer."""

    def __init__(self, catalogue: Catalogue, blobs: BlobStore, layers: LayerStore) -> None:
        self._catalogue = catalogue
        self._blobs = blobs
        self._layers = layers

    def find(
        self, among: Iterable[Node] | None = None, *, unused_since_ns: int | None = None
    ) -> list[Collected]:
        """What a sweep would remove: all garbage, or only what is found `among` some nodes.

        unused_since_ns: only what was used last before then.
        """
        if among is None:
            nodes = self._everything()
        else:
            nodes = set(among)
            keys = [key for kind, key in nodes if kind == "layer"]
            nodes |= {
                ("blob", row["digest"])
                for row in self._in("SELECT digest FROM layer_blobs WHERE diff_id IN", keys)
            }
        kept = live(self._roots(nodes), self._references(nodes))
        found: list[Collected] = []
        for kind, table, column, size in (
            ("layer", "layers", "diff_id", "disk_size"),
            ("blob", "blobs", "digest", "size"),
        ):
            dead = [key for node, key in nodes if node == kind and (node, key) not in kept]
            for row in self._in(
                f"SELECT {column}, {size}, last_used_ns FROM {table} WHERE {column} IN", dead
            ):
                if unused_since_ns is None or row[2] < unused_since_ns:
                    found.append(
                        Collected(
                            kind, row[0], row[1], f"no image, container, cache or lease needs the {kind}"
                        )
                    )
        return found

    async def sweep(
        self,
        among: Iterable[Node] | None = None,
        *,
        unused_since_ns: int | None = None,
        dry_run: bool = False,
    ) -> list[Collected]:
        """Remove what `find` finds; returns what is gone (with dry_run: would be).

        Cancelled: all of it is gone or nothing.
        """
        found = self.find(among, unused_since_ns=unused_since_ns)
        if dry_run or not found:
            return found
        nodes = [(item.kind, item.key) for item in found]
        async with self.holding(nodes):
            with self._catalogue.transaction(durable=True):
                removed = self.forget(nodes)
            self.discard(removed)
        return removed

    def holding(self, nodes: Iterable[Node]) -> AbstractAsyncContextManager[None]:
        """Nobody publishes the layers among `nodes` meanwhile."""
        return self._layers.holding(Digest(key) for kind, key in nodes if kind == "layer")

    def forget(self, nodes: Sequence[Node]) -> list[Collected]:
        """Delete the records of those of `nodes` that are garbage by now, in the caller's transaction, who is `holding` them.

        `discard` what it returns after the commit, before anything is awaited.
        """
        wanted = set(nodes)
        found = [item for item in self.find(nodes) if (item.kind, item.key) in wanted]
        with self._catalogue.transaction(durable=True) as connection:
            self._layers.forget(connection, _digests(found, "layer"))
            self._blobs.forget(connection, _digests(found, "blob"))
        return found

    def discard(self, forgotten: Sequence[Collected]) -> None:
        """Take the files of what was forgotten away. Raises EngineFailure; the next start removes the rest."""
        self._layers.discard(_digests(forgotten, "layer"))
        self._blobs.discard(_digests(forgotten, "blob"))

    def _everything(self) -> set[Node]:
        query = self._catalogue.query
        nodes = {("layer", row[0]) for row in query("SELECT diff_id FROM layers")}
        return nodes | {("blob", row[0]) for row in query("SELECT digest FROM blobs")}

    def _roots(self, nodes: set[Node]) -> set[Node]:
        """The roots that matter for `nodes`: an image without any of them is left out."""
        query = self._catalogue.query
        layers = {key for kind, key in nodes if kind == "layer"} | set(self._layers_of_blobs(nodes))
        roots = {
            ("image", row[0])
            for row in self._in("SELECT image_id FROM image_layers WHERE diff_id IN", layers)
        }
        blobs = [key for kind, key in nodes if kind == "blob"]
        roots |= {
            ("image", row[0]) for row in self._in("SELECT image_id FROM manifests WHERE digest IN", blobs)
        }
        roots |= {("image", row[0]) for row in self._in("SELECT id FROM images WHERE id IN", blobs)}
        for sql in (
            "SELECT digest FROM documents WHERE digest IN",
            "SELECT part FROM document_parts WHERE part IN",
        ):
            roots |= {("blob", row[0]) for row in self._in(sql, blobs)}
        roots |= {(row["kind"], row["key"]) for row in query("SELECT kind, key FROM lease_items")}
        roots |= {
            ("layer", row[0]) for row in self._in("SELECT diff_id FROM build_cache WHERE diff_id IN", layers)
        }
        for row in query("SELECT record FROM containers"):
            roots |= {("layer", diff_id) for diff_id in json.loads(row["record"]).get("layers", ())}
        return roots

    def _references(self, nodes: set[Node]) -> dict[Node, list[Node]]:
        references: dict[Node, list[Node]] = defaultdict(list)
        layers = {key for kind, key in nodes if kind == "layer"} | set(self._layers_of_blobs(nodes))
        for row in self._in("SELECT image_id, diff_id FROM image_layers WHERE diff_id IN", layers):
            references["image", row["image_id"]].append(("layer", row["diff_id"]))
        for row in self._in("SELECT diff_id, digest FROM layer_blobs WHERE diff_id IN", layers):
            references["layer", row["diff_id"]].append(("blob", row["digest"]))
        blobs = [key for kind, key in nodes if kind == "blob"]
        for row in self._in("SELECT image_id, digest FROM manifests WHERE digest IN", blobs):
            references["image", row["image_id"]].append(("blob", row["digest"]))
        for row in self._in("SELECT id FROM images WHERE id IN", blobs):
            references["image", row["id"]].append(("blob", row["id"]))
        return references

    def _layers_of_blobs(self, nodes: set[Node]) -> list[str]:
        blobs = [key for kind, key in nodes if kind == "blob"]
        return [row[0] for row in self._in("SELECT diff_id FROM layer_blobs WHERE digest IN", blobs)]

    def _in(self, sql: str, keys: Iterable[str]) -> Sequence[sqlite3.Row]:
        return self._catalogue.query(f"{sql} (SELECT value FROM json_each(?))", (json.dumps(list(keys)),))


def _digests(items: Iterable[Collected], kind: str) -> list[Digest]:
    return [Digest(item.key) for item in items if item.kind == kind]
