"""The exec endpoints. Source: Engine API 1.50, tag Exec."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ketch_wire.faults import Conflict, EngineFailure, Fault, InvalidInput
from ketchd.api.routing import Call, Route, json_reply
from ketchd.api.streams import hijack
from ketchd.containers import fields
from ketchd.containers.detach import detach_keys
from ketchd.containers.lifecycle import Happening
from ketchd.containers.shims import ClientStream
from ketchd.engine.execs import create_exec, render_exec, start_exec
from ketchd.engine.rooms import Rooms

_SIZES_SINCE = (1, 42)  # an exec's ConsoleSize


class ExecApi:
    """Handlers over the exec journey."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        return [
            Route("POST", "/containers/{name:.+}/exec", self.create),
            Route("POST", "/exec/{id:.+}/start", self.start),
            Route("POST", "/exec/{id:.+}/resize", self.resize),
            Route("GET", "/exec/{id:.+}/json", self.inspect),
        ]

    async def create(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/exec"""
        body = await call.json()
        if call.version < _SIZES_SINCE:
            body = {key: value for key, value in body.items() if key.lower() != "consolesize"}
        record = create_exec(self._rooms, self._rooms.supervisor.find(call.vars["name"]), body)
        return json_reply({"Id": record.id}, 201)

    async def start(self, call: Call) -> web.StreamResponse:
        """POST /exec/{id}/start: the client's socket goes to the shim."""
        body = fields.decode(await call.json(any_type=call.version < (1, 22)), fields.EXEC_START)
        box, record = self._rooms.supervisor.find_exec(call.vars["id"])
        settings = record.settings
        # Without Tty in this request its size means nothing: moby postContainerExecStart.
        asked = body.get("ConsoleSize") if body.get("Tty") and call.version >= _SIZES_SINCE else None
        size = asked or settings["ConsoleSize"] or [0, 0]
        console = (min(size[0], 65535), min(size[1], 65535))
        box.ask(Happening.ASK_EXEC)  # while it can be refused with a status
        if body.get("Detach"):
            await start_exec(self._rooms, box, record, None, console_size=console)
            return web.Response(status=200)
        if record.started:
            raise Conflict(f"exec command {record.id} has already run")
        stdin = bool(settings["AttachStdin"])
        keys = detach_keys(settings["DetachKeys"]) if settings["Tty"] and stdin else b""
        framed = not body.get(
            "Tty"
        )  # this request says how the client reads, whether or not the exec has a terminal
        client = await hijack(call, multiplexed=framed)
        stream = ClientStream(
            fd=client.duplicate(),
            stdin=stdin,
            stdout=bool(settings["AttachStdout"]),
            stderr=bool(settings["AttachStderr"]) and framed,
            multiplexed=framed,
            detach_keys=keys,
            initial=client.initial,
        )
        try:
            await start_exec(self._rooms, box, record, stream, console_size=console)
        except Fault as fault:
            text = fault.message.encode() + b"\r\n"
            await client.send(b"\x01\0\0\0" + len(text).to_bytes(4, "big") + text if framed else text)
        finally:
            stream.close()  # unless it was handed over
            client.close()
        return client.response

    async def resize(self, call: Call) -> web.StreamResponse:
        """POST /exec/{id}/resize"""
        try:
            height, width = int(call.query("h", "")), int(call.query("w", ""))
        except ValueError:
            raise InvalidInput("invalid resize height or width") from None
        box, record = self._rooms.supervisor.find_exec(call.vars["id"])
        deadline = asyncio.get_running_loop().time() + 10
        while not record.pid and not record.ended.is_set():
            if asyncio.get_running_loop().time() > deadline:
                raise EngineFailure("timeout waiting for exec session ready")
            await asyncio.sleep(0.02)
        if box.link is None or record.ended.is_set():
            raise Conflict(f"exec {record.id} is not running")
        await box.link.exec_resize(record.id, height, width)
        return web.Response(status=200)

    async def inspect(self, call: Call) -> web.StreamResponse:
        """GET /exec/{id}/json"""
        _, record = self._rooms.supervisor.find_exec(call.vars["id"])
        return json_reply(render_exec(record))
