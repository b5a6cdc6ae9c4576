"""The catalogue's tables, and how an older catalogue becomes one of this version.

A migration is never edited once released: a change is a new one at the end of MIGRATIONS. `PRAGMA
user_version` counts the applied ones. Times are ns since the epoch; JSON columns hold text; digests are
written `sha256:HEX`.
"""

from __future__ import annotations

import sqlite3

from ketch_wire.faults import EngineFailure

_FIRST = (
    # Content: what lies in blobs/ and layers/.
    """CREATE TABLE blobs (
        digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL DEFAULT '',
        created_ns INTEGER NOT NULL, last_used_ns INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE blob_sources (
        digest TEXT NOT NULL, repository TEXT NOT NULL, PRIMARY KEY (digest, repository)) WITHOUT ROWID""",
    # implied: msgpack list of the directories that the tar omits; a composed chain gives them the lower's
    # metadata.
    """CREATE TABLE layers (
        diff_id TEXT PRIMARY KEY, kind TEXT NOT NULL, tar_size INTEGER NOT NULL, disk_size INTEGER NOT NULL,
        entries INTEGER NOT NULL, implied BLOB NOT NULL, created_ns INTEGER NOT NULL, last_used_ns INTEGER NOT
        NULL)""",
    # The compressed forms in which a layer travels.
    """CREATE TABLE layer_blobs (
        diff_id TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
        PRIMARY KEY (diff_id, digest)) WITHOUT ROWID""",
    "CREATE INDEX layer_blobs_by_digest ON layer_blobs (digest)",
    # Images. created: ns since the epoch, NULL when the config has none. labels: JSON, so that a list reads
    # no blob.
    """CREATE TABLE images (
        id TEXT PRIMARY KEY, os TEXT NOT NULL, architecture TEXT NOT NULL, variant TEXT NOT NULL DEFAULT '',
        created INTEGER, size INTEGER NOT NULL, parent TEXT, labels TEXT NOT NULL DEFAULT 'null',
        stored_ns INTEGER NOT NULL, last_tag_ns INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX images_by_parent ON images (parent) WHERE parent IS NOT NULL",
    """CREATE TABLE image_layers (
        image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE, position INTEGER NOT NULL,
        diff_id TEXT NOT NULL, PRIMARY KEY (image_id, position)) WITHOUT ROWID""",
    "CREATE INDEX image_layers_by_layer ON image_layers (diff_id)",
    """CREATE TABLE manifests (
        digest TEXT PRIMARY KEY, image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        media_type TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX manifests_by_image ON manifests (image_id)",
    # name: canonical, `docker.io/library/x:tag`.
    """CREATE TABLE tags (
        name TEXT PRIMARY KEY, image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        updated_ns INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX tags_by_image ON tags (image_id)",
    """CREATE TABLE repo_digests (
        repository TEXT NOT NULL, digest TEXT NOT NULL,
        image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE, PRIMARY KEY (repository, digest))
        WITHOUT ROWID""",
    "CREATE INDEX repo_digests_by_image ON repo_digests (image_id)",
    # Leases: what a journey under way needs. None outlives the daemon: start-up deletes them.
    """CREATE TABLE leases (
        id TEXT PRIMARY KEY, created_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE lease_items (
        lease_id TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE, kind TEXT NOT NULL, key TEXT NOT
        NULL, PRIMARY KEY (lease_id, kind, key)) WITHOUT ROWID""",
    # Containers, volumes, networks. record: JSON.
    """CREATE TABLE containers (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, image_id TEXT NOT NULL, created_ns INTEGER NOT NULL,
        record BLOB NOT NULL)""",
    "CREATE INDEX containers_by_image ON containers (image_id)",
    """CREATE TABLE volumes (
        name TEXT PRIMARY KEY, driver TEXT NOT NULL, created_ns INTEGER NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}', options TEXT NOT NULL DEFAULT '{}',
        anonymous INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE networks (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, driver TEXT NOT NULL, record TEXT NOT NULL)""",
    """CREATE TABLE addresses (
        network_id TEXT NOT NULL, address TEXT NOT NULL, container_id TEXT NOT NULL,
        PRIMARY KEY (network_id, address)) WITHOUT ROWID""",
    "CREATE INDEX addresses_by_container ON addresses (container_id)",
    # Build cache. result: JSON.
    """CREATE TABLE build_cache (
        key TEXT PRIMARY KEY, parent_key TEXT NOT NULL DEFAULT '', kind TEXT NOT NULL,
        description TEXT NOT NULL, result TEXT NOT NULL, diff_id TEXT,
        created_ns INTEGER NOT NULL, last_used_ns INTEGER NOT NULL,
        use_count INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX build_cache_by_parent ON build_cache (parent_key)",
    "CREATE INDEX build_cache_by_layer ON build_cache (diff_id) WHERE diff_id IS NOT NULL",
    """CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, type TEXT NOT NULL,
        action TEXT NOT NULL, actor_id TEXT NOT NULL, attributes TEXT NOT NULL)""",
)

_DOCUMENTS = (
    # What a registry names and no image is: an index of several platforms, an artifact. Its bytes are a blob; kind: index or
    # artifact. It stays while something names it.
    """CREATE TABLE documents (
        digest TEXT PRIMARY KEY, kind TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID""",
    # What it refers to, by digest, whether it is here or not.
    """CREATE TABLE document_parts (
        document TEXT NOT NULL REFERENCES documents (digest) ON DELETE CASCADE, part TEXT NOT NULL,
        PRIMARY KEY (document, part)) WITHOUT ROWID""",
    "CREATE INDEX document_parts_by_part ON document_parts (part)",
    # The index that the tag means beside its image; NULL for a tag of one image.
    "ALTER TABLE tags ADD COLUMN document TEXT",
    # What an artifact is, NULL for an image. An artifact's ID is its manifest's digest.
    "ALTER TABLE images ADD COLUMN artifact_type TEXT",
)

_EVENT_TIMES = (
    "CREATE INDEX events_by_time ON events (time_ns)",
)  # a stream `since` a moment begins at once

# Execs, until a while after their end. settings: JSON. started: whether its `exec_start` is told. ended_ns: 0 before.
_EXECS = (
    """CREATE TABLE execs (
        id TEXT PRIMARY KEY, container_id TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
        settings TEXT NOT NULL, started INTEGER NOT NULL DEFAULT 0, exit_code INTEGER,
        ended_ns INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID""",
    "CREATE INDEX execs_by_container ON execs (container_id)",
    "CREATE INDEX execs_by_end ON execs (ended_ns) WHERE ended_ns > 0",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _DOCUMENTS, _EVENT_TIMES, _EXECS)


def migrate(connection: sqlite3.Connection, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> None:
    """Apply the missing migrations, each in a transaction of its own: a crash between two leaves a valid
    older catalogue.

    `connection` must be in autocommit mode. Raises EngineFailure when a newer ketchd wrote the catalogue.
    """
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > len(migrations):
        raise EngineFailure(
            f"the catalogue has schema {found}, this ketchd knows up to {len(migrations)}: it is too old"
        )
    for version in range(found, len(migrations)):
        connection.execute("BEGIN EXCLUSIVE")
        try:
            for statement in migrations[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
