"""Choosing among containers: the list with its filters, and prune. Source: Engine API 1.50, tag Container."""

from __future__ import annotations

import asyncio
import re
import time

from aiohttp import web

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.api.routing import Call, Route, json_reply
from ketchd.containers import show
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.engine import remove as removing
from ketchd.engine.rooms import Rooms
from ketchd.model.times import parse_timestamp

_FILTERS = frozenset(
    "ancestor before exited expose health id isolation is-task label name network publish since status volume".split()
)


class ContainerListApi:
    """Handlers over many containers."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        """Every route of this module."""
        return [
            Route("GET", "/containers/json", self.list),
            Route("POST", "/containers/prune", self.prune),
        ]

    async def list(self, call: Call) -> web.StreamResponse:
        """GET /containers/json"""
        filters = call.filters()
        for key in filters:
            if key not in _FILTERS:
                raise InvalidInput(f"invalid filter '{key}'")
        limit = call.query_int("limit", 0)
        everything = call.query_bool("all") or limit > 0 or "status" in filters
        boxes = sorted(self._rooms.supervisor, key=lambda box: box.record.created_ns, reverse=True)
        matches = Selection(self._rooms, filters)
        rows = []
        now, ids = time.time_ns(), self._rooms.networks.ids()
        for box in boxes:
            record = box.record
            if not everything and not record.is_running:
                continue
            if not matches(box):
                continue
            row = show.summary(record, now_ns=now, network_ids=ids, image_shown=self._image_shown(box))
            if call.query_bool("size"):
                row["SizeRw"], row["SizeRootFs"] = await sizes(self._rooms, box)
            rows.append(row)
            if limit > 0 and len(rows) == limit:
                break
        return json_reply(rows)

    def _image_shown(self, box: Box) -> str:
        try:
            still = str(self._rooms.images.resolve(box.record.image_name)) == box.record.image_id
        except (NotFound, InvalidInput):
            still = False
        return box.record.image_name if still else box.record.image_id

    async def prune(self, call: Call) -> web.StreamResponse:
        """POST /containers/prune"""
        filters = call.filters()
        for key in filters:
            if key not in ("label", "label!", "until"):
                raise InvalidInput(f"invalid filter '{key}'")
        now = time.time_ns()
        until = [parse_timestamp(text, now) for text in filters.get("until", [])]

        def accept(box: Box) -> bool:
            labels = box.record.config["Labels"] or {}
            return (
                all(has_label(labels, wanted) for wanted in filters.get("label", []))
                and not any(has_label(labels, unwanted) for unwanted in filters.get("label!", []))
                and all(box.record.created_ns < moment for moment in until)
            )

        removed, size = await removing.prune(self._rooms, accept)
        return json_reply({"ContainersDeleted": removed or None, "SpaceReclaimed": size})


async def sizes(rooms: Rooms, box: Box) -> tuple[int, int]:
    """Bytes that the container wrote, and those with its image's."""
    upper = rooms.container_dir(box.record.id) / "upper"
    written = await asyncio.to_thread(removing.tree_size, upper)
    below = sum(rooms.layers.record(diff_id).tar_size for diff_id in box.record.diff_ids)
    return written, written + below


def has_label(labels: dict[str, str], wanted: str) -> bool:
    """`k` present, or `k=v` equal."""
    key, sign, value = wanted.partition("=")
    return key in labels and (not sign or labels[key] == value)


class Selection:
    """The list's filters: labels AND, other keys' values OR. Raises InvalidInput for a value that cannot be."""

    def __init__(self, rooms: Rooms, filters: dict[str, list[str]]) -> None:
        self._rooms = rooms
        self._filters = filters
        allowed = {state.value for state in State if state is not State.STARTING}
        for status in filters.get("status", []):
            if status not in allowed:
                raise InvalidInput(f"invalid filter 'status={status}'")
        self._borders = {
            key: [rooms.supervisor.find(one).record.created_ns for one in filters.get(key, [])]
            for key in ("before", "since")
        }
        self._ancestors = set()
        for name in filters.get("ancestor", []):
            try:
                self._ancestors.add(str(rooms.images.resolve(name)))
            except (NotFound, InvalidInput):
                continue

    def __call__(self, box: Box) -> bool:
        record, filters = box.record, self._filters
        labels = record.config["Labels"] or {}
        tests = (
            ("id", lambda v: record.id.startswith(v)),
            ("name", lambda v: re.search(v, record.name) is not None or re.search(v, "/" + record.name) is not None),
            ("status", lambda v: record.shown_state.value == v),
            ("exited", lambda v: not record.is_running and record.finished_ns > 0 and str(box.exit_code()) == v),
            ("network", lambda v: any(v in (key, self._rooms.networks.ids().get(key)) for key in record.networking)),
            ("volume", lambda v: any(v in (m.get("name"), m["destination"]) for m in record.mounts)),
            ("expose", lambda v: _port(v) in (record.config["ExposedPorts"] or {})),
            ("publish", lambda v: any(_port(v) == f"{p['host_port']}/{p['proto']}" for p in record.published)),
            ("health", lambda v: v == (record.health or {"Status": "none"})["Status"]),
            ("is-task", lambda v: v.lower() in ("false", "0")),
            ("isolation", lambda v: v in ("", "default")),
        )  # fmt: skip
        if any(filters.get(key) and not any(test(value) for value in filters[key]) for key, test in tests):
            return False
        if not all(has_label(labels, wanted) for wanted in filters.get("label", [])):
            return False
        if "ancestor" in filters and record.image_id not in self._ancestors:
            return False
        if any(record.created_ns >= border for border in self._borders["before"]):
            return False
        return not any(record.created_ns <= border for border in self._borders["since"])


def _port(text: str) -> str:
    return text if "/" in text else f"{text}/tcp"
