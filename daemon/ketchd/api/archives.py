"""The file endpoints of containers: archive (cp), changes (diff), export, and commit. Source: Engine API 1.50, tags Container and Image."""

from __future__ import annotations

import base64
import json
from typing import Any

from aiohttp import web

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.api.routing import Call, Route, json_reply
from ketchd.api.streams import send_chunks
from ketchd.containers.shapes import pick
from ketchd.containers.supervisor import Box
from ketchd.engine import copies
from ketchd.engine.commit import commit
from ketchd.engine.diff import changes
from ketchd.engine.export import export
from ketchd.engine.images import parse_target
from ketchd.engine.rooms import Rooms

STAT_HEADER = "X-Docker-Container-Path-Stat"


class ArchiveApi:
    """Handlers over the copy, diff, export and commit journeys."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        one = "/containers/{name:.+}"
        return [
            Route("HEAD", f"{one}/archive", self.stat),
            Route("GET", f"{one}/archive", self.pack),
            Route("PUT", f"{one}/archive", self.extract, cancellable=True),
            Route("POST", f"{one}/copy", self.copy, cancellable=True),
            Route("GET", f"{one}/changes", self.changes),
            Route("GET", f"{one}/export", self.export),
            Route("POST", "/commit", self.commit),
        ]

    def _box(self, call: Call) -> Box:
        return self._rooms.supervisor.find(call.vars["name"])

    async def stat(self, call: Call) -> web.StreamResponse:
        """HEAD /containers/{id}/archive"""
        shown = await copies.stat_path(self._rooms, self._box(call), call.query("path"), call.vars["name"])
        return web.Response(status=200, headers={STAT_HEADER: _stat_header(shown)})

    async def pack(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/archive"""
        box = self._box(call)
        job = await copies.pack_path(self._rooms, box, call.query("path"), call.vars["name"])
        async with job:
            self._rooms.supervisor.announce(box, "archive-path")
            headers = {
                "Content-Type": "application/x-tar",
                STAT_HEADER: _stat_header(job.head["stat"]),
            }
            return await send_chunks(call, job.chunks(), headers)

    async def copy(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/copy, which `archive` replaced: `{"Resource": path}`, until API 1.23."""
        if call.version >= (1, 24):
            raise NotFound("page not found")
        path = pick(await call.json(), "Resource", "")
        if not path or not isinstance(path, str):
            raise InvalidInput("Path cannot be empty")
        box = self._box(call)
        job = await copies.pack_path(self._rooms, box, path, call.vars["name"])
        async with job:
            self._rooms.supervisor.announce(box, "copy")
            return await send_chunks(call, job.chunks(), {"Content-Type": "application/x-tar"})

    async def extract(self, call: Call) -> web.StreamResponse:
        """PUT /containers/{id}/archive"""
        await copies.extract(
            self._rooms,
            self._box(call),
            call.query("path"),
            call.request.content.iter_any(),
            call.vars["name"],
            no_overwrite=call.query_bool("noOverwriteDirNonDir"),
            copy_owner=call.query_bool("copyUIDGID"),
        )
        return web.Response(status=200)

    async def changes(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/changes"""
        return json_reply(await changes(self._rooms, self._box(call)) or None)

    async def export(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/export"""
        box = self._box(call)
        async with await export(self._rooms, box) as job:
            reply = await send_chunks(call, job.chunks(), {"Content-Type": "application/octet-stream"})
        self._rooms.supervisor.announce(box, "export")
        return reply

    async def commit(self, call: Call) -> web.StreamResponse:
        """POST /commit"""
        config, repository = await call.json(), call.query("repo")
        target = parse_target(repository, call.query("tag")) if repository else None
        image_id = await commit(
            self._rooms,
            self._rooms.supervisor.find(call.query("container")),
            config=config,
            changes=call.query_list("changes"),
            target=target,
            author=call.query("author"),
            comment=call.query("comment"),
            pause=call.query_bool("pause", default=True) or not call.query("pause"),
        )
        return json_reply({"Id": image_id.text}, 201)


def _stat_header(stat: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(stat, ensure_ascii=False, separators=(",", ":")).encode()).decode()
