"""EventJournal: what happened, kept for a while and told to whoever listens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ketchd.catalogue.database import Catalogue

KEPT = 1024  # dockerd keeps 256; a client that reconnects after a restart of ketchd should find its gap
_TRIM_EVERY = 128
_BACKLOG = 16384


@dataclass(frozen=True, slots=True)
class Event:
    """One happening. type: `container`, `image`…; action: `start`, `exec_create: sh`….

    Time_ns since the epoch.
    """

    seq: int
    time_ns: int
    type: str
    action: str
    actor_id: str
    attributes: dict[str, str]


class Subscription:
    """Events from now on, as an async iterator.

    It ends after `close`, or when the reader lags by more than 16384 events.

    Use as a context manager, so that a dropped reader is forgotten.
    """

    def __init__(self, journal: EventJournal) -> None:
        self._journal = journal
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
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
        if self._is_closed and self._queue.empty():
            return None
        return await self._queue.get()

    def put(self, event: Event) -> None:
        """Called by the journal."""
        if self._queue.qsize() >= _BACKLOG:
            self.close()
        elif not self._is_closed:
            self._queue.put_nowait(event)

    def close(self) -> None:
        """End the iteration after what is queued. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._journal.forget(self)
            self._queue.put_nowait(None)


class EventJournal:
    """The events table and its listeners. The last 1024 events survive a restart."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
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
            if seq % _TRIM_EVERY == 0:
                connection.execute("DELETE FROM events WHERE seq <= ?", (seq - KEPT,))
        event = Event(seq, time_ns, type, action, actor_id, values)
        for subscription in list(self._subscriptions):
            subscription.put(event)
        return event

    def since(self, time_ns: int, until_ns: int | None = None) -> list[Event]:
        """The kept events from `time_ns` to `until_ns`, both included, oldest first."""
        rows = self._catalogue.query(
            "SELECT * FROM events WHERE time_ns >= ? AND time_ns <= ? ORDER BY seq",
            (time_ns, (1 << 63) - 1 if until_ns is None else until_ns),
        )
        return [
            Event(
                row["seq"],
                row["time_ns"],
                row["type"],
                row["action"],
                row["actor_id"],
                json.loads(row["attributes"]),
            )
            for row in rows
        ]

    def subscribe(self) -> Subscription:
        """Listen from now on. Call `since` after it, in the same step of the loop, for a gapless replay."""
        subscription = Subscription(self)
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
