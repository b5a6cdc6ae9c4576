"""The container endpoints: parse, call one journey, render. Source: Engine API 1.50, tag Container."""

from __future__ import annotations

import asyncio
import json
import time

from aiohttp import web

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.api.containerlist import sizes
from ketchd.api.routing import Call, Route, json_reply, no_content
from ketchd.api.streams import hijack
from ketchd.api.usage import answer_when_healthy
from ketchd.containers import show
from ketchd.containers.detach import detach_keys
from ketchd.containers.lifecycle import Happening
from ketchd.containers.logs import LogLine, LogQuery, LogReader
from ketchd.containers.settings import check_name
from ketchd.containers.shims import ClientStream
from ketchd.containers.supervisor import Box
from ketchd.engine import networks as networking
from ketchd.engine import remove as removing
from ketchd.engine import stop as stopping
from ketchd.engine.create import create
from ketchd.engine.rooms import Rooms
from ketchd.engine.start import start
from ketchd.model.times import parse_timestamp


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
            Route("GET", f"{one}/logs", self.logs),
            Route("POST", f"{one}/start", self.start),
            Route("POST", f"{one}/stop", self.stop),
            Route("POST", f"{one}/restart", self.restart),
            Route("POST", f"{one}/kill", self.kill),
            Route("POST", f"{one}/pause", self.pause),
            Route("POST", f"{one}/unpause", self.unpause),
            Route("POST", f"{one}/rename", self.rename),
            Route("POST", f"{one}/resize", self.resize),
            Route("POST", f"{one}/wait", self.wait, cancellable=True),
            Route("POST", f"{one}/attach", self.attach, cancellable=True),
            Route("DELETE", one, self.remove),
        ]

    def _box(self, call: Call) -> Box:
        return self._rooms.supervisor.find(call.vars["name"])

    async def create(self, call: Call) -> web.StreamResponse:
        """POST /containers/create"""
        body = await call.json()
        box, warnings = await create(
            self._rooms, body, name=call.query("name", ""), platform=call.query("platform", "")
        )
        return json_reply({"Id": box.record.id, "Warnings": warnings}, 201)

    async def start(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/start"""
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
        await stopping.kill(self._rooms, self._box(call), call.query("signal", ""))
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
        old = self._rooms.supervisor.rename(box, check_name(wanted))
        networking.rename(self._rooms, box.record)
        self._rooms.supervisor.announce(box, "rename", oldName="/" + old)
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
            raise InvalidInput("links of the default bridge are not supported")
        await removing.remove(
            self._rooms, self._box(call), force=call.query_bool("force"), volumes=call.query_bool("v")
        )
        return no_content()

    async def wait(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/wait: the waiter stands before the headers go out."""
        box = self._box(call)
        condition = call.query("condition", "") or "not-running"
        if condition == "healthy":
            return await answer_when_healthy(self._rooms, call, box)
        if condition not in ("not-running", "next-exit", "removed"):
            raise InvalidInput(f'invalid condition: "{condition}"')
        waiting = asyncio.ensure_future(self._rooms.supervisor.wait(box, condition))
        try:
            await asyncio.sleep(0)  # the waiter stands now
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(call.request)
            code = await waiting
            await response.write(json.dumps({"StatusCode": code}).encode() + b"\n")
            await response.write_eof()
            return response
        finally:
            waiting.cancel()

    async def attach(self, call: Call) -> web.StreamResponse:
        """POST /containers/{id}/attach: the client's socket goes to the shim."""
        box = self._box(call)
        box.ask(Happening.ASK_ATTACH)
        tty = bool(box.record.config["Tty"])
        keys = detach_keys(call.query("detachKeys", "")) if tty and call.query_bool("stdin") else b""
        history = b""
        if call.query_bool("logs"):
            history = await self._history(box, call.query_bool("stdout"), call.query_bool("stderr"), tty)
        client = await hijack(call, multiplexed=not tty)
        self._rooms.supervisor.announce(box, "attach")
        if history:
            await client.send(history)
        if not call.query_bool("stream"):
            client.close()
            return client.response
        stream = ClientStream(
            fd=client.detach(),
            stdin=call.query_bool("stdin") and bool(box.record.config["OpenStdin"]),
            stdout=call.query_bool("stdout"),
            stderr=call.query_bool("stderr"),
            multiplexed=not tty,
            detach_keys=keys,
            initial=client.initial,
        )
        if box.link is not None:
            await box.link.attach(stream)
        else:
            box.pending.append(stream)
        return client.response

    async def _history(self, box: Box, stdout: bool, stderr: bool, tty: bool) -> bytes:
        reader = LogReader(
            self._rooms.log_path(box.record.id),
            LogQuery(stdout, stderr),
            lambda: box.record.has_process,
            None,
        )
        parts = [frame(line, tty, False) async for batch in reader.batches() for line in batch]
        return b"".join(parts)

    async def logs(self, call: Call) -> web.StreamResponse:
        """GET /containers/{id}/logs"""
        box = self._box(call)
        stdout, stderr = call.query_bool("stdout"), call.query_bool("stderr")
        if not stdout and not stderr:
            raise InvalidInput("Bad parameters: you must choose at least one stream")
        if box.record.host_config["LogConfig"]["Type"] == "none":
            raise NotFound("configured logging driver does not support reading")
        tail = call.query("tail", "all")
        now = time.time_ns()
        query = LogQuery(
            stdout=stdout,
            stderr=stderr,
            follow=call.query_bool("follow"),
            tail=int(tail) if tail.isascii() and tail.isdigit() else None,
            since_ns=_moment(call.query("since", ""), now),
            until_ns=_moment(call.query("until", ""), now),
        )
        tty, timestamps = bool(box.record.config["Tty"]), call.query_bool("timestamps")
        details = " " if call.query_bool("details") else ""
        kind = "raw" if tty or call.version < (1, 42) else "multiplexed"
        response = web.StreamResponse(headers={"Content-Type": f"application/vnd.docker.{kind}-stream"})
        ended: asyncio.Future[int] | None = None
        if query.follow and box.record.has_process:
            ended = asyncio.get_running_loop().create_future()
            box.exit_waiters.append(ended)
        try:
            await response.prepare(call.request)
            reader = LogReader(
                self._rooms.log_path(box.record.id), query,
                lambda: ended is not None and not ended.done(), ended,
            )  # fmt: skip
            async for batch in reader.batches():
                await response.write(b"".join(frame(line, tty, timestamps, details) for line in batch))
            await response.write_eof()
        finally:
            if ended is not None and ended in box.exit_waiters:
                box.exit_waiters.remove(ended)
        return response

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
        if call.query_bool("size"):
            shown["SizeRw"], shown["SizeRootFs"] = await sizes(self._rooms, box)
        return json_reply(shown)


def frame(line: LogLine, tty: bool, timestamps: bool, details: str = "") -> bytes:
    """One entry as the logs stream carries it: framed unless the container has a tty."""
    text = line.text
    if details:
        text = details.encode() + text
    if timestamps:
        text = line.time.encode() + b" " + text
    if tty:
        return text
    return bytes((2 if line.stream == "stderr" else 1, 0, 0, 0)) + len(text).to_bytes(4, "big") + text


def _moment(text: str, now_ns: int) -> int:
    return parse_timestamp(text, now_ns) if text and text != "0" else 0


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
