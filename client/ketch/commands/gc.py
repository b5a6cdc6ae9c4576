"""`system gc`: what the engine deletes when the disk fills, now, each thing with its reason."""

from __future__ import annotations

from ketch.options import Command, Given
from ketch.quantities import human_size
from ketch.session import Session

GC = Command(
    "[OPTIONS]",
    """
-n, --dry-run  Show what would be deleted, and delete nothing
""",
    note="Images, containers and volumes are never deleted by it: see system prune.",
)


def gc(session: Session, given: Given) -> int:
    """Delete, or only show, what the engine's policy says."""
    told = session.engine.json("POST", "/ketch/gc", {"dryRun": given.on("dry-run")})
    for one in told.get("Deleted") or ():
        session.say(f"{one['Kind']} {one['Key']} {human_size(one['Size'])}: {one['Reason']}")
    total = told.get("DiskTotal") or 1
    free = told.get("DiskFree") or 0
    verb = "Would reclaim" if told.get("DryRun") else "Reclaimed"
    session.say(
        f"{verb} {human_size(told.get('SpaceReclaimed') or 0)}; {100 * free / total:.1f} % of the disk was free"
    )
    return 0


COMMANDS = {"system gc": (GC, gc)}
