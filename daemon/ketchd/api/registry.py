"""The registry endpoints: login, pull, push, search, inspection at a distance. Source: Engine API 1.50, tags Image, Distribution."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.api.images import platform
from ketchd.api.routing import Call, Route, json_reply
from ketchd.api.streams import JsonStream
from ketchd.engine.distribution import inspect_remote
from ketchd.engine.platforms import host_platform, read_platform
from ketchd.engine.pull import pull, pull_all_tags
from ketchd.engine.push import push
from ketchd.engine.rooms import Rooms
from ketchd.engine.search import DEFAULT_LIMIT, search
from ketchd.model.compression import Compression
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.errors import Refused
from ketchd.registry.tokens import Credentials


class RegistryApi:
    """Handlers over the registry journeys. `create` is the pull half of POST /images/create, which `ImageApi` routes."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        return [
            Route("POST", "/auth", self.login, cancellable=True),
            Route("GET", "/images/search", self.search),
            Route("POST", "/images/{name:.+}/push", self.push, cancellable=True),
            Route("GET", "/distribution/{name:.+}/json", self.distribution),
        ]

    async def login(self, call: Call) -> web.StreamResponse:
        """POST /auth"""
        credentials = Credentials.read(await call.json())
        try:
            token = await self._rooms.registry.login(credentials)
        except Refused as fault:
            raise EngineFailure(fault.message) from fault
        return json_reply({"IdentityToken": token, "Status": "Login Succeeded"})

    async def create(self, call: Call) -> web.StreamResponse:
        """POST /images/create?fromImage=, with of our own `allPlatforms=1`, everything that an index has, and `referrers=1`"""
        name, tag = call.query("fromImage"), call.query("tag")
        reference = _target(name, tag)
        credentials = Credentials.read(call.registry_auth())
        wanted, everything = _platform(call.query("platform")), call.query_bool("allPlatforms")
        journey = pull_all_tags if reference.is_name_only else pull
        async with JsonStream(call) as stream:
            await journey(
                self._rooms, reference, credentials, stream.send, platform=wanted, everything=everything,
                referrers=call.query_bool("referrers"),
            )  # fmt: skip
        return stream.response

    async def push(self, call: Call) -> web.StreamResponse:
        """POST /images/{name}/push

        Of our own: `allPlatforms=1`, the whole index or nothing; `referrers=1`; `compressionFormat`, `compressionLevel` and
        `forceCompressionFormat`, named as podman's API names them.
        """
        credentials = Credentials.read(await self._push_auth(call))
        reference = Reference.parse(call.vars["name"])
        if (tag := call.query("tag")) and reference.digest is None:
            reference = reference.with_tag(tag)
        wanted = read_platform(platform(call, (1, 46)))
        everything = call.query_bool("allPlatforms")
        if wanted is not None and everything:
            raise InvalidInput("conflicting options: platform and allPlatforms options cannot both be set")
        compression = self._compression(call)
        async with JsonStream(call) as stream:
            await push(
                self._rooms, reference, credentials, stream.send, platform=wanted, everything=everything,
                compression=compression, referrers=call.query_bool("referrers"),
            )  # fmt: skip
        return stream.response

    async def search(self, call: Call) -> web.StreamResponse:
        """GET /images/search"""
        limit = call.query_int("limit", DEFAULT_LIMIT)
        credentials = Credentials.read(call.registry_auth())
        return json_reply(await search(self._rooms, call.query("term"), limit, call.filters(), credentials))

    async def distribution(self, call: Call) -> web.StreamResponse:
        """GET /distribution/{name}/json"""
        reference = Reference.parse(call.vars["name"])
        credentials = Credentials.read(call.registry_auth())
        return json_reply(await inspect_remote(self._rooms, reference, credentials))

    def _compression(self, call: Call) -> Compression | None:
        """What this push asks for; None when it asks for nothing. Raises InvalidInput."""
        format, level = call.query("compressionFormat"), call.query("compressionLevel")
        force = call.query_bool("forceCompressionFormat") if call.query("forceCompressionFormat") else None
        if not (format or level or force is not None):
            return None
        wanted = call.query_int("compressionLevel", 0) if level else None
        return self._rooms.compression.asked(format, wanted, force)

    async def _push_auth(self, call: Call) -> dict[str, Any]:
        """The header, else an AuthConfig as the body, which clients from before it send; neither is anonymous.

        docker-py sends neither when it has no credentials. Raises InvalidInput.
        """
        if call.request.headers.get("X-Registry-Auth") is not None:
            return call.registry_auth()
        try:
            return await call.json()
        except InvalidInput as fault:
            raise InvalidInput(f"Bad parameters and missing X-Registry-Auth: {fault.message}") from fault


def _target(name: str, tag: str) -> Reference:
    """`fromImage` and `tag`, which may be a digest. Raises InvalidInput."""
    reference = Reference.parse(name.strip())
    if not tag:
        return reference
    if tag.startswith("sha256:"):
        return reference.with_digest(Digest(tag))
    return reference.with_tag(tag)


def _platform(text: str) -> Platform | None:
    return Platform.parse(text, host_platform()) if text else None
