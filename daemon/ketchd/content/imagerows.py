"""Every image as the list needs it: plain texts, three queries and no object per name, so that thousands cost little."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from ketchd.catalogue.database import Catalogue

Labels = dict[str, str] | None


class ImageRow(NamedTuple):
    """One image. created_ns: None when its config does not say. labels: None when it has none, not to be changed. parent: "" for
    none. tags, digests: canonical names, sorted."""

    id: str
    created_ns: int | None
    size: int
    parent: str
    labels: Labels
    tags: Sequence[str]
    digests: Sequence[str]


def image_rows(catalogue: Catalogue) -> list[ImageRow]:
    """Every image, newest first."""
    tags: dict[str, list[str]] = {}
    for image_id, name in catalogue.query("SELECT image_id, name FROM tags ORDER BY name"):
        tags.setdefault(image_id, []).append(name)
    digests: dict[str, list[str]] = {}
    for image_id, name in catalogue.query(
        "SELECT image_id, repository || '@' || digest FROM repo_digests ORDER BY repository, digest"
    ):
        digests.setdefault(image_id, []).append(name)
    found = catalogue.query(
        "SELECT id, created, size, coalesce(parent, ''), labels FROM images ORDER BY created DESC, id"
    )
    texts = list({row[4] for row in found})
    # All at once: a call for each costs three times as much as reading it.
    known: dict[str, Labels] = dict(zip(texts, json.loads(f"[{','.join(texts)}]"), strict=True))
    rows = []
    for image_id, created, size, parent, text in found:
        rows.append(
            ImageRow(
                image_id,
                created,
                size,
                parent,
                known[text],
                tags.get(image_id, ()),
                digests.get(image_id, ()),
            )
        )
    return rows


def shared_sizes(catalogue: Catalogue) -> dict[str, int]:
    """Bytes of the layers of each image that another one has too; images without such are left out."""
    found = catalogue.query(
        "SELECT image_id, sum(disk_size) FROM (SELECT DISTINCT image_id, diff_id FROM image_layers) "
        "JOIN layers USING (diff_id) WHERE diff_id IN (SELECT diff_id FROM image_layers GROUP BY diff_id "
        "HAVING count(DISTINCT image_id) > 1) GROUP BY image_id"
    )
    return {row[0]: row[1] for row in found}
