"""ImageStore: images and their names."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.catalogue.database import Catalogue
from ketchd.content.blobs import BlobStore
from ketchd.content.documents import release
from ketchd.content.readyimages import ReadyImage, ReadyManifest, record_image
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import ImageConfig
from ketchd.model.reference import Reference

CONFIG_MEDIA_TYPE = "application/vnd.docker.container.image.v1+json"
_ID_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")
_CONFIGS_KEPT = 256

_parse_name = lru_cache(maxsize=16384)(Reference.parse)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image as the catalogue knows it, at the time of asking.

    references: tags, then digest names, each sorted. created_ns: None when the config does not say. size:
    bytes of its layers on disk. labels: None when the config has none. layers: diff IDs base first. Times: ns
    since the epoch; 0 is never. artifact_type: what it is when it is no image; then it has no config, platform or layers, and
    its ID is its manifest's digest.
    """

    id: Digest
    os: str
    architecture: str
    variant: str
    created_ns: int | None
    size: int
    parent: Digest | None
    labels: dict[str, str] | None
    stored_ns: int
    last_tag_ns: int
    references: tuple[Reference, ...]
    layers: tuple[Digest, ...]
    artifact_type: str | None
    _load: Callable[[Digest], ImageConfig] = field(repr=False, compare=False)

    @property
    def config(self) -> ImageConfig:
        """Read when asked for: a list of thousands of images needs none.

        Raises EngineFailure when it is damaged, InvalidInput when this is an artifact.
        """
        self.check_is_image()
        return self._load(self.id)

    def check_is_image(self, name: str = "") -> None:
        """Raises InvalidInput for an artifact."""
        if self.artifact_type is not None:
            raise InvalidInput(
                f"{name or self.id.short} is an artifact of type {self.artifact_type}, not a container image: it can be kept, "
                "saved and pushed, not run"
            )

    @property
    def tags(self) -> list[Reference]:
        """`name:tag` names."""
        return [reference for reference in self.references if reference.digest is None]

    @property
    def digests(self) -> list[Reference]:
        """`name@digest` names."""
        return [reference for reference in self.references if reference.digest is not None]

    @property
    def repo_tags(self) -> list[str]:
        """As the API shows tags: `busybox:latest`."""
        return [reference.familiar() for reference in self.tags]

    @property
    def repo_digests(self) -> list[str]:
        """As the API shows them: `busybox@sha256:…`."""
        return [reference.familiar() for reference in self.digests]


