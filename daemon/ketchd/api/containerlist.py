"""Choosing among containers: the list with its filters, and prune. Source: Engine API 1.50, tag Container."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping

from aiohttp import web

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.api.routing import Call, Route, json_reply
from ketchd.containers import show
from ketchd.containers.lifecycle import State
from ketchd.containers.record import ContainerRecord
from ketchd.containers.supervisor import Box
from ketchd.engine import links
from ketchd.engine import remove as removing
from ketchd.engine.imagelist import filter_bool, name_patterns
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.times import go_quote, parse_timestamp

_FILTERS = frozenset(
    "ancestor before exited expose health id isolation is-task label name network publish since status volume".split()
)
_HEALTH = frozenset(("none", "starting", "healthy", "unhealthy"))


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
        rows = []
        now, ids, linked = time.time_ns(), self._rooms.networks.ids(), links.names(self._rooms)
        matches = Selection(self._rooms, filters, linked)
        for box in boxes:
            record = box.record
            if not everything and not record.is_running:
                continue
            if not matches(box):
                continue
            row = show.summary(record, now_ns=now, network_ids=ids, image_shown=self._image_shown(box))
            row["Names"] += linked.get(record.id, ())
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
    below = sum(rooms.layers.record(diff_id).disk_size for diff_id in box.record.diff_ids)
    return written, written + below


def has_label(labels: dict[str, str], wanted: str) -> bool:
    """`k` present, or `k=v` equal."""
    key, sign, value = wanted.partition("=")
    return key in labels and (not sign or labels[key] == value)


class Selection:
    """The list's filters: labels AND, other keys' values OR. linked: see `links.names`. Raises InvalidInput for a value that cannot be."""

    def __init__(self, rooms: Rooms, filters: dict[str, list[str]], linked: Mapping[str, list[str]]) -> None:
        self._rooms = rooms
        self._linked = linked
        self._filters = filters
        self._names = name_patterns(filters)
        self._ports = [
            (key, _ports(key, value)) for key in ("publish", "expose") for value in filters.get(key, [])
        ]
        filter_bool(filters, "is-task")
        for code in filters.get("exited", []):
            if not re.fullmatch(r"[+-]?[0-9]+", code):
                raise InvalidInput(f"strconv.Atoi: parsing {go_quote(code[:60])}: invalid syntax")
        for status in filters.get("health", []):
            if status not in _HEALTH:
                raise InvalidInput(f"unrecognised filter value for health: {status[:60]}")
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
                self._ancestors |= {str(one) for one in _with_descendants(rooms, rooms.images.resolve(name))}
            except (NotFound, InvalidInput):
                continue

    def __call__(self, box: Box) -> bool:
        record, filters = box.record, self._filters
        labels = record.config["Labels"] or {}
        tests = (
            ("id", lambda v: record.id.startswith(v)),
            ("status", lambda v: record.shown_state.value == v),
            ("exited", lambda v: not record.is_running and record.finished_ns > 0 and box.exit_code() == int(v)),
            ("network", lambda v: any(v in (key, self._rooms.networks.ids().get(key)) for key in record.networking)),
            ("volume", lambda v: any(v in (m.get("name") or m.get("source"), m["destination"]) for m in record.mounts)),
            ("health", lambda v: v == (record.health or {"Status": "none"})["Status"]),
            ("is-task", lambda v: v.lower() in ("false", "0")),
            ("isolation", lambda v: v in ("", "default")),
        )  # fmt: skip
        if any(filters.get(key) and not any(test(value) for value in filters[key]) for key, test in tests):
            return False
        if self._names and not any(
            one.search(shown)
            for one in self._names
            for shown in (record.name, f"/{record.name}", *self._linked.get(record.id, ()))
        ):
            return False
        if self._ports and not self._has_port(record):
            return False
        if not all(has_label(labels, wanted) for wanted in filters.get("label", [])):
            return False
        if "ancestor" in filters and record.image_id not in self._ancestors:
            return False
        if any(record.created_ns >= border for border in self._borders["before"]):
            return False
        return not any(record.created_ns <= border for border in self._borders["since"])

    def _has_port(self, record: ContainerRecord) -> bool:
        """Whether it runs and publishes or exposes one that is asked for; dockerd looks at the ports that a list shows."""
        ports = show.port_map(record)
        theirs = {
            "expose": {_split(key) for key in ports},
            "publish": {
                (int(one["HostPort"]), _split(key)[1]) for key, many in ports.items() for one in many or ()
            },
        }
        return any((port, proto) in theirs[key] for key, (span, proto) in self._ports for port in span)


def _with_descendants(rooms: Rooms, image_id: Digest) -> set[Digest]:
    """The image, what was built here on it, and so on."""
    found, ahead = {image_id}, [image_id]
    while ahead:
        fresh = [child for child in rooms.images.children(ahead.pop()) if child not in found]
        found.update(fresh)
        ahead += fresh
    return found


def _split(port: str) -> tuple[int, str]:
    number, _, proto = port.partition("/")
    return int(number), proto


def _ports(key: str, text: str) -> tuple[range, str]:
    """`80`, `80/udp`, `80-90/tcp`: its ports and protocol. Raises InvalidInput."""
    if ":" in text:
        raise InvalidInput(f"filter for '{key}' should not contain ':': {text[:60]}")
    numbers, _, proto = text.partition("/")
    first, _, last = numbers.partition("-")
    for number in (first, last or first):
        if not (number.isascii() and number.isdigit()):
            raise InvalidInput(
                f"error while looking up for {key} {text[:60]}: strconv.ParseUint: parsing {go_quote(number[:60])}: invalid syntax"
            )
    low, high = int(first), int(last or first)
    if not low <= high < 65536:
        raise InvalidInput(
            f"error while looking up for {key} {text[:60]}: invalid range specified for port: {numbers[:60]}"
        )
    return range(low, high + 1), (proto or "tcp").lower()
