"""The networks that exist: in the catalogue's table `networks` and in memory, found by id and name."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.catalogue.database import Catalogue
from ketchd.network.definition import DRIVERS, Network


class KnownNetworks:
    """Every network of one ketchd. Used on the event loop's thread only."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._by_id: dict[str, Network] = {}
        for row in catalogue.query("SELECT record FROM networks"):
            network = Network.from_json(row["record"])
            self._by_id[network.id] = network

    def __iter__(self) -> Iterator[Network]:
        return iter(list(self._by_id.values()))

    def get(self, network_id: str) -> Network | None:
        """By its full id."""
        return self._by_id.get(network_id)

    def named(self, name: str) -> Network | None:
        """By its exact name."""
        return next((one for one in self._by_id.values() if one.name == name), None)

    def predefined(self, name: str) -> Network:
        """`bridge`, `host` or `none`; with a new id, which it keeps, in a catalogue that had none."""
        found = self.named(name)
        if found is None:
            found = Network(secrets.token_hex(32), name, DRIVERS[name], time.time_ns())
            self.save(found)
        return found

    def find(self, reference: str) -> Network:
        """By full id, exact name, or unique id prefix. Raises NotFound, InvalidInput. Source: Engine API, NetworkInspect."""
        if (found := self._by_id.get(reference)) is not None:
            return found
        if (found := self.named(reference)) is not None:
            return found
        matches = [one for one in self._by_id.values() if reference and one.id.startswith(reference)]
        if len(matches) > 1:
            raise InvalidInput(
                f"network {reference[:200]} is ambiguous ({len(matches)} matches found based on ID prefix)"
            )
        if matches:
            return matches[0]
        raise NotFound(f"network {reference[:200]} not found")

    def save(self, network: Network, *, durable: bool = False) -> None:
        """Record `network`, a new one or a changed one."""
        with self._catalogue.transaction(durable=durable) as connection:
            connection.execute(
                "INSERT INTO networks (id, name, driver, record) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
                (network.id, network.name, network.driver, network.to_json()),
            )
        self._by_id[network.id] = network

    def hide(self, network_id: str) -> None:
        """Leave a network out from now on, whatever is recorded."""
        self._by_id.pop(network_id, None)

    def forget(self, network_id: str) -> None:
        """Take the network out of the catalogue; `hide` it when that is committed."""
        with self._catalogue.transaction() as connection:
            connection.execute("DELETE FROM networks WHERE id = ?", (network_id,))
