"""Every container that exists, live: its record, its shim, who waits for it. The catalogue is the truth on disk, this the truth in memory.

A Box's lock serialises its transitions (start, end, removal); nobody waits for a process while holding it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ketch_wire.faults import Conflict, Fault, InvalidInput, NotFound
from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal
from ketchd.containers.lifecycle import Happening, State, follow
from ketchd.containers.record import ContainerRecord
from ketchd.containers.settings import check_name
from ketchd.containers.shims import ClientStream, ShimLink

UNKNOWN_EXIT = 255  # what Docker prints for an end that nobody saw


class ExecRecord:
    """One exec of a container. In the catalogue, so that the next ketchd tells its end, until a while after that: Docker forgets it as well."""

    def __init__(self, exec_id: str, container_id: str, settings: dict[str, Any]) -> None:
        self.id = exec_id
        self.container_id = container_id
        self.settings = settings
        self.pid = 0
        self.exit_code: int | None = None
        self.running = False
        self.started = False
        self.ended = asyncio.Event()


class Box:
    """One live container."""

    def __init__(self, record: ContainerRecord) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.link: ShimLink | None = None
        self.pending: list[ClientStream] = []  # attached before the start
        self.execs: dict[str, ExecRecord] = {}
        self.exit_waiters: list[asyncio.Future[int]] = []
        self.remove_waiters: list[asyncio.Future[int]] = []
        self.restart_wait_seconds = 0.0
        self.restart_timer: asyncio.TimerHandle | None = None
        self.stays_down = False  # ketchd ends: what its restart policy wants is the next one's to do
        self.keepers = 0  # journeys under way that see to what follows the end: `--rm` is not for them
        self.stops: set[asyncio.Future[None]] = set()  # journeys under way whose `stop` is not told yet
        self.stops_asked = 0  # so often, and kills, in the life of this ketchd
        self.watch: asyncio.Task[None] | None = None
        self.log_grew = asyncio.Event()
        self.health_watch: asyncio.Task[None] | None = None
        self.health_reaction: asyncio.Task[None] | None = None
        self.health_waiters: list[asyncio.Future[int]] = []

    def wait_for_start(self, stream: ClientStream) -> None:
        """Keep a client for the next start. Those that have hung up since are let go."""
        self.pending = [one for one in self.pending if not one.has_hung_up()]
        self.pending.append(stream)

    def ask(self, happening: Happening) -> State:
        """The state that `happening` leads to. Raises the lifecycle's refusal."""
        record = self.record
        return follow(record.state, happening, container_id=record.id, name="/" + record.name)

    def exit_code(self) -> int:
        """The last exit code as the API prints it."""
        return UNKNOWN_EXIT if self.record.exit_code is None else self.record.exit_code

    def announce_exit(self) -> None:
        """Let go everybody who waited for this run's end."""
        waiters, self.exit_waiters = self.exit_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(self.exit_code())

    def announce_healthy(self) -> None:
        """Let go everybody who waited for a good probe."""
        waiters, self.health_waiters = self.health_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(0)

    def announce_removed(self) -> None:
        """Let go everybody who waited for the removal, whether it came or failed, and whoever waited for an end that comes no more.

        Source: moby state.go, Wait.
        """
        self.announce_exit()
        waiters, self.remove_waiters = self.remove_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(self.exit_code())