class ImageStore:
    """An image is its config blob; its ID the config's digest. Tags are names that move.

    Digest names come from registries.

    An image is recorded after its layers are published, together with its names or ahead of them, so a name never leads to half
    an image.
    """

    def __init__(self, catalogue: Catalogue, blobs: BlobStore) -> None:
        self._catalogue = catalogue
        self._blobs = blobs
        self._configs: dict[Digest, ImageConfig] = {}

    async def register(
        self,
        config: bytes,
        *,
        manifest: bytes | None = None,
        manifest_media_type: str = "",
        config_media_type: str = CONFIG_MEDIA_TYPE,
        parent: Digest | None = None,
        durable: bool = False,
    ) -> Digest:
        """Store an image whose layers are there. Idempotent; returns its ID.

        Give it a name, or `durable`, to have it stay.

        Raises InvalidInput (the config is none), NotFound (a layer is missing). Cancelled: blobs may stay,
        never half an image.
        """
        return self.record(
            await self.prepare(
                config,
                manifest=manifest,
                manifest_media_type=manifest_media_type,
                config_media_type=config_media_type,
            ),
            parent=parent,
            durable=durable,
        )

    async def prepare(
        self,
        config: bytes,
        *,
        manifest: bytes | None = None,
        manifest_media_type: str = "",
        config_media_type: str = CONFIG_MEDIA_TYPE,
    ) -> ReadyImage:
        """Store an image's documents, for `record`: keep them and its layers by a lease until then.

        Raises InvalidInput (the config is none). Cancelled: blobs may stay.
        """
        parsed = ImageConfig.parse(config)
        image_id = await self._blobs.put(config, config_media_type)
        if manifest is None:
            return ReadyImage(image_id, parsed)
        digest = await self._blobs.put(manifest, manifest_media_type)
        return ReadyImage(image_id, parsed, ReadyManifest(digest, manifest_media_type, len(manifest)))

    def record(self, ready: ReadyImage, *, parent: Digest | None = None, durable: bool = False) -> Digest:
        """Make it an image; in a transaction that names it too, a kill leaves either both or nothing. Idempotent; returns its ID.

        Raises NotFound (a layer is missing).
        """
        with self._catalogue.transaction(durable=durable) as connection:
            record_image(connection, ready, parent)
        self._keep(ready.id, ready.config)
        return ready.id

    def register_artifact(self, manifest: Digest, artifact_type: str, size: int) -> None:
        """Have the artifact listed, by its manifest's digest. size: bytes of all that it consists of. Idempotent.

        Its blobs are there, and `documents` knows it.
        """
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO images (id, os, architecture, size, stored_ns, artifact_type) VALUES (?, '', '', ?, ?, ?)",
                (str(manifest), size, time.time_ns(), artifact_type),
            )

    def resize(self, layer: Digest) -> None:
        """The layer takes another room on the disk than before: so do the images that have it."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "UPDATE images SET size = (SELECT coalesce(sum(disk_size), 0) FROM image_layers JOIN layers USING (diff_id) "
                "WHERE image_id = images.id) WHERE id IN (SELECT image_id FROM image_layers WHERE diff_id = ?)",
                (str(layer),),
            )

    def tag(
        self,
        reference: Reference,
        image_id: Digest,
        *,
        repo_digest: Digest | None = None,
        document: Digest | None = None,
    ) -> Digest | None:
        """Name the image, durably; returns the image that had the tag before.

        A reference without tag gets `latest`; one with a digest makes the digest name only. `repo_digest`
        makes that name too. document: the index that the tag means. Raises NotFound.
        """
        now = time.time_ns()
        previous: Digest | None = None
        digest = repo_digest or reference.digest
        with self._catalogue.transaction(durable=True) as connection:
            if connection.execute("SELECT 1 FROM images WHERE id = ?", (str(image_id),)).fetchone() is None:
                raise NotFound(f"No such image: {image_id}")
            if digest is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO repo_digests (repository, digest, image_id) VALUES (?, ?, ?)",
                    (reference.repository, str(digest), str(image_id)),
                )
            if reference.digest is None:
                name = reference.with_default_tag().canonical()
                found = connection.execute(
                    "SELECT image_id, document FROM tags WHERE name = ?", (name,)
                ).fetchone()
                previous = Digest(found["image_id"]) if found else None
                wanted = None if document is None else str(document)
                connection.execute(
                    "INSERT OR REPLACE INTO tags (name, image_id, updated_ns, document) VALUES (?, ?, ?, ?)",
                    (name, str(image_id), now, wanted),
                )
                if found and found["document"] not in (None, wanted):
                    release(connection)
            connection.execute("UPDATE images SET last_tag_ns = ? WHERE id = ?", (now, str(image_id)))
        return previous

    def untag(self, reference: Reference) -> bool:
        """Take one name away, durably; says whether it was there. The image stays."""
        with self._catalogue.transaction(durable=True) as connection:
            if reference.digest is not None:
                cursor = connection.execute(
                    "DELETE FROM repo_digests WHERE repository = ? AND digest = ?",
                    (reference.repository, str(reference.digest)),
                )
            else:
                name = reference.with_default_tag().canonical()
                cursor = connection.execute("DELETE FROM tags WHERE name = ?", (name,))
            return cursor.rowcount > 0

    def find_name(self, reference: Reference) -> Digest | None:
        """The image of an exact name; without tag or digest `latest`."""
        if reference.digest is not None:
            rows = self._catalogue.query(
                "SELECT image_id FROM repo_digests WHERE repository = ? AND digest = ?",
                (reference.repository, str(reference.digest)),
            )
        else:
            name = reference.with_default_tag().canonical()
            rows = self._catalogue.query("SELECT image_id FROM tags WHERE name = ?", (name,))
        return Digest(rows[0]["image_id"]) if rows else None

    def tags_of(self, repository: str) -> list[tuple[Reference, Digest]]:
        """Every tag of a repository (`docker.io/library/x`) with its image, sorted."""
        rows = self._catalogue.query(
            "SELECT name, image_id FROM tags WHERE name > ? AND name < ? ORDER BY name",
            (repository + ":", repository + ";"),
        )
        return [(_parse_name(row["name"]), Digest(row["image_id"])) for row in rows]

    def resolve(self, name: str) -> Digest:
        """The image meant by `name`: ID, name[:tag][@digest], then ID prefix. Raises NotFound, InvalidInput.

        Source: Engine API; moby's ImageService.GetImage has the same order.
        """
        whole = _ID_PREFIX.fullmatch(name)
        if whole and len(whole[1]) == 64:
            found = self._catalogue.query("SELECT id FROM images WHERE id = ?", (f"sha256:{whole[1]}",))
            if found:
                return Digest(found[0]["id"])
            raise NotFound(f"No such image: sha256:{whole[1]}")
        reference = Reference.parse(name)
        if (image_id := self.find_name(reference)) is not None:
            return image_id
        if whole:
            prefix = f"sha256:{whole[1]}"
            rows = self._catalogue.query(
                "SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2", (prefix, prefix + "g")
            )
            if len(rows) == 1:
                return Digest(rows[0]["id"])
            if rows:
                raise InvalidInput(f"multiple images found with provided prefix: {name}")
        shown = reference if reference.digest is not None else reference.with_default_tag()
        raise NotFound(f"No such image: {shown.familiar()}")

    def has(self, image_id: Digest) -> bool:
        """Whether the image is registered."""
        return bool(self._catalogue.query("SELECT 1 FROM images WHERE id = ?", (str(image_id),)))

    def get(self, image_id: Digest) -> ImageRecord:
        """Raises NotFound."""
        records = self._select("WHERE image_id = ?", (str(image_id),))
        if not records:
            raise NotFound(f"No such image: {image_id}")
        return records[0]

    def all(self) -> list[ImageRecord]:
        """Every image, newest first. `imagerows` has them faster, as texts."""
        return self._select("", ())

    def count(self) -> int:
        """How many images there are."""
        return int(self._catalogue.query("SELECT count(*) FROM images")[0][0])

    def artifacts(self) -> list[Digest]:
        """Every artifact, by its manifest's digest."""
        rows = self._catalogue.query("SELECT id FROM images WHERE artifact_type IS NOT NULL ORDER BY id")
        return [Digest(row["id"]) for row in rows]

    def children(self, image_id: Digest) -> list[Digest]:
        """Images that were built on this one here."""
        rows = self._catalogue.query("SELECT id FROM images WHERE parent = ? ORDER BY id", (str(image_id),))
        return [Digest(row["id"]) for row in rows]

    def parents(self) -> set[Digest]:
        """Every image that has children."""
        rows = self._catalogue.query("SELECT DISTINCT parent FROM images WHERE parent IS NOT NULL")
        return {Digest(row["parent"]) for row in rows}

    def manifest_of(self, image_id: Digest) -> tuple[Digest, str] | None:
        """Digest and media type of a manifest whose bytes are here, the newest stored first."""
        rows = self._catalogue.query(
            "SELECT manifests.digest, manifests.media_type FROM manifests JOIN blobs USING (digest) "
            "WHERE image_id = ? ORDER BY blobs.created_ns DESC",
            (str(image_id),),
        )
        return (Digest(rows[0]["digest"]), rows[0]["media_type"]) if rows else None

    def remove(self, image_id: Digest) -> None:
        """Forget the image and all its names, durably. Its blobs and layers become garbage.

        May be called twice.
        """
        with self._catalogue.transaction(durable=True) as connection:
            connection.execute("UPDATE images SET parent = NULL WHERE parent = ?", (str(image_id),))
            connection.execute("DELETE FROM images WHERE id = ?", (str(image_id),))
        self._configs.pop(image_id, None)

    def config(self, image_id: Digest) -> ImageConfig:
        """Parsed and kept for a while. Raises NotFound, EngineFailure (damaged), InvalidInput (no image's)."""
        if (kept := self._configs.get(image_id)) is not None:
            return kept
        parsed = ImageConfig.parse(self._blobs.read(image_id))
        self._keep(image_id, parsed)
        return parsed

    def _keep(self, image_id: Digest, parsed: ImageConfig) -> None:
        if len(self._configs) >= _CONFIGS_KEPT:
            del self._configs[next(iter(self._configs))]
        self._configs[image_id] = parsed

    def _select(self, where: str, parameters: tuple[str, ...]) -> list[ImageRecord]:
        """Four queries whatever the number of images."""
        query = self._catalogue.query
        names: dict[str, list[Reference]] = defaultdict(list)
        for row in query(f"SELECT name, image_id FROM tags {where} ORDER BY name", parameters):
            names[row["image_id"]].append(_parse_name(row["name"]))
        for row in query(
            f"SELECT repository || '@' || digest AS name, image_id FROM repo_digests {where} ORDER BY name",
            parameters,
        ):
            names[row["image_id"]].append(_parse_name(row["name"]))
        chains = self._chains(where, parameters)
        rows = query(
            f"SELECT * FROM images {where.replace('image_id', 'id')} ORDER BY created DESC, id", parameters
        )
        return [self._record(row, names.get(row["id"], ()), chains.get(row["id"], ())) for row in rows]

    def _chains(self, where: str, parameters: tuple[str, ...]) -> dict[str, list[Digest]]:
        """The layers of each image, base first."""
        layers: dict[str, list[Digest]] = defaultdict(list)
        seen: dict[str, Digest] = {}
        for image_id, text in self._catalogue.query(
            f"SELECT image_id, diff_id FROM image_layers {where} ORDER BY image_id, position", parameters
        ):
            layers[image_id].append(seen.get(text) or seen.setdefault(text, Digest(text)))
        return layers

    def _record(self, row: sqlite3.Row, names: Iterable[Reference], layers: Iterable[Digest]) -> ImageRecord:
        return ImageRecord(
            id=Digest(row["id"]),
            os=row["os"],
            architecture=row["architecture"],
            variant=row["variant"],
            created_ns=row["created"],
            size=row["size"],
            parent=Digest(row["parent"]) if row["parent"] else None,
            labels=None if row["labels"] == "null" else json.loads(row["labels"]),
            stored_ns=row["stored_ns"],
            last_tag_ns=row["last_tag_ns"],
            references=tuple(names),
            layers=tuple(layers),
            artifact_type=row["artifact_type"],
            _load=self.config,
        )
