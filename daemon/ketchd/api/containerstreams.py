"""What a container says, said and is told: logs, attach, attach over a websocket. Source: Engine API 1.50, tag Container."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from ketch_wire.faults import Fault, InvalidInput, Unsupported
from ketchd.api.faultmap import stream_refusal
from ketchd.api.routing import Call, Route
from ketchd.api.streams import hijack
from ketchd.api.websocket import carry
from ketchd.containers import logdrivers
from ketchd.containers.detach import detach_keys
from ketchd.containers.lifecycle import Happening
from ketchd.containers.logformat import LogFormat, stamp
from ketchd.containers.logs import LogQuery, LogReader
from ketchd.containers.shims import ClientStream
from ketchd.containers.supervisor import Box
from ketchd.engine.rooms import Rooms
from ketchd.model.times import parse_timestamp


class ContainerStreamApi:
    """Handlers over a container's streams."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        one = "/containers/{name:.+}"
        return [
            Route("GET", f"{one}/logs", self.logs),
            Route("POST", f"{one}/attach", self.attach, cancellable=True),
            Route("GET", f"{one}/attach/ws", self.attach_websocket),
        ]

    def _box(self, call: Call) -> Box:
        return self._rooms.supervisor.find(call.vars["name"])

    async def logs(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/logs"""
        stdout, stderr = call.query_bool("stdout"), call.query_bool("stderr")
        if not stdout and not stderr:
            raise InvalidInput("Bad parameters: you must choose at least one stream")
        box = self._box(call)
        self._check_readable(box)
        tail, now = call.query("tail", "all"), time.time_ns()
        tty = bool(box.record.config["Tty"])
        query = LogQuery(
            LogFormat(
                stdout=stdout,
                stderr=stderr,
                since=_moment(call.query("since"), now),
                until=_moment(call.query("until"), now),
                timestamps=call.query_bool("timestamps"),
                details=call.query_bool("details"),
                framed=not tty,
            ),
            follow=call.query_bool("follow"),
            tail=int(tail[:18]) if tail.isascii() and tail.isdigit() else None,
        )
        kind = "raw" if tty or call.version < (1, 42) else "multiplexed"
        response = web.StreamResponse(headers={"Content-Type": f"application/vnd.docker.{kind}-stream"})
        ended: asyncio.Future[int] | None = None
        if query.follow and box.record.has_process:
            ended = asyncio.get_running_loop().create_future()
            box.exit_waiters.append(ended)
        try:
            await response.prepare(call.request)
            reader = LogReader(self._rooms.log_path(box.record.id), query, ended)
            async for block in reader.blocks():
                await response.write(block)
            await response.write_eof()
        finally:
            if ended is not None and ended in box.exit_waiters:
                box.exit_waiters.remove(ended)
        return response

    @staticmethod
    def _check_readable(box: Box) -> None:
        if not logdrivers.is_readable(box.record.host_config):
            raise Unsupported("configured logging driver does not support reading")

    async def attach(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/attach: the client's socket goes to the shim. A refusal is text, in a stream's media type."""
        try:
            box = self._box(call)
            keys = self._prepare(call, box)
        except Fault as fault:
            return stream_refusal(fault)
        tty = bool(box.record.config["Tty"])
        client = await hijack(call, multiplexed=not tty)
        self._rooms.supervisor.announce(box, "attach")
        if call.query_bool("logs"):
            async for block in self._history(call, box, framed=not tty).blocks():
                await client.send(block)
        if not call.query_bool("stream"):
            client.close()
            return client.response
        await self._hand_over(box, self._stream(call, box, client.detach(), keys, client.initial, not tty))
        return client.response

    async def attach_websocket(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/attach/ws: raw bytes in binary messages, both ways."""
        box = self._box(call)
        keys = self._prepare(call, box)
        response = web.WebSocketResponse(autoping=True, max_msg_size=1 << 20)
        if not response.can_prepare(call.request):
            raise InvalidInput("a websocket is expected: send Upgrade: websocket with its key and version")
        await response.prepare(call.request)
        self._rooms.supervisor.announce(box, "attach")
        if call.query_bool("logs"):
            async for block in self._history(call, box, framed=False).blocks():
                await response.send_bytes(block)
        if call.query_bool("stream"):
            async with carry(response) as fd:
                await self._hand_over(box, self._stream(call, box, fd, keys, b"", False))
        await response.close()
        return response

    @staticmethod
    def _prepare(call: Call, box: Box) -> bytes:
        """The detach keys, after every refusal that comes before the connection is taken."""
        box.ask(Happening.ASK_ATTACH)
        if call.query_bool("logs"):
            ContainerStreamApi._check_readable(box)
        keys = detach_keys(call.query("detachKeys", ""))
        return keys if box.record.config["Tty"] and call.query_bool("stdin") else b""

    def _history(self, call: Call, box: Box, *, framed: bool) -> LogReader:
        chosen = LogFormat(stdout=call.query_bool("stdout"), stderr=call.query_bool("stderr"), framed=framed)
        return LogReader(self._rooms.log_path(box.record.id), LogQuery(chosen), None)

    @staticmethod
    def _stream(
        call: Call, box: Box, fd: int, keys: bytes, initial: bytes, multiplexed: bool
    ) -> ClientStream:
        return ClientStream(
            fd=fd,
            stdin=call.query_bool("stdin") and bool(box.record.config["OpenStdin"]),
            stdout=call.query_bool("stdout"),
            stderr=call.query_bool("stderr"),
            multiplexed=multiplexed,
            detach_keys=keys,
            initial=initial,
        )

    @staticmethod
    async def _hand_over(box: Box, stream: ClientStream) -> None:
        """To the shim, or to the one that the next start makes."""
        if box.link is not None:
            await box.link.attach(stream)
        else:
            box.wait_for_start(stream)


def _moment(text: str, now_ns: int) -> bytes:
    return stamp(parse_timestamp(text, now_ns)) if text and text != "0" else b""
