"""Keeping the disk from filling: looked at now and then, and when a user asks. `content.pressure` decides, this does.

Every deletion is logged with its reason. Nothing goes that a lease holds, nor a compressed layer without which a whole index
could not be pushed as it came and that no registry is known to have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

from ketch_wire.faults import Fault
from ketchd import tracepoint
from ketchd.build.cache import MOUNT
from ketchd.content.cleanmark import CleanMark
from ketchd.content.pressure import Candidate, Class, Deletion, Disk, Policy, decide
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest

tracepoint.declare("gc.deleted")

_BLOBS = """
SELECT digest, blobs.size, last_used_ns, EXISTS (SELECT 1 FROM blob_sources WHERE blob_sources.digest = blobs.digest) AS sourced
FROM blobs WHERE digest IN (SELECT digest FROM layer_blobs JOIN layers USING (diff_id))
AND digest NOT IN (SELECT part FROM document_parts) AND digest NOT IN (SELECT key FROM lease_items WHERE kind = 'blob')
AND (sourced OR digest NOT IN (
    SELECT layer_blobs.digest FROM layer_blobs JOIN image_layers USING (diff_id) JOIN manifests USING (image_id)
    JOIN document_parts ON part = manifests.digest))
"""


async def collect(
    rooms: Rooms, policy: Policy, *, dry_run: bool = False, asked: bool = True, disk: Disk | None = None
) -> list[Deletion]:
    """Delete what the policy says; returns what is gone, or with dry_run what would be.

    disk: as it is, unless told otherwise. Cancelled: what is gone is gone, the rest stays for the next time.
    """
    if disk is None:
        await rooms.trash.emptied()  # what is thrown away already still takes room
        disk = disk_of(rooms)
    now = time.time_ns()
    deletions = decide(policy, disk, _candidates(rooms), _used(rooms), now, asked=asked)
    if dry_run:
        return deletions
    done = []
    for deletion in deletions:
        if await _delete(rooms, deletion.candidate):
            one = deletion.candidate
            rooms.log.info("deleted", kind=one.kind, key=one.key, bytes=one.size, reason=deletion.reason)
            done.append(deletion)
            tracepoint.reach("gc.deleted")
    return done


def disk_of(rooms: Rooms) -> Disk:
    """The data root's file system, as an unprivileged user could fill it."""
    facts = os.statvfs(rooms.data_root)
    return Disk(facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize)


def show(deletions: list[Deletion], disk: Disk, *, dry_run: bool) -> dict[str, Any]:
    """As POST /ketch/gc answers."""
    return {
        "Deleted": [
            {"Kind": one.candidate.kind, "Key": one.candidate.key, "Size": one.candidate.size, "Reason": one.reason}
            for one in deletions
        ],
        "SpaceReclaimed": sum(one.candidate.size for one in deletions),
        "DryRun": dry_run,
        "DiskTotal": disk.total,
        "DiskFree": disk.free,
    }  # fmt: skip


def _candidates(rooms: Rooms) -> dict[Class, list[Candidate]]:
    query = rooms.catalogue.query
    garbage = rooms.garbage.find()
    ages = dict[str, int]()
    for table, column in (("layers", "diff_id"), ("blobs", "digest")):
        ages |= {row[0]: row[1] for row in query(f"SELECT {column}, last_used_ns FROM {table}")}
    dead = {item.key for item in garbage}
    held = {key for kind, key in rooms.leases.held() if kind == "layer"}
    return {
        "garbage": [Candidate(item.kind, item.key, item.size, ages.get(item.key, 0)) for item in garbage],
        "partial": [
            Candidate("partial", one.digest.text, one.size, one.last_used_ns)
            for one in rooms.transfers.left_over()
        ],
        # What a registry is known to have goes first: it can come again as it was.
        "blob": [
            Candidate("blob", row[0], row[1], row[2], rank=0 if row["sourced"] else 1)
            for row in query(_BLOBS)
            if row[0] not in dead
        ],
        "cache": [
            Candidate("cache", row.key, row.size, row.last_used_ns)
            for row in rooms.cache.rows()
            if not row.is_shared and row.diff_id not in held and not rooms.cache.is_mount_used(row.key)
        ],
    }


def _used(rooms: Rooms) -> dict[Class, int]:
    blobs = rooms.catalogue.query(
        "SELECT coalesce(sum(size), 0) FROM blobs WHERE digest IN (SELECT digest FROM layer_blobs JOIN layers USING (diff_id))"
    )
    return {
        "partial": sum(one.size for one in rooms.transfers.left_over()),
        "blob": int(blobs[0][0]),
        "cache": sum(row.size for row in rooms.cache.rows() if not row.is_shared),
    }


async def _delete(rooms: Rooms, one: Candidate) -> bool:
    """Whether it is gone: meanwhile somebody may have come to need it."""
    if one.kind == "cache":
        rows = [row for row in rooms.cache.rows() if row.key == one.key]
        gone = rooms.cache.forget(rows, everything=False)
        for row in gone:
            if row.kind == MOUNT:
                rooms.trash.take(rooms.cache.mount_path(row.key))
        await rooms.garbage.sweep([("layer", row.diff_id) for row in gone if row.diff_id is not None])
        return bool(gone)
    if one.kind == "partial":
        return rooms.transfers.forget(Digest(one.key))
    if one.kind == "blob" and not rooms.garbage.find([("blob", one.key)]):
        # Still its layer's form: the bytes go, what is known of it stays.
        if ("blob", one.key) in rooms.leases.held() or not rooms.blobs.has(Digest(one.key)):
            return False
        rooms.blobs.drop(Digest(one.key))
        return True
    return bool(await rooms.garbage.sweep([(one.kind, one.key)]))


class GarbageKeeper:
    """Looks at the disk while the daemon runs, and says meanwhile that it runs (`CleanMark`). `start`, then `close`.

    The policy is `rooms.gc_policy` as it is at each look.
    """

    def __init__(self, rooms: Rooms, mark: CleanMark) -> None:
        self._rooms = rooms
        self._mark = mark
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Once."""
        self._task = asyncio.create_task(self._run())

    def look(self) -> None:
        """Look now, and count the interval from then: the policy is another one."""
        self._hurry.set()

    async def close(self) -> None:
        """End; a deletion under way comes to its end or stays for the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            seconds = self._rooms.gc_policy.interval_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds or 60.0):
                    await self._hurry.wait()
            self._hurry.clear()
            with contextlib.suppress(OSError):
                self._mark.beat()
            policy = self._rooms.gc_policy
            if not policy.interval_seconds:
                continue
            try:
                await collect(self._rooms, policy, asked=False)
            except (Fault, OSError) as error:
                self._rooms.log.warning("the disk was not tidied", reason=str(error))
