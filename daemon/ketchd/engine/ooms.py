"""What a shim hears of the kernel's OOM killer, on its way into the journal. Before the end: here; with the end: `ending`."""

from __future__ import annotations

from ketch_wire.faults import EngineFailure
from ketchd.containers.supervisor import Box
from ketchd.engine.rooms import Rooms


def tell(rooms: Rooms, box: Box) -> None:
    """Tell of what the shim has counted beyond what was told: several as one, if nobody listened when they came.

    The count goes to the disk with the event, so that no ketchd tells it again. Before its start is told, nothing is.
    State.OOMKilled waits for the end, as in dockerd.
    """
    link, record = box.link, box.record
    if link is None or link.ooms <= record.ooms:
        return
    before, record.ooms = record.ooms, link.ooms
    try:
        with rooms.catalogue.transaction():
            rooms.supervisor.save(record)
            rooms.supervisor.announce(box, "oom")
    except EngineFailure as fault:  # on a full disk: told with the next, or with the end
        record.ooms = before
        rooms.log.error("oom not recorded", container=record.id, reason=fault.message)