class Supervisor:
    """The boxes by id and name. `save` writes a record; look-ups follow Docker's rules."""

    def __init__(self, catalogue: Catalogue, events: EventJournal) -> None:
        self._catalogue = catalogue
        self._events = events
        self._boxes: dict[str, Box] = {}
        self._names: dict[str, str] = {}
        self.execs: dict[str, ExecRecord] = {}

    def load(self) -> list[Box]:
        """Read every record of the catalogue. Called once, before the door opens."""
        for row in self._catalogue.query("SELECT record FROM containers ORDER BY created_ns"):
            record = ContainerRecord.from_json(row["record"])
            self._boxes[record.id] = Box(record)
            self._names[record.name] = record.id
        for row in self._catalogue.query("SELECT * FROM execs"):
            one = ExecRecord(row["id"], row["container_id"], json.loads(row["settings"]))
            one.started, one.running = bool(row["started"]), bool(row["started"] and not row["ended_ns"])
            if row["ended_ns"]:
                one.exit_code = row["exit_code"]
                one.ended.set()
            self._boxes[one.container_id].execs[one.id] = self.execs[one.id] = one
        return list(self._boxes.values())

    def __iter__(self) -> Iterator[Box]:
        return iter(list(self._boxes.values()))

    def add(self, record: ContainerRecord) -> Box:
        """Record a new container. Raises Conflict when its name is taken."""
        self.check_free(record.name)
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO containers (id, name, image_id, created_ns, record) VALUES (?, ?, ?, ?, ?)",
                (record.id, record.name, record.image_id, record.created_ns, record.to_json()),
            )
        box = self._boxes[record.id] = Box(record)
        self._names[record.name] = record.id
        return box

    def drop(self, record: ContainerRecord) -> None:
        """Forget what `add` made, when the transaction around it did not come to its end. May be called for one never added."""
        if self._boxes.pop(record.id, None) is not None:
            self._names.pop(record.name, None)

    def check_free(self, name: str) -> None:
        """Raises Conflict when `name` is taken."""
        if (owner := self._names.get(name)) is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{owner}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )

    def is_free(self, name: str) -> bool:
        """Whether no container has `name`."""
        return name not in self._names

    def save(self, record: ContainerRecord) -> None:
        """Write `record`."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "UPDATE containers SET name = ?, record = ? WHERE id = ?",
                (record.name, record.to_json(), record.id),
            )

    @contextlib.contextmanager
    def changing(self, record: ContainerRecord) -> Iterator[ContainerRecord]:
        """A transaction that writes what the body makes of `record`. Raises EngineFailure; failed: it is as it was, in memory too."""
        before = {one.name: getattr(record, one.name) for one in dataclasses.fields(record)}
        try:
            with self._catalogue.transaction():
                yield record
                self.save(record)
        except BaseException:
            for name, value in before.items():
                setattr(record, name, value)
            raise

    def rename(self, box: Box, name: str) -> str:
        """Give `box` another name, and tell it; returns the old one. Raises Conflict, InvalidInput, EngineFailure: then it has the old one."""
        old = box.record.name
        if name.removeprefix("/") == old:
            raise InvalidInput("Renaming a container with the same name as its current name")
        try:
            name = check_name(name)
            self.check_free(name)
        except Fault as fault:
            raise type(fault)(f"Error when allocating new name: {fault.message}") from fault
        with self.changing(box.record) as record:
            record.name = name
            self.announce(box, "rename", oldName="/" + old)
        del self._names[old]
        self._names[name] = box.record.id
        return old

    def forget(self, box: Box) -> None:
        """Take the container out of the catalogue. Its directory must be gone or moved away."""
        record = box.record
        with self._catalogue.transaction() as connection:
            connection.execute("DELETE FROM containers WHERE id = ?", (record.id,))
        self._boxes.pop(record.id, None)
        self._names.pop(record.name, None)
        for exec_id in box.execs:
            self.execs.pop(exec_id, None)

    def get(self, container_id: str) -> Box | None:
        """By full id; None when it is gone."""
        return self._boxes.get(container_id)

    def find(self, reference: str) -> Box:
        """By full id, exact name, unique id prefix, or as another calls it by a link (`web/data`). Raises NotFound, InvalidInput."""
        if not reference:
            raise InvalidInput('invalid name or ID supplied: ""')
        if (box := self._boxes.get(reference)) is not None:
            return box
        name = reference.removeprefix("/")
        if (container_id := self._names.get(name)) is not None:
            return self._boxes[container_id]
        if (linked := self._linked(*name.split("/", 1))) is not None:
            return linked
        found = [box for key, box in self._boxes.items() if key.startswith(reference)]
        if len(found) > 1:
            raise InvalidInput(f"multiple IDs found with provided prefix: {reference}")
        if found:
            return found[0]
        raise NotFound(f"No such container: {reference[:200]}")

    def add_exec(self, box: Box, record: ExecRecord) -> None:
        """Record an exec that was made."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO execs (id, container_id, settings) VALUES (?, ?, ?)",
                (record.id, record.container_id, json.dumps(record.settings, separators=(",", ":"))),
            )
        box.execs[record.id] = self.execs[record.id] = record

    def save_exec_start(self, record: ExecRecord) -> None:
        """Record that it is being started."""
        with self._catalogue.transaction() as connection:
            connection.execute("UPDATE execs SET started = 1 WHERE id = ?", (record.id,))

    def save_exec_ends(self, records: Sequence[ExecRecord], kept_seconds: float) -> None:
        """Record their exit codes, and forget those that ended longer ago than `kept_seconds`."""
        now = time.time_ns()
        with self._catalogue.transaction() as connection:
            connection.executemany(
                "UPDATE execs SET exit_code = ?, ended_ns = ? WHERE id = ?",
                [(record.exit_code, now, record.id) for record in records],
            )
            connection.execute(
                "DELETE FROM execs WHERE ended_ns > 0 AND ended_ns <= ?", (now - int(kept_seconds * 1e9),)
            )

    def drop_execs(self, box: Box, records: Sequence[ExecRecord]) -> None:
        """Forget execs that are never to run. Raises EngineFailure."""
        if records:
            with self._catalogue.transaction() as connection:
                connection.executemany("DELETE FROM execs WHERE id = ?", [(record.id,) for record in records])
        for record in records:
            box.execs.pop(record.id, None)
            self.execs.pop(record.id, None)

    def _linked(self, parent: str, alias: str = "") -> Box | None:
        if not alias or (owner := self._names.get(parent)) is None:
            return None
        links = self._boxes[owner].record.links
        return next((self._boxes.get(one["id"]) for one in links if one["alias"] == alias), None)

    def find_exec(self, exec_id: str) -> tuple[Box, ExecRecord]:
        """An exec by its exact id. Raises NotFound."""
        record = self.execs.get(exec_id)
        box = self._boxes.get(record.container_id) if record is not None else None
        if record is None or box is None:
            raise NotFound(f"No such exec instance: {exec_id[:200]}")
        return box, record

    def users_of_image(self, image_id: str) -> list[ContainerRecord]:
        """Containers made from the image."""
        return [box.record for box in self._boxes.values() if box.record.image_id == image_id]

    def announce(self, box: Box, action: str, **attributes: str) -> None:
        """A container event: Docker's attributes (labels, image, name) and `attributes`."""
        record = box.record
        shared = {**(record.config["Labels"] or {}), "image": record.image_name, "name": record.name}
        self._events.append("container", action, record.id, {**shared, **attributes})

    async def wait(
        self, box: Box, condition: str, registered: Callable[[], Any] | None = None
    ) -> tuple[int, str]:
        """The exit code when `condition` (`not-running`, `next-exit`, `removed`) holds, and why it never will, or why the last start failed.

        `registered` is called once the waiter stands. Cancelled: the waiter is taken away. Source: Engine API, ContainerWait.
        """
        if (
            condition == "not-running"
            and not box.record.is_running
            and box.record.state is not State.STARTING
        ):
            return box.exit_code(), box.record.error
        waiters = box.remove_waiters if condition == "removed" else box.exit_waiters
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        if registered is not None:
            registered()
        try:
            code = await waiter
            return code, box.record.error if box.record.state is State.DEAD else ""
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
