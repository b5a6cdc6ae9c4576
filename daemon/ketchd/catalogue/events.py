"""EventJournal: what happened, kept for a while and told to whoever listens."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ketchd.catalogue.database import Catalogue

# dockerd keeps 256, in memory. A client that comes back wants what it missed: a hundred containers whose health checks run
# every second make 300 events a second, which is seven minutes of them, and weeks of a usual host. About 45 MB on disk.
KEPT = 131_072
_TRIM_EVERY = 512
PAGE = 256


@dataclass(frozen=True, slots=True)
class Event:
    """One happening. seq: 1, 2, 3 … without a gap, for ever. type: `container`, `image`…; action: `start`, `exec_create: sh`….

    Time_ns since the epoch.
    """

    seq: int
    time_ns: int
    type: str
    action: str
    actor_id: str
    attributes: dict[str, str]


class Subscription:
    """The events after `after`, as an async iterator: first the kept ones, then those to come. A place in the journal, no queue:
    a reader may be as slow as it likes and costs no memory. One that is so slow that the journal has forgotten what comes next
    is ended: it must know that it has missed something.

    It ends after `close`. Use as a context manager, so that a dropped reader is forgotten.
    """

    def __init__(self, journal: EventJournal, after: int) -> None:
        self.after = after
        self._journal = journal
        self._page: list[Event] = []
        self._news = asyncio.Event()
        self._is_closed = False

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        event = await self.get()
        if event is None:
            raise StopAsyncIteration
        return event

    async def get(self) -> Event | None:
        """The next event; None at the end."""
        if not self._page:
            self._page = (await self.batch())[::-1]
        return self._page.pop() if self._page else None

    async def batch(self) -> list[Event]:
        """The next events, at least one and at most 256; [] at the end."""
        while True:
            self._news.clear()
            if found := self.ready():
                return found
            if self._is_closed:
                return []
            await self._news.wait()

    def ready(self) -> list[Event]:
        """The next events that are there already."""
        found = self._journal.read(self.after)
        if found and found[0].seq != self.after + 1:
            self.close()
            self.after = found[0].seq - 1
            return []
        if found:
            self.after = found[-1].seq
        return found

    def wake(self) -> None:
        """Called by the journal: there is something new."""
        self._news.set()

    def close(self) -> None:
        """End the iteration after what is there. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._journal.forget(self)
            self._news.set()


class EventJournal:
    """The events table and its listeners. The last 131072 events survive a restart, however ketchd ended.

    An event that belongs to a change of the catalogue is appended in the change's transaction: then neither is there without
    the other.
    """

    def __init__(self, catalogue: Catalogue, kept: int = KEPT) -> None:
        self._catalogue = catalogue
        self._kept = kept
        self._subscriptions: list[Subscription] = []

    def append(
        self, type: str, action: str, actor_id: str, attributes: Mapping[str, str] | None = None
    ) -> Event:
        """Record a happening and tell the listeners. Inside a transaction it is part of it."""
        time_ns = time.time_ns()
        values = dict(attributes or {})
        with self._catalogue.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO events (time_ns, type, action, actor_id, attributes) VALUES (?, ?, ?, ?, ?)",
                (
                    time_ns,
                    type,
                    action,
                    actor_id,
                    json.dumps(values, ensure_ascii=False, separators=(",", ":")),
                ),
            )
            seq = int(cursor.lastrowid or 0)
            if seq % min(_TRIM_EVERY, self._kept) == 0:
                connection.execute("DELETE FROM events WHERE seq <= ?", (seq - self._kept,))
        # They read in a later step of the loop: after the transaction that this may be a part of.
        for subscription in self._subscriptions:
            subscription.wake()
        return Event(seq, time_ns, type, action, actor_id, values)

    def read(self, after: int, limit: int = PAGE) -> list[Event]:
        """At most `limit` kept events after the sequence number `after`, oldest first."""
        rows = self._catalogue.query(
            "SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        return [_event(row) for row in rows]

    def last(self) -> int:
        """The sequence number of the newest event; 0 when there was none."""
        return int(self._catalogue.query("SELECT max(seq) FROM events")[0][0] or 0)

    def before(self, time_ns: int) -> tuple[int, bool]:
        """(the number after which the events since `time_ns` come, whether older ones of those are forgotten already)."""
        first = self._catalogue.query("SELECT seq, time_ns FROM events ORDER BY seq LIMIT 1")
        if not first:
            return 0, False
        forgotten = first[0]["seq"] > 1 and first[0]["time_ns"] > time_ns
        found = self._catalogue.query("SELECT min(seq) FROM events WHERE time_ns >= ?", (time_ns,))[0][0]
        return (self.last() if found is None else int(found) - 1), forgotten

    def since(self, time_ns: int, until_ns: int | None = None) -> list[Event]:
        """The kept events from `time_ns` to `until_ns`, both included, oldest first."""
        rows = self._catalogue.query(
            "SELECT * FROM events WHERE time_ns >= ? AND time_ns <= ? ORDER BY seq",
            (time_ns, (1 << 63) - 1 if until_ns is None else until_ns),
        )
        return [_event(row) for row in rows]

    def subscribe(self, after: int | None = None) -> Subscription:
        """Listen: from now on, or to everything after the sequence number `after`."""
        subscription = Subscription(self, self.last() if after is None else after)
        self._subscriptions.append(subscription)
        return subscription

    @property
    def listeners(self) -> int:
        """How many subscriptions are open."""
        return len(self._subscriptions)

    def forget(self, subscription: Subscription) -> None:
        """Called by a subscription that closes."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End every subscription, so that event streams finish at shutdown."""
        for subscription in list(self._subscriptions):
            subscription.close()


def _event(row: sqlite3.Row) -> Event:
    return Event(
        row["seq"],
        row["time_ns"],
        row["type"],
        row["action"],
        row["actor_id"],
        json.loads(row["attributes"]),
    )
