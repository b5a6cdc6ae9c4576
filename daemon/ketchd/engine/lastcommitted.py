"""After an unclean end: what was committed last is read and hashed again, and mended as `fsck --repair` does.

A power cut can take what a disk only claimed to have written, and that is what came last. So not everything is checked (that is
`ketch system fsck`), but what was recorded within the last minutes before the end, the newest first, up to a limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import Fault
from ketchd.content.cleanmark import CleanMark, Unclean
from ketchd.engine.fsck import check_some
from ketchd.engine.rooms import Rooms

MINUTES = 5.0
LIMIT_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Recorded:
    """One blob or layer as the catalogue has it. size: bytes on disk."""

    kind: str
    key: str
    size: int
    created_ns: int


def choose(recorded: Iterable[Recorded], since_ns: int, limit_bytes: int) -> tuple[list[Recorded], int]:
    """What to check, the newest first, and how many younger than `since_ns` are left out for the limit. Pure.

    The newest is checked whatever its size.
    """
    young = sorted((one for one in recorded if one.created_ns >= since_ns), key=lambda one: -one.created_ns)
    chosen: list[Recorded] = []
    total = 0
    for one in young:
        if chosen and total + one.size > limit_bytes:
            break
        chosen.append(one)
        total += one.size
    return chosen, len(young) - len(chosen)


async def check_last_committed(
    rooms: Rooms, mark: CleanMark, unclean: Unclean, *, limit_bytes: int = LIMIT_BYTES
) -> None:
    """Check, mend, and log what was found. Cancelled: what is mended is mended, and the next start checks again."""
    query = rooms.catalogue.query
    recorded = [Recorded("blob", *row) for row in query("SELECT digest, size, created_ns FROM blobs")] + [
        Recorded("layer", *row) for row in query("SELECT diff_id, disk_size, created_ns FROM layers")
    ]
    since = int((unclean.seen_seconds - MINUTES * 60) * 1e9)
    chosen, left_out = choose(recorded, since, limit_bytes)
    if not chosen:
        mark.checked()
        return
    begun = time.monotonic()

    async def send(message: dict[str, Any]) -> None:
        """Progress is for nobody."""

    try:
        findings = await check_some(
            rooms, [one.key for one in chosen if one.kind == "blob"], [one.key for one in chosen if one.kind == "layer"], send
        )  # fmt: skip
    except (Fault, OSError) as error:
        rooms.log.warning(
            "what was stored last before the unclean end could not be checked", reason=str(error)
        )
        return
    mark.checked()
    for finding in findings:
        rooms.log.warning(
            "damaged by the unclean end", kind=finding.kind, key=finding.key, problem=finding.problem,
            repaired=finding.repaired or "no", reason=finding.reason, users=finding.users,
        )  # fmt: skip
    rooms.log.info(
        "the last daemon did not end cleanly: what it stored last is checked", checked=len(chosen), not_checked=left_out,
        bad=len(findings), seconds=round(time.monotonic() - begun, 1),
    )  # fmt: skip
