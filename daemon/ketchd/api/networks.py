"""The network endpoints: parse, call one journey, render. Source: Engine API 1.50, tag Network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.api.routing import Call, Route, json_reply, no_content
from ketchd.containers import fields
from ketchd.engine import attaching
from ketchd.engine import networks as journeys
from ketchd.engine.imagelist import check_keys, filter_bool, has_labels, name_patterns
from ketchd.engine.rooms import Rooms
from ketchd.model.times import parse_timestamp, rfc3339
from ketchd.network.definition import Network, show

_LIST_FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
_PRUNE_FILTERS = frozenset({"label", "label!", "until"})
Filters = Mapping[str, Sequence[str]]


class NetworkApi:
    """Handlers over the network journeys."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        one = "/networks/{name:.+}"
        return [
            Route("GET", "/networks", self.list),
            Route("GET", "/networks/", self.list),
            Route("POST", "/networks/create", self.create),
            Route("POST", "/networks/prune", self.prune),
            Route("POST", f"{one}/connect", self.connect),
            Route("POST", f"{one}/disconnect", self.disconnect),
            Route("GET", one, self.inspect),
            Route("DELETE", one, self.remove),
        ]

    async def list(self, call: Call) -> web.StreamResponse:
        """GET /networks"""
        filters = call.filters()
        check_keys(filters, _LIST_FILTERS)
        accept = self._selection(filters)
        return json_reply([_shown(network) for network in self._rooms.networks if accept(network)])

    def _selection(self, filters: Filters) -> Callable[[Network], bool]:
        dangling = filter_bool(filters, "dangling")
        names = name_patterns(filters)
        for kind in filters.get("type", ()):
            if kind not in ("custom", "builtin"):
                raise InvalidInput(f"invalid filter: 'type'='{kind[:40]}'")

        def used(network: Network) -> bool:
            return network.is_predefined or bool(self._rooms.networks.endpoints(network.id))

        def accept(network: Network) -> bool:
            kind = "builtin" if network.is_predefined else "custom"
            return (
                (dangling is None or dangling is not used(network))
                and _any(filters, "driver", lambda value: network.driver == value)
                and _any(filters, "id", network.id.startswith)
                and _any(filters, "scope", lambda value: value == "local")
                and _any(filters, "type", lambda value: value == kind)
                and (not names or any(name.search(network.name) for name in names))
                and has_labels(network.labels, filters.get("label", ()))
            )

        return accept

    async def inspect(self, call: Call) -> web.StreamResponse:
        """GET /networks/{id}"""
        network = self._rooms.networks.find(call.vars["name"])
        return json_reply(_shown(network, journeys.containers(self._rooms, network)))

    async def create(self, call: Call) -> web.StreamResponse:
        """POST /networks/create"""
        made, warning = await journeys.create(self._rooms, await call.json())
        return json_reply({"Id": made.id, "Warning": warning}, 201)

    async def remove(self, call: Call) -> web.StreamResponse:
        """DELETE /networks/{id}"""
        await journeys.remove(self._rooms, self._rooms.networks.find(call.vars["name"]))
        return no_content()

    async def connect(self, call: Call) -> web.StreamResponse:
        """POST /networks/{id}/connect"""
        body = fields.decode(await call.json(), fields.CONNECT)
        network = self._rooms.networks.find(call.vars["name"])
        box = self._rooms.supervisor.find(body.get("Container", ""))
        await attaching.connect(self._rooms, network, box, body.get("EndpointConfig", {}))
        return web.Response(status=200)

    async def disconnect(self, call: Call) -> web.StreamResponse:
        """POST /networks/{id}/disconnect"""
        body = fields.decode(await call.json(), fields.DISCONNECT)
        name = body.get("Container", "")
        try:
            box = self._rooms.supervisor.find(name)
        except (NotFound, InvalidInput):
            if not body.get("Force"):
                raise
            # By force an endpoint of that name goes, whoever had it; here an endpoint goes with its container.
            self._rooms.networks.find(call.vars["name"])
            raise (
                NotFound(f"endpoint {name[:200]} not found") if name else InvalidInput("invalid name: ")
            ) from None
        await attaching.disconnect(self._rooms, self._rooms.networks.find(call.vars["name"]), box)
        return web.Response(status=200)

    async def prune(self, call: Call) -> web.StreamResponse:
        """POST /networks/prune"""
        filters = call.filters()
        check_keys(filters, _PRUNE_FILTERS)
        if len(filters.get("until", ())) > 1:
            raise InvalidInput("more than one until filter specified")
        now = time.time_ns()
        until = [parse_timestamp(text, now) for text in filters.get("until", ())]

        def accept(network: Network) -> bool:
            return (
                all(network.created_ns < moment for moment in until)
                and has_labels(network.labels, filters.get("label", ()))
                and not any(has_labels(network.labels, [unwanted]) for unwanted in filters.get("label!", ()))
            )

        removed = await journeys.prune(self._rooms, accept)
        return json_reply({"NetworksDeleted": removed or None})


def _any(filters: Filters, key: str, matches: Callable[[str], bool]) -> bool:
    values = filters.get(key)
    return not values or any(matches(value) for value in values)


def _shown(network: Network, containers: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Any]:
    return show(network, rfc3339(network.created_ns), containers)
