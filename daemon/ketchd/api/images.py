"""The image endpoints: parse, call one journey, render. Source: Engine API 1.50, tag Image."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

from ketch_wire.faults import Fault, InvalidInput
from ketchd.api.routing import Call, Handler, Route, json_reply
from ketchd.api.streams import JsonStream, send_chunks
from ketchd.engine import imagelist, imageprune, images
from ketchd.engine.imports import download, import_image
from ketchd.engine.load import load
from ketchd.engine.platforms import read_platform
from ketchd.engine.rooms import Rooms
from ketchd.engine.save import saving


class ImageApi:
    """Handlers over the image journeys. pull: the handler of `images/create` when it has no `fromSrc`."""

    def __init__(self, rooms: Rooms, pull: Handler) -> None:
        self._rooms = rooms
        self._pull = pull

    def routes(self) -> list[Route]:
        """Every route of this module."""
        one = "/images/{name:.+}"
        return [
            Route("GET", "/images/json", self.list),
            Route("GET", "/images/get", self.save_many),
            Route("POST", "/images/load", self.load, cancellable=True),
            Route("POST", "/images/create", self.create, cancellable=True),
            Route("POST", "/images/prune", self.prune),
            Route("GET", f"{one}/json", self.inspect),
            Route("GET", f"{one}/history", self.history),
            Route("GET", f"{one}/get", self.save),
            Route("POST", f"{one}/tag", self.tag),
            Route("DELETE", one, self.delete),
        ]

    async def list(self, call: Call) -> web.StreamResponse:
        """GET /images/json"""
        filters = call.filters()
        if call.version < (1, 41) and (name := call.query("filter")):
            filters["reference"] = [*filters.get("reference", []), name]
        rows = imagelist.list_images(
            self._rooms,
            filters,
            call.version,
            everything=call.query_bool("all"),
            shared_size=call.version >= (1, 42) and call.query_bool("shared-size"),
            with_manifests=call.version >= (1, 47) and call.query_bool("manifests"),
        )
        return json_reply(rows)

    async def inspect(self, call: Call) -> web.StreamResponse:
        """GET /images/{name}/json"""
        wanted = read_platform(platform(call, (1, 49)))
        with_manifests = call.version >= (1, 48) and call.query_bool("manifests")
        if wanted and with_manifests:
            raise InvalidInput("conflicting options: manifests and platform options cannot both be set")
        return json_reply(
            imagelist.inspect_image(
                self._rooms, call.vars["name"], call.version, platform=wanted, with_manifests=with_manifests
            )
        )

    async def history(self, call: Call) -> web.StreamResponse:
        """GET /images/{name}/history"""
        wanted = read_platform(platform(call, (1, 48)))
        return json_reply(imagelist.image_history(self._rooms, call.vars["name"], wanted))

    async def tag(self, call: Call) -> web.StreamResponse:
        """POST /images/{name}/tag"""
        target = images.parse_target(call.query("repo"), call.query("tag"))
        images.tag_image(self._rooms, call.vars["name"], target)
        return web.Response(status=201)

    async def delete(self, call: Call) -> web.StreamResponse:
        """DELETE /images/{name}"""
        name = call.vars["name"]
        if not name.strip():
            raise InvalidInput("image name cannot be blank")
        if call.version >= (1, 50) and (texts := call.query_list("platforms")):
            wanted = [found for text in texts if (found := read_platform(_platform(text)))]
            report = await images.delete_platforms(self._rooms, name, wanted, force=call.query_bool("force"))
            return json_reply(report)
        report = await images.delete_image(
            self._rooms, name, force=call.query_bool("force"), prune_parents=not call.query_bool("noprune")
        )
        return json_reply(report)

    async def save(self, call: Call) -> web.StreamResponse:
        """GET /images/{name}/get"""
        return await self._save(call, [call.vars["name"]])

    async def save_many(self, call: Call) -> web.StreamResponse:
        """GET /images/get?names=a&names=b, with `allPlatforms=1` of our own: whole indexes"""
        return await self._save(call, call.query_list("names"))

    async def _save(self, call: Call, names: Sequence[str]) -> web.StreamResponse:
        wanted, everything = read_platform(platform(call, (1, 48))), call.query_bool("allPlatforms")
        if wanted is not None and everything:
            raise InvalidInput("conflicting options: platform and allPlatforms options cannot both be set")
        async with saving(self._rooms, names, wanted, everything=everything) as archive:
            return await send_chunks(call, archive, {"Content-Type": "application/x-tar"})

    async def load(self, call: Call) -> web.StreamResponse:
        """POST /images/load"""
        wanted = read_platform(platform(call, (1, 48)))
        async with JsonStream(call) as stream:
            try:
                await load(
                    self._rooms, call.request.content.iter_any(), quiet=call.query_bool("quiet", default=True),
                    platform=wanted, send=stream.send,
                )  # fmt: skip
            except Fault:
                await stream.open()  # clients of load look for its errors in the stream only
                raise
        return stream.response

    async def create(self, call: Call) -> web.StreamResponse:
        """POST /images/create: a pull, or with `fromSrc` an import"""
        source = call.query("fromSrc")
        if not source or call.query("fromImage"):
            return await self._pull(call)
        repository = call.query("repo")
        target = images.parse_target(repository, call.query("tag")) if repository else None
        async with JsonStream(call) as stream, AsyncExitStack() as stack:
            body: AsyncIterable[bytes] = call.request.content.iter_any()
            if source != "-":
                body = await stack.enter_async_context(download(source, stream.send))
            image_id = await import_image(
                self._rooms, body, source=source, target=target, message=call.query("message"),
                changes=call.query_list("changes"), platform=call.query("platform"),
            )  # fmt: skip
            await stream.send({"status": image_id.text})
        return stream.response

    async def prune(self, call: Call) -> web.StreamResponse:
        """POST /images/prune"""
        report, reclaimed = await imageprune.prune_images(self._rooms, call.filters())
        return json_reply({"ImagesDeleted": report or None, "SpaceReclaimed": reclaimed})


def platform(call: Call, since: tuple[int, int]) -> dict[str, Any]:
    """The `platform` parameter as an object, {} for none or for clients from before it. Raises InvalidInput."""
    return _platform(call.query("platform")) if call.version >= since else {}


def _platform(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        sent = json.loads(text)
    except (ValueError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise InvalidInput("failed to parse platform: an object with os and architecture is expected")
    return sent
