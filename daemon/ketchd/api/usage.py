"""The endpoints about a container's resources: stats, top, update. Source: Engine API 1.50, tag Container."""

from __future__ import annotations

import json
from contextlib import aclosing

from aiohttp import web

from ketch_wire.faults import InvalidInput
from ketchd.api import versions
from ketchd.api.faultmap import JSON_TYPE
from ketchd.api.routing import Call, Route, json_reply
from ketchd.containers.supervisor import Box
from ketchd.engine import usage
from ketchd.engine.rooms import Rooms
from ketchd.engine.update import update


class UsageApi:
    """Handlers over the usage and update journeys."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        one = "/containers/{name:.+}"
        return [
            Route("GET", f"{one}/stats", self.stats),
            Route("GET", f"{one}/top", self.top),
            Route("POST", f"{one}/update", self.update),
        ]

    def _box(self, call: Call) -> Box:
        return self._rooms.supervisor.find(call.vars["name"])

    async def stats(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/stats"""
        box = self._box(call)
        stream = call.query_bool("stream", True)
        one_shot = call.version >= (1, 41) and call.query_bool("one-shot")
        if stream and one_shot:
            raise InvalidInput("cannot have stream=true and one-shot=true")
        if not stream:
            now = await usage.once(self._rooms, box, one_shot=one_shot)
            return json_reply(versions.stats(now, call.version))
        response = web.StreamResponse(headers={"Content-Type": JSON_TYPE})
        await response.prepare(call.request)
        async with aclosing(usage.stream(self._rooms, box)) as objects:
            async for shown in objects:
                known = versions.stats(shown, call.version)
                await response.write(json.dumps(known, separators=(",", ":")).encode() + b"\n")
        await response.write_eof()
        return response

    async def top(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/top"""
        return json_reply(await usage.top(self._rooms, self._box(call), call.query("ps_args")))

    async def update(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/update"""
        sent = versions.update_request(await call.json(), call.version)
        return json_reply({"Warnings": await update(self._rooms, self._box(call), sent) or None})
