"""The export journey: a container's root as one plain tar, without what is mounted in it.

Source: Engine API 1.50, ContainerExport.
"""

from __future__ import annotations

from ketchd.containers.supervisor import Box
from ketchd.engine.copies import root_of
from ketchd.engine.rooms import Rooms
from ketchd.engine.tarjobs import TarJob


async def export(rooms: Rooms, box: Box) -> TarJob:
    """The tar, to be entered: then its root could be opened. A running container's is taken from its live root.

    Raises Conflict while it is being removed.
    """
    root = await root_of(rooms, box.record, mounts=False)
    return TarJob(rooms.workers, "ketchd.containers.copyjobs:pack_root", {"root": root}, speaks_first=True)
