"""Rooms without network, shims and cgroups: a real catalogue, real stores and real layer workers below one directory."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal
from ketchd.containers.lifecycle import State
from ketchd.containers.record import ContainerRecord, new_id
from ketchd.containers.settings import merge, normalise_host
from ketchd.containers.supervisor import Box, Supervisor
from ketchd.content.blobs import BlobStore
from ketchd.content.garbage import Garbage
from ketchd.content.images import ImageStore
from ketchd.content.leases import Leases
from ketchd.engine.rooms import Rooms
from ketchd.engine.volumes import Volumes
from ketchd.layers.store import LayerStore
from ketchd.layers.trash import Trash
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest
from ketchd.model.reference import Reference


class _Silent:
    """A log that nobody reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextlib.asynccontextmanager
async def rooms_below(root: Path, kind: str = "erofs") -> AsyncIterator[Rooms]:
    """Rooms in the directory `root`, closed afterwards."""
    (root / "stage").mkdir(parents=True, exist_ok=True)
    catalogue, workers = Catalogue(root / "catalogue.sqlite"), WorkerPool()
    events = EventJournal(catalogue)
    trash = Trash(root, workers)
    blobs, layers = BlobStore(root, catalogue, trash), LayerStore(root, catalogue, workers, kind, trash)
    supervisor = Supervisor(catalogue, events)
    nothing: Any = SimpleNamespace(ids=dict)

    def users(volume: str) -> list[str]:
        return [box.record.id for box in supervisor for one in box.record.mounts if one.get("name") == volume]

    rooms = Rooms(
        data_root=root, exec_root=root / "run", catalogue=catalogue, events=events, blobs=blobs,
        images=ImageStore(catalogue, blobs), leases=Leases(catalogue), trash=trash, garbage=Garbage(catalogue, blobs, layers),
        layers=layers, workers=workers, networks=nothing, volumes=Volumes(root, catalogue, events, users, trash), shims=nothing,
        supervisor=supervisor, cgroups=nothing, log=_Silent(),
    )  # fmt: skip
    try:
        yield rooms
    finally:
        await rooms.registry.close()
        await trash.close()
        await workers.close()
        await layers.close()
        catalogue.close()


def tar_of(files: Mapping[str, bytes | None]) -> bytes:
    """A tar of files; None is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            else:
                entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content or b""))
    return buffer.getvalue()


async def layer_of(rooms: Rooms, files: Mapping[str, bytes | None]) -> Digest:
    """A layer in the store."""
    async with rooms.layers.ingest() as ingest:
        await ingest.feed(tar_of(files))
        return (await ingest.finish()).diff_id


async def image_of(
    rooms: Rooms,
    layers: Sequence[Digest],
    *names: str,
    created: str = "2024-01-02T03:04:05Z",
    config: Mapping[str, Any] | None = None,
    parent: Digest | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> Digest:
    """A registered and named image."""
    document = {
        "architecture": "amd64", "os": "linux", "created": created, "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [layer.text for layer in layers]}, "history": list(history), **more,
    }  # fmt: skip
    image_id = await rooms.images.register(json.dumps(document).encode(), parent=parent)
    for name in names:
        rooms.images.tag(Reference.parse(name), image_id)
    return image_id


def container_of(
    rooms: Rooms, image_id: Digest, name: str, *, state: State = State.EXITED, **record: Any
) -> Box:
    """A recorded container with its directories, in any state."""
    image = rooms.images.get(image_id)
    config = merge({"Image": str(image_id), "Cmd": ["true"]}, image.config.run)
    host = normalise_host({}, cgroup_version=1, cpus=1)
    made = ContainerRecord(
        id=new_id(), name=name, image_id=str(image_id), image_name=str(image_id), created_ns=1, config=config,
        host_config=host, networking={}, layers=[layer.text for layer in image.layers], path="true", args=[],
        state=state, **record,
    )  # fmt: skip
    for part in ("upper", "work"):
        (rooms.container_dir(made.id) / part).mkdir(parents=True)
    return rooms.supervisor.add(made)
