"""The diff journey: what a container changed against its image. Source: Engine API 1.50, ContainerChanges."""

from __future__ import annotations

from typing import Any

from ketch_wire.faults import Conflict
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.engine.rooms import Rooms


async def changes(rooms: Rooms, box: Box) -> list[dict[str, Any]]:
    """[{Path, Kind}] by path; Kind 0 modified, 1 added, 2 deleted. Raises Conflict while it is being removed."""
    record = box.record
    if record.state in (State.REMOVING, State.DEAD):
        raise Conflict(f"container {record.id} is marked for removal")
    init = await rooms.layers.compose(record.diff_ids)
    layers = [{"kind": layer.kind, "path": layer.path} for layer in rooms.layers.mounts(record.diff_ids)]
    found = await rooms.workers.run(
        "ketchd.containers.changes:changes",
        {
            "layers": [{"kind": "directory", "path": str(init)}, *layers],
            "upper": str(rooms.container_dir(record.id) / "upper"),
        },
    )
    return [{"Path": path, "Kind": kind} for path, kind in found["changes"]]
