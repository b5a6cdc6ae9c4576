"""Start-up: remove from the data root what the catalogue does not own, report what it owns but misses.

Runs once, alone, before the door opens: nothing else may be using the store.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ketchd.catalogue.database import Catalogue
from ketchd.content.documents import release
from ketchd.layers.chains import chain_name
from ketchd.layers.placing import remove_some
from ketchd.model.digest import Digest


@dataclass(slots=True)
class Report:
    """removed: paths below the data root. missing and unowned: one line each, for the log."""

    removed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unowned: list[str] = field(default_factory=list)


def sweep_store(data_root: Path, catalogue: Catalogue, *, partial_hours: float = 7 * 24) -> Report:
    """Bring disk and catalogue together. partial_hours: how long a download that ended early stays.

    User data (a volume with something in it) is reported, never removed.
    """
    report = Report()
    with catalogue.transaction() as connection:
        connection.execute("DELETE FROM leases")
        release(connection)
    for path in entries_of(data_root / "stage"):
        _remove(path, data_root, report)
    _sweep_partials(data_root, catalogue, report, time.time() - partial_hours * 3600)
    _sweep_blobs(data_root, catalogue, report)
    _sweep_layers(data_root, catalogue, report)
    _sweep_init(data_root, catalogue, report)
    _sweep_containers(data_root, catalogue, report)
    _sweep_volumes(data_root, catalogue, report)
    return report


def _sweep_partials(data_root: Path, catalogue: Catalogue, report: Report, oldest: float) -> None:
    """Downloads that ended early stay, since a pull goes on from there, unless nobody came back for them since `oldest`."""
    whole = {row["digest"] for row in catalogue.query("SELECT digest FROM blobs")}
    entries = {path.name: path for path in entries_of(data_root / "partial")}
    for name, path in entries.items():
        digits = name.removesuffix(".map")
        is_pair = digits in entries and f"{digits}.map" in entries
        if not is_pair or f"sha256:{digits}" in whole or path.stat().st_mtime < oldest:
            _remove(path, data_root, report)


def _sweep_blobs(data_root: Path, catalogue: Catalogue, report: Report) -> None:
    owned = {
        row["digest"]: row["size"]
        for row in catalogue.query("SELECT digest, size FROM blobs ORDER BY digest")
    }
    present: dict[str, int] = {}
    for path in entries_of(data_root / "blobs" / "sha256"):
        if (digest := f"sha256:{path.name}") in owned:
            present[digest] = path.stat().st_size
        else:
            _remove(path, data_root, report)
    needed = {row[0]: row[1] for row in catalogue.query("SELECT digest, image_id FROM manifests")}
    needed |= {row[0]: row[0] for row in catalogue.query("SELECT id FROM images")}
    needed |= {row[0]: row[0] for row in catalogue.query("SELECT digest FROM documents")}
    needed |= {
        row[0]: row[1]
        for row in catalogue.query(
            "SELECT part, document FROM document_parts JOIN documents ON digest = document WHERE kind = 'artifact'"
        )
    }
    with catalogue.transaction() as connection:
        for digest, size in owned.items():
            if digest in present and present[digest] == size:
                continue
            state = (
                "is missing" if digest not in present else f"has {present[digest]} bytes instead of {size}"
            )
            if digest in needed:
                report.missing.append(f"blob {digest} of image {needed[digest]} {state}")
                continue
            # A layer's compressed form, or nobody's: it can be fetched or made again.
            report.missing.append(f"blob {digest} {state}: forgotten")
            connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
            if digest in present:
                _remove(data_root / "blobs" / "sha256" / digest[7:], data_root, report)


def _sweep_layers(data_root: Path, catalogue: Catalogue, report: Report) -> None:
    owned = {row[0] for row in catalogue.query("SELECT diff_id FROM layers ORDER BY diff_id")}
    present = set()
    for path in entries_of(data_root / "layers" / "sha256"):
        if (diff_id := f"sha256:{path.name}") in owned:
            present.add(diff_id)
        else:
            _remove(path, data_root, report)
    users: dict[str, str] = {}
    for row in catalogue.query("SELECT diff_id, image_id FROM image_layers"):
        users[row["diff_id"]] = f"image {row['image_id']}"
    for container_id, layers in _container_layers(catalogue):
        users |= {diff_id: f"container {container_id}" for diff_id in layers}
    with catalogue.transaction() as connection:
        for diff_id in sorted(owned - present):
            if diff_id in users:
                report.missing.append(f"layer {diff_id} of {users[diff_id]} is missing")
                continue
            report.missing.append(f"layer {diff_id} is missing: forgotten")
            connection.execute("DELETE FROM layers WHERE diff_id = ?", (diff_id,))
            connection.execute("DELETE FROM layer_blobs WHERE diff_id = ?", (diff_id,))
            connection.execute("DELETE FROM build_cache WHERE diff_id = ?", (diff_id,))


def _sweep_init(data_root: Path, catalogue: Catalogue, report: Report) -> None:
    """Init layers are made again when needed; those of chains that no image and no container has go."""
    entries = list(entries_of(data_root / "init"))
    if not entries:
        return
    chains: dict[str, list[str]] = {
        row[0]: [] for row in catalogue.query("SELECT id FROM images WHERE artifact_type IS NULL")
    }
    for row in catalogue.query("SELECT image_id, diff_id FROM image_layers ORDER BY image_id, position"):
        chains[row["image_id"]].append(row["diff_id"])
    chains |= dict(_container_layers(catalogue))
    kept = {chain_name(tuple(Digest(diff_id) for diff_id in layers)) for layers in chains.values()}
    for path in entries:
        if path.name not in kept:
            _remove(path, data_root, report)


def _sweep_containers(data_root: Path, catalogue: Catalogue, report: Report) -> None:
    owned = {row["id"] for row in catalogue.query("SELECT id FROM containers ORDER BY id")}
    for path in entries_of(data_root / "containers"):
        if path.name in owned:
            owned.discard(path.name)
        else:
            _remove(path, data_root, report)
    report.missing += [f"directory of container {container_id} is missing" for container_id in sorted(owned)]


def _sweep_volumes(data_root: Path, catalogue: Catalogue, report: Report) -> None:
    owned = {row["name"] for row in catalogue.query("SELECT name FROM volumes WHERE driver = 'local'")}
    for path in entries_of(data_root / "volumes"):
        if path.name in owned:
            owned.discard(path.name)
        elif not path.is_dir() or any(entries_of(path / "_data")):
            report.unowned.append(
                f"volumes/{path.name} belongs to no volume, and something is in it: left alone"
            )
        else:
            _remove(path, data_root, report)
    report.missing += [f"directory of volume {name} is missing" for name in sorted(owned)]


def _container_layers(catalogue: Catalogue) -> Iterator[tuple[str, list[str]]]:
    for row in catalogue.query("SELECT id, record FROM containers"):
        yield row["id"], json.loads(row["record"]).get("layers", [])


def entries_of(directory: Path) -> Iterator[Path]:
    """What lies there, by name; nothing where there is no such directory."""
    try:
        with os.scandir(directory) as found:
            yield from sorted(Path(entry.path) for entry in found)
    except FileNotFoundError:
        return


def _remove(path: Path, data_root: Path, report: Report) -> None:
    remove_some(str(path))
    report.removed.append(str(path.relative_to(data_root)))
