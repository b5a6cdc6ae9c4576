"""Leases: what a journey under way needs, kept from the garbage collector until the journey ends."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from ketch_wire.faults import InvalidInput
from ketchd.catalogue.database import Catalogue

Kind = Literal["blob", "layer", "image"]
KINDS: tuple[Kind, ...] = ("blob", "layer", "image")
LIFE_NS = 24 * 3600 * 1_000_000_000


class Lease:
    """An open lease. Add a thing before it is published, so that no moment is left in which it is garbage."""

    def __init__(self, catalogue: Catalogue, lease_id: str) -> None:
        self._catalogue = catalogue
        self.id = lease_id

    def add(self, kind: Kind, key: object) -> None:
        """Keep the blob (digest), layer (diff ID) or image (ID). May be called twice. Raises InvalidInput."""
        if kind not in KINDS:
            raise InvalidInput(f"a lease cannot hold a {kind!r}")
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO lease_items VALUES (?, ?, ?)", (self.id, kind, str(key))
            )


class Leases:
    """The leases of this run of ketchd.

    A journey does not outlive the daemon, so start-up clears them all.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Lease]:
        """A lease for the body's time.

        Its things are garbage afterwards unless something else refers to them.
        """
        lease_id, now = uuid.uuid4().hex, time.time_ns()
        with self._catalogue.transaction() as connection:
            connection.execute("INSERT INTO leases VALUES (?, ?, ?)", (lease_id, now, now + LIFE_NS))
        try:
            yield Lease(self._catalogue, lease_id)
        finally:
            with self._catalogue.transaction() as connection:
                connection.execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def held(self) -> set[tuple[str, str]]:
        """(kind, key) of everything leased now."""
        return {
            (row["kind"], row["key"]) for row in self._catalogue.query("SELECT kind, key FROM lease_items")
        }

    def clear(self) -> None:
        """Drop every lease. Called once, before the door opens."""
        with self._catalogue.transaction() as connection:
            connection.execute("DELETE FROM leases")
