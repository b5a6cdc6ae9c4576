"""What a check of the store finds, and whom it concerns."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest

Kind = Literal["blob", "layer", "container", "volume", "file"]


@dataclass(slots=True)
class Finding:
    """One thing that is not as it should be. key: digest, ID, name, or a path below the data root. repaired: how, "" for not.

    reason: why it was not repaired, when it was tried.
    """

    kind: Kind
    key: str
    problem: str
    users: list[str] = field(default_factory=list)
    repaired: str = ""
    reason: str = ""

    def show(self) -> dict[str, Any]:
        """As the stream carries it."""
        return {
            "Kind": self.kind, "Key": self.key, "Problem": self.problem, "Users": self.users,
            "Repaired": self.repaired, "Reason": self.reason,
        }  # fmt: skip


def users_of_layer(rooms: Rooms, diff_id: str) -> list[str]:
    """Images and containers that stand on the layer."""
    rows = rooms.catalogue.query("SELECT image_id FROM image_layers WHERE diff_id = ?", (diff_id,))
    users = {f"image {row[0]}" for row in rows}
    users |= {f"container {box.record.id}" for box in rooms.supervisor if diff_id in box.record.layers}
    return sorted(users)


def users_of_blob(rooms: Rooms, digest: str) -> list[str]:
    """Images, documents and layers that the blob is part of."""
    query = rooms.catalogue.query
    users = {f"image {row[0]}" for row in query("SELECT id FROM images WHERE id = ?", (digest,))}
    users |= {
        f"image {row[0]}" for row in query("SELECT image_id FROM manifests WHERE digest = ?", (digest,))
    }
    for kept in (
        "SELECT digest FROM documents WHERE digest = ?",
        "SELECT document FROM document_parts JOIN documents ON digest = document WHERE part = ? AND kind = 'artifact'",
    ):
        users |= {f"document {row[0]}" for row in query(kept, (digest,))}
    users |= {
        f"layer {row[0]}" for row in query("SELECT diff_id FROM layer_blobs WHERE digest = ?", (digest,))
    }
    return sorted(users)


def blob_problem(path: Path, size: int, digest: Digest) -> str:
    """What is wrong with the file; "" for nothing."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                return f"has {found} bytes instead of {size}"
            if hashlib.file_digest(file, "sha256").hexdigest() != digest.hex:
                return "is damaged"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return ""
