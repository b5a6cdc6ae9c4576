"""The commit journey: what a container changed becomes a layer, and with its settings a new image on top of its own.

Source: Engine API 1.50, ImageCommit; moby's daemon/commit.go.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ketch_wire.defaults import ENGINE_VERSION
from ketch_wire.faults import Conflict, Fault
from ketchd import tracepoint
from ketchd.containers.lifecycle import State
from ketchd.containers.record import ContainerRecord
from ketchd.containers.shapes import CONFIG, fold, shown
from ketchd.containers.supervisor import Box
from ketchd.engine import stop
from ketchd.engine.imagechanges import apply_changes, history_entry, image_document
from ketchd.engine.images import announce
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import ImageConfig
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference

tracepoint.declare("commit.layer-made", "commit.registered", "commit.tagged")


async def commit(
    rooms: Rooms,
    box: Box,
    *,
    config: Mapping[str, Any],
    changes: Sequence[str] = (),
    target: Reference | None = None,
    author: str = "",
    comment: str = "",
    pause: bool = True,
) -> Digest:
    """The new image's ID. config: replaces the container's, {} for none; changes: Dockerfile instructions on top.

    Raises InvalidInput, Conflict, EngineFailure. Failed or cancelled: nothing stays, and the container runs as before.
    """
    record = box.record
    if record.state is State.DEAD:
        raise Conflict(f"You cannot commit container {record.id} which is Dead")
    if record.state is State.REMOVING:
        raise Conflict(f"You cannot commit container {record.id} which is being removed")
    base = fold(config, CONFIG) if config else record.config
    merged = _merge(apply_changes(base, changes), record.config)
    async with rooms.leases.hold() as lease:
        for layer in record.diff_ids:
            lease.add("layer", layer)
        made = await _make_layer(rooms, box, pause, partial(lease.add, "layer"))
        tracepoint.reach("commit.layer-made")
        document = _document(rooms, record, merged, made, author, comment)
        image_id = Digest.of(document)
        lease.add("blob", image_id)
        parent = Digest(record.image_id)
        ready = await rooms.images.prepare(document)
        with rooms.catalogue.transaction(durable=True):
            rooms.images.record(ready, parent=parent if rooms.images.has(parent) else None)
            tracepoint.reach("commit.registered")
            if target is not None:
                rooms.images.tag(target, image_id)
        tracepoint.reach("commit.tagged")
    if target is not None:
        announce(rooms, image_id, "tag", target.familiar())
    name = target.familiar() if target is not None else ""
    rooms.supervisor.announce(box, "commit", comment=comment, imageID=image_id.text, imageRef=name)
    return image_id


async def _make_layer(rooms: Rooms, box: Box, pause: bool, keep: Callable[[Digest], None]) -> Digest | None:
    upper = rooms.container_dir(box.record.id) / "upper"

    def check_whole() -> None:
        """A forced removal empties the directory while it is read, but moves it first."""
        if not upper.is_dir():
            raise Conflict(f"You cannot commit container {box.record.id} which is being removed")

    def keep_whole(layer: Digest) -> None:
        check_whole()
        keep(layer)

    # nobody starts it meanwhile, or it stands still
    async with _still(rooms, box, pause) if box.record.has_process else box.lock:
        made = await rooms.layers.from_upper(upper, box.record.diff_ids, keep=keep_whole)
        check_whole()
        return made


@asynccontextmanager
async def _still(rooms: Rooms, box: Box, pause: bool) -> AsyncIterator[None]:
    """Frozen for the body's time, if asked and if it runs."""
    paused = False
    if pause and box.record.state is State.RUNNING:
        try:
            await stop.pause(rooms, box, for_commit=True)
            paused = True
        except Fault as fault:
            rooms.log.warning("commit without pause", container=box.record.id, reason=fault.message)
    try:
        yield
    finally:
        if paused and box.record.state is State.PAUSED and box.record.paused_for_commit:
            await stop.unpause(rooms, box)


def _merge(config: dict[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """What `config` leaves open is the container's. Source: moby daemon/commit.go, merge."""
    merged = dict(config)
    for key in ("User", "WorkingDir", "StopSignal", "Healthcheck"):
        merged[key] = merged.get(key) or container.get(key)
    if not merged.get("Entrypoint"):
        merged["Cmd"] = merged.get("Cmd") or container.get("Cmd")
        merged["Entrypoint"] = merged.get("Entrypoint") or container.get("Entrypoint")
    for key in ("ExposedPorts", "Volumes", "Labels"):
        merged[key] = {**(container.get(key) or {}), **(merged.get(key) or {})}
    env = list(merged.get("Env") or ())
    own = {entry.partition("=")[0] for entry in env}
    merged["Env"] = env + [
        entry for entry in container.get("Env") or () if entry.partition("=")[0] not in own
    ]
    return merged


def _document(
    rooms: Rooms,
    record: ContainerRecord,
    config: Mapping[str, Any],
    made: Digest | None,
    author: str,
    comment: str,
) -> bytes:
    now = time.time_ns()
    host = Platform.host(os.uname().machine)
    try:
        image: ImageConfig | None = rooms.images.config(Digest(record.image_id))
    except Fault:
        image = None  # untagged and removed by force: its layers are still the container's
    history = list(image.raw.get("history") or ()) if image is not None else []
    created_by = " ".join(record.config["Cmd"] or ())
    return image_document(
        config=config,
        layers=[*record.diff_ids, *([made] if made is not None else [])],
        history=[
            *history,
            history_entry(now, created_by=created_by, author=author, comment=comment, empty=made is None),
        ],
        created_ns=now,
        architecture=image.architecture if image is not None else host.architecture,
        os=image.os if image is not None else host.os,
        variant=image.variant if image is not None else "",
        author=author,
        comment=comment,
        further={
            "container": record.id,
            "container_config": shown(record.config),
            "docker_version": ENGINE_VERSION,
        },
    )
