"""GET /events: what happened and what happens. Source: Engine API 1.50, SystemEvents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ketch_wire.faults import InvalidInput
from ketchd.api.faultmap import JSON_TYPE
from ketchd.api.routing import Call, Route
from ketchd.api.streams import message_bytes
from ketchd.catalogue.events import Event
from ketchd.engine.rooms import Rooms
from ketchd.model.reference import Reference
from ketchd.model.times import parse_timestamp

_FILTERS = frozenset(
    "type event container image label network volume daemon plugin scope node service secret config".split()
)


class EventsApi:
    """The event stream."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        return [Route("GET", "/events", self.events)]

    async def events(self, call: Call) -> web.StreamResponse:
        """GET /events: the kept events from `since`, then live ones until `until`. Only `until`: all kept ones, as in dockerd."""
        filters = call.filters()
        for key in filters:
            if key not in _FILTERS:
                raise InvalidInput(f"invalid filter '{key}'")
        now = time.time_ns()
        since, until = _moment(call.query("since"), now), _moment(call.query("until"), now)
        if since is not None and until is not None and since > until:
            raise InvalidInput(
                f"`since` time ({call.query('since')}) cannot be after `until` time ({call.query('until')})"
            )
        journal = self._rooms.events
        after, forgotten = journal.last(), False
        if since is not None:
            after, forgotten = journal.before(since)
        elif until is not None:
            after = journal.before(0)[0]
        response = web.StreamResponse(headers={"Content-Type": JSON_TYPE})
        if forgotten:
            # What was asked for is not all there any more: dockerd says nothing then.
            response.headers["Ketch-Events-From"] = str(journal.read(0, 1)[0].time_ns)
        border = None if until is None or until > now else journal.last()
        deadline = None if until is None else asyncio.get_running_loop().time() + max(0, until - now) / 1e9

        async def send(events: list[Event]) -> None:
            await self._send(
                response,
                [
                    one
                    for one in events
                    if one.time_ns >= (since or 0)
                    and (until is None or one.time_ns <= until)
                    and accepts(one, filters)
                ],
                call.version,
            )

        with journal.subscribe(after) as subscription:
            await response.prepare(call.request)
            while border is not None and subscription.after < border and (events := subscription.ready()):
                await send(events)
            try:
                async with asyncio.timeout_at(deadline):
                    while border is None and (events := await subscription.batch()):
                        await send(events)
            except TimeoutError:
                await send(subscription.ready())
        await response.write_eof()
        return response

    @staticmethod
    async def _send(response: web.StreamResponse, events: list[Event], version: tuple[int, int]) -> None:
        if events:
            lines = [message_bytes(render_event(one, version)).replace(b"\r\n", b"\n") for one in events]
            await response.write(b"".join(lines))


def accepts(event: Event, filters: Mapping[str, list[str]]) -> bool:
    """Whether an event passes the stream's filters: labels AND, values of one key OR."""
    attributes = event.attributes
    bare = event.action.partition(":")[0]
    for key, wanted in filters.items():
        if key == "type":
            passes = event.type in wanted
        elif key == "event":
            passes = event.action in wanted or bare in wanted
        elif key == "scope":
            passes = "local" in wanted
        elif key == "label":
            passes = all(_has_label(attributes, one) for one in wanted)
        elif key == "image":
            passes = _names_image(event, wanted)
        else:
            passes = _names(event, wanted)
        if not passes:
            return False
    return True


def _names(event: Event, wanted: list[str]) -> bool:
    """Whether one of `wanted` is how the actor's id or name begins. dockerd does not look at the actor's kind here: a filter for a
    container `web` shows an image `web/x` as well (moby's daemon/events/filter.go, fuzzyMatchName)."""
    name = event.attributes.get("name", "")
    return any(event.actor_id.startswith(one) or name.startswith(one) for one in wanted)


def _names_image(event: Event, wanted: list[str]) -> bool:
    names = {event.actor_id, event.attributes.get("name" if event.type == "image" else "image", "")}
    for name in list(names):
        try:
            names.add(Reference.parse(name).familiar_name())
        except InvalidInput:
            continue
    return any(one in names for one in wanted)


def _has_label(attributes: Mapping[str, str], wanted: str) -> bool:
    key, sign, value = wanted.partition("=")
    return key in attributes and (not sign or attributes[key] == value)


def render_event(event: Event, version: tuple[int, int]) -> dict[str, Any]:
    """As the stream carries it; the first keys are older than the actor and wanted by old clients."""
    shown: dict[str, Any] = {}
    if version < (1, 52) and event.type in ("container", "image"):
        shown = {"status": event.action, **({"id": event.actor_id} if event.actor_id else {})}
        if event.type == "container" and event.attributes.get("image"):
            shown["from"] = event.attributes["image"]
    return {
        **shown,
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor_id, "Attributes": event.attributes},
        "scope": "local",
        "time": event.time_ns // 1_000_000_000,
        "timeNano": event.time_ns,
    }


def _moment(text: str, now_ns: int) -> int | None:
    return parse_timestamp(text, now_ns) if text else None
