"""The store's own endpoints, which dockerd has nothing of: is it sound, and what may go."""

from __future__ import annotations

from aiohttp import web

from ketchd.api.routing import Call, Route, json_reply
from ketchd.api.streams import JsonStream
from ketchd.engine import gc
from ketchd.engine.fsck import fsck
from ketchd.engine.rooms import Rooms
from ketchd.registry.tokens import Credentials


class StoreApi:
    """Handlers over the store's journeys."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        return [
            Route("POST", "/ketch/fsck", self.fsck, cancellable=True),
            Route("POST", "/ketch/gc", self.gc),
        ]

    async def gc(self, call: Call) -> web.StreamResponse:
        """POST /ketch/gc?dryRun=1: what the policy deletes now, each thing with its reason; with dryRun nothing is deleted."""
        dry_run = call.query_bool("dryRun")
        await self._rooms.trash.emptied()  # what is thrown away already still takes room
        disk = gc.disk_of(self._rooms)
        deleted = await gc.collect(self._rooms, self._rooms.gc_policy, dry_run=dry_run, disk=disk)
        return json_reply(gc.show(deleted, disk, dry_run=dry_run))

    async def fsck(self, call: Call) -> web.StreamResponse:
        """POST /ketch/fsck?repair=1: a progress stream, one `aux` for each finding and one for the sum of them.

        X-Registry-Config: credentials for repairs, by registry host.
        """
        credentials = {
            host: Credentials.read(raw)
            for host, raw in call.registry_config().items()
            if isinstance(raw, dict)
        }
        async with JsonStream(call) as stream:
            await fsck(self._rooms, stream.send, repair=call.query_bool("repair"), credentials=credentials)
        return stream.response
