"""The volume endpoints: parse, call the volumes, render. Source: Engine API 1.50, tag Volume."""

from __future__ import annotations

from aiohttp import web

from ketch_wire.faults import InvalidInput, Unavailable
from ketchd.api.routing import Call, Route, json_reply, no_content
from ketchd.containers.shapes import pick
from ketchd.engine.imagelist import check_keys, filter_bool, has_labels, name_patterns
from ketchd.engine.rooms import Rooms
from ketchd.engine.volumes import Volume

_LIST_FILTERS = frozenset({"dangling", "driver", "label", "name"})
_PRUNE_FILTERS = frozenset({"all", "label", "label!"})


class VolumeApi:
    """Handlers over the volumes."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        one = "/volumes/{name:.+}"
        return [
            Route("GET", "/volumes", self.list),
            Route("GET", "/volumes/", self.list),
            Route("POST", "/volumes/create", self.create),
            Route("POST", "/volumes/prune", self.prune),
            Route("GET", one, self.inspect),
            Route("PUT", one, self.update),
            Route("DELETE", one, self.remove),
        ]

    async def list(self, call: Call) -> web.StreamResponse:
        """GET /volumes"""
        filters = call.filters()
        check_keys(filters, _LIST_FILTERS)
        dangling = filter_bool(filters, "dangling")
        names = name_patterns(filters)
        shown = [
            volume.show()
            for volume in self._rooms.volumes.list()
            if (dangling is None or dangling is not bool(self._rooms.volumes.in_use(volume.name)))
            and (not filters.get("driver") or volume.driver in filters["driver"])
            and has_labels(volume.labels or {}, filters.get("label", []))
            and (not names or any(name.search(volume.name) for name in names))
        ]
        return json_reply({"Volumes": shown, "Warnings": None})

    async def create(self, call: Call) -> web.StreamResponse:
        """POST /volumes/create"""
        body = await call.json()
        if pick(body, "ClusterVolumeSpec"):
            raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")
        labels = pick(body, "Labels")
        volume = await self._rooms.volumes.create(
            str(pick(body, "Name", "")),
            driver=str(pick(body, "Driver", "") or "local"),
            options=_texts(pick(body, "DriverOpts", {}), "DriverOpts"),
            labels=None if labels is None else _texts(labels, "Labels"),
        )
        return json_reply(volume.show(), 201)

    async def inspect(self, call: Call) -> web.StreamResponse:
        """GET /volumes/{name}"""
        return json_reply(self._rooms.volumes.inspect(call.vars["name"]))

    async def update(self, call: Call) -> web.StreamResponse:
        """PUT /volumes/{name}: for cluster volumes alone."""
        raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")

    async def remove(self, call: Call) -> web.StreamResponse:
        """DELETE /volumes/{name}"""
        await self._rooms.volumes.remove(call.vars["name"], force=call.query_bool("force"))
        return no_content()

    async def prune(self, call: Call) -> web.StreamResponse:
        """POST /volumes/prune: from 1.42 on anonymous ones alone, unless all are asked for."""
        filters = call.filters()
        check_keys(filters, _PRUNE_FILTERS)
        everything = filter_bool(filters, "all") or call.version < (1, 42)

        def accept(volume: Volume) -> bool:
            labels = volume.labels or {}
            return (
                (everything or volume.anonymous)
                and has_labels(labels, filters.get("label", []))
                and not any(has_labels(labels, [unwanted]) for unwanted in filters.get("label!", []))
            )

        removed, won = await self._rooms.volumes.prune(accept)
        return json_reply({"VolumesDeleted": removed, "SpaceReclaimed": won})


def _texts(sent: object, key: str) -> dict[str, str]:
    if not isinstance(sent, dict) or not all(isinstance(value, str) for value in sent.values()):
        raise InvalidInput(f"invalid JSON: {key} has to be a map of strings")
    return dict(sent)
