"""The container endpoints: parse, call one journey, render. Source: Engine API 1.50, tag Container."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from ketch_wire.faults import Conflict, Fault, InvalidInput
from ketchd.api import versions
from ketchd.api.containerlist import sizes
from ketchd.api.faultmap import JSON_TYPE
from ketchd.api.routing import Call, Route, json_reply, no_content
from ketchd.containers import show
from ketchd.containers.lifecycle import Happening
from ketchd.containers.signals import signal_number
from ketchd.containers.supervisor import Box
from ketchd.engine import links
from ketchd.engine import networks as networking
from ketchd.engine import remove as removing
from ketchd.engine import stop as stopping
from ketchd.engine.create import create
from ketchd.engine.health import wait_healthy
from ketchd.engine.rooms import Rooms
from ketchd.engine.start import start

_NO_OBJECT = 7  # bytes: a body that short says nothing, as dockerd reads it


class ContainerApi:
    """Handlers over the container journeys."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        base = "/containers"
        one = base + "/{name:.+}"
        return [
            Route("POST", f"{base}/create", self.create),
            Route("GET", f"{one}/json", self.inspect),
            Route("POST", f"{one}/start", self.start),
            Route("POST", f"{one}/stop", self.stop),
            Route("POST", f"{one}/restart", self.restart),
            Route("POST", f"{one}/kill", self.kill),
            Route("POST", f"{one}/pause", self.pause),
            Route("POST", f"{one}/unpause", self.unpause),
            Route("POST", f"{one}/rename", self.rename),
            Route("POST", f"{one}/resize", self.resize),
            Route("POST", f"{one}/wait", self.wait, cancellable=True),
            Route("DELETE", one, self.remove),
        ]

    def _box(self, call: Call) -> Box:
        return self._rooms.supervisor.find(call.vars["name"])

    async def create(self, call: Call) -> web.StreamResponse:
        """POST /containers/create"""
        body = versions.create_request(await call.json(), call.version, self._rooms.cgroups.version)
        box, warnings = await create(
            self._rooms, body, name=call.query("name", ""),
            platform=call.query("platform", "") if call.version >= (1, 41) else "",
        )  # fmt: skip
        return json_reply({"Id": box.record.id, "Warnings": warnings}, 201)

    async def start(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/start"""
        length = call.request.content_length
        if call.request.body_exists and (length is None or length > _NO_OBJECT):
            raise InvalidInput(
                "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"
            )
        await start(self._rooms, self._box(call))
        return no_content()

    async def stop(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/stop"""
        await stopping.stop(
            self._rooms, self._box(call), grace_seconds=_grace(call), stop_signal=call.query("signal", "")
        )
        return no_content()

    async def restart(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/restart"""
        await stopping.restart(
            self._rooms, self._box(call), grace_seconds=_grace(call), stop_signal=call.query("signal", "")
        )
        return no_content()

    async def kill(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/kill"""
        signal_name = call.query("signal", "")
        try:
            signal_number(signal_name or "KILL")
            await stopping.kill(self._rooms, self._box(call), signal_name)
        except Fault as fault:
            if isinstance(fault, Conflict) and call.version < (1, 20):
                return no_content()
            raise type(fault)(f"cannot kill container: {call.vars['name']}: {fault.message}") from fault
        return no_content()

    async def pause(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/pause"""
        await stopping.pause(self._rooms, self._box(call))
        return no_content()

    async def unpause(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/unpause"""
        await stopping.unpause(self._rooms, self._box(call))
        return no_content()

    async def rename(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/rename"""
        box = self._box(call)
        wanted = call.query("name", "")
        if not wanted:
            raise InvalidInput("Neither old nor new names may be empty")
        self._rooms.supervisor.rename(box, wanted)
        networking.rename(self._rooms, box.record)
        return no_content()

    async def resize(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/resize"""
        box = self._box(call)
        height, width = _size(call)
        box.ask(Happening.ASK_EXEC)
        if box.link is not None:
            await box.link.resize(height, width)
            self._rooms.supervisor.announce(box, "resize", height=str(height), width=str(width))
        return web.Response(status=200)

    async def remove(self, call: Call) -> web.StreamResponse:
        """DELETE /containers/{id}"""
        if call.query_bool("link"):
            links.remove(self._rooms, call.vars["name"])
            return no_content()
        await removing.remove(
            self._rooms, self._box(call), force=call.query_bool("force"), volumes=call.query_bool("v")
        )
        return no_content()

    async def wait(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/wait: the waiter stands before the headers go out."""
        box = self._box(call)
        condition = call.query("condition", "") or "not-running"
        if condition == "healthy":  # ours
            waiting = asyncio.ensure_future(wait_healthy(self._rooms, box))
        elif condition in ("not-running", "next-exit", "removed"):
            waiting = asyncio.ensure_future(self._rooms.supervisor.wait(box, condition))
        else:
            raise InvalidInput(f'invalid condition: "{condition}"')
        try:
            await asyncio.sleep(0)  # the waiter stands now
            if waiting.done():
                waiting.result()  # a refusal has a status of its own
            response = web.StreamResponse(headers={"Content-Type": JSON_TYPE})
            await response.prepare(call.request)
            code, reason = await waiting
            answer = {"StatusCode": code, **({"Error": {"Message": reason}} if reason else {})}
            await response.write(json.dumps(answer).encode() + b"\n")
            await response.write_eof()
            return response
        finally:
            waiting.cancel()

    async def inspect(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/json"""
        box = self._box(call)
        rooms, record = self._rooms, box.record
        shown = show.inspect(
            record,
            container_dir=str(rooms.container_dir(record.id)),
            driver="overlay2",
            network_ids=rooms.networks.ids(),
            exec_ids=[key for key, one in box.execs.items() if one.running],
        )
        shown["HostConfig"]["Links"] = links.shown(rooms, record)
        if call.version < (1, 45):
            show.add_short_id_to_aliases(shown)
        if call.query_bool("size"):
            shown["SizeRw"], shown["SizeRootFs"] = await sizes(self._rooms, box)
        return json_reply(versions.container(shown, record.config, call.version))


def _grace(call: Call) -> int | None:
    text = call.query("t", "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f'strconv.Atoi: parsing "{text}": invalid syntax') from None


def _size(call: Call) -> tuple[int, int]:
    try:
        height, width = int(call.query("h", "")), int(call.query("w", ""))
    except ValueError:
        raise InvalidInput("invalid resize height or width") from None
    if not 0 <= height < 65536 or not 0 <= width < 65536:
        raise InvalidInput("invalid resize height or width")
    return height, width
