"""The system endpoints, and the honest answers of an engine without swarm and plugins. Source: Engine API 1.50, tag System."""

from __future__ import annotations

from aiohttp import web

from ketch_wire.defaults import API_VERSION
from ketch_wire.faults import InvalidInput, NotFound, Unavailable, Unsupported
from ketchd.api.routing import Call, Route, json_reply
from ketchd.engine.diskusage import disk_usage
from ketchd.engine.information import Facts, information, version_document
from ketchd.engine.rooms import Rooms

_NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try '
    "again."
)
_DF_TYPES = frozenset({"container", "image", "volume", "build-cache"})


class SystemApi:
    """Handlers that are about the engine itself."""

    def __init__(self, rooms: Rooms, facts: Facts) -> None:
        self._rooms = rooms
        self._facts = facts

    def routes(self) -> list[Route]:
        """Every route of this module."""
        swarm = [
            Route(method, pattern, self.no_swarm)
            for method, pattern in (
                ("GET", "/swarm"), ("GET", "/swarm/unlockkey"), ("GET", "/nodes"), ("GET", "/services"), ("GET", "/tasks"),
                ("GET", "/secrets"), ("GET", "/configs"), ("GET", "/nodes/{id:.+}"), ("GET", "/services/{id:.+}"),
                ("GET", "/tasks/{id:.+}"), ("GET", "/secrets/{id:.+}"), ("GET", "/configs/{id:.+}"),
                ("POST", "/swarm/{what:.+}"), ("POST", "/services/{what:.+}"), ("POST", "/secrets/{what:.+}"),
                ("POST", "/configs/{what:.+}"), ("POST", "/nodes/{what:.+}"), ("DELETE", "/nodes/{id:.+}"),
                ("DELETE", "/services/{id:.+}"), ("DELETE", "/secrets/{id:.+}"), ("DELETE", "/configs/{id:.+}"),
            )
        ]  # fmt: skip
        return [
            Route("GET", "/_ping", self.ping),
            Route("HEAD", "/_ping", self.ping),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/system/df", self.df),
            Route("GET", "/plugins", self.plugins),
            Route("GET", "/plugins/{name:.+}/json", self.plugin),
            Route("POST", "/plugins/{name:.+}", self.no_plugins),
            *swarm,
        ]

    async def ping(self, call: Call) -> web.StreamResponse:
        """GET, HEAD /_ping. Builder-Version 1: `POST /build` is the builder."""
        headers = {
            "Builder-Version": "1", "Swarm": "inactive", "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache", "Content-Type": "text/plain; charset=utf-8", "Api-Version": API_VERSION,
        }  # fmt: skip
        return web.Response(body=b"" if call.request.method == "HEAD" else b"OK", headers=headers)

    async def version(self, call: Call) -> web.StreamResponse:
        """GET /version"""
        return json_reply(version_document())

    async def info(self, call: Call) -> web.StreamResponse:
        """GET /info"""
        shown = information(self._rooms, self._facts)
        if call.version < (1, 25):
            shown["ExecutionDriver"] = "<not supported>"
        return json_reply(shown)

    async def df(self, call: Call) -> web.StreamResponse:
        """GET /system/df"""
        types = call.query_list("type")
        for kind in types:
            if kind not in _DF_TYPES:
                raise InvalidInput(f"unknown object type: {kind}")
        shown = await disk_usage(self._rooms, call.version)
        if types:
            keys = {
                "container": "Containers",
                "image": "Images",
                "volume": "Volumes",
                "build-cache": "BuildCache",
            }
            dropped = {key for kind, key in keys.items() if kind not in types}
            shown = {key: None if key in dropped else value for key, value in shown.items()}
        return json_reply(shown)

    async def plugins(self, call: Call) -> web.StreamResponse:
        """GET /plugins: there are none."""
        return json_reply([])

    async def plugin(self, call: Call) -> web.StreamResponse:
        """GET /plugins/{name}/json"""
        raise NotFound(f'plugin "{call.vars["name"]}" not found')

    async def no_plugins(self, call: Call) -> web.StreamResponse:
        """POST /plugins/…"""
        raise Unsupported("plugins are not supported")

    async def no_swarm(self, call: Call) -> web.StreamResponse:
        """Everything about swarm."""
        raise Unavailable(_NO_SWARM)
