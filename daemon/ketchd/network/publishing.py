"""Every container's published ports: held on the host, known as elements of the rules' maps. Used on the event loop's thread only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ketchd.network import ports, rules, sockets
from ketchd.network.leases import EndpointLease
from ketchd.network.ports import PortTable
from ketchd.network.rules import Forward
from ketchd.network.sockets import ReservedPort


class Publishing:
    """Ports by container: reserved first, then led to an address, then let go."""

    def __init__(self) -> None:
        self._table = PortTable()
        self._records: dict[str, list[dict[str, Any]]] = {}
        self._forwards: dict[str, list[Forward]] = {}
        self._last_port = 0
        self._has_ipv6 = sockets.host_has_ipv6()

    def reserve(
        self, lease: EndpointLease, bindings: Sequence[Mapping[str, Any]], *, endpoint_name: str, default_ip: str
    ) -> list[ReservedPort]:  # fmt: skip
        """Hold a host port for each binding, in their order. Raises InvalidInput, EngineFailure; nothing of the call stays held then.

        A certain port is taken before one out of a range, and any free one last, so that none takes what another needs.
        Source: moby libnetwork/drivers/bridge/port_mapping_linux.go, sortAndNormPBs.
        """
        ephemeral = sockets.ephemeral_range()
        wanted = [ports.parse(one, default_ip=default_ip, has_ipv6=self._has_ipv6) for one in bindings]
        reserved: list[list[ReservedPort]] = [[] for _ in wanted]
        try:
            for number in sorted(range(len(wanted)), key=lambda number: wanted[number].choices):
                reserved[number] = sockets.reserve(
                    wanted[number], self._table, lease.container_id, ephemeral, self._last_port,
                    lambda why: ports.failed(endpoint_name, lease.endpoint_id, why),
                )  # fmt: skip
                if not wanted[number].low:
                    self._last_port = reserved[number][-1].host_port
        except BaseException:
            for one in (one for held in reserved for one in held):
                one.socket.close()
                self._table.let_go(one.proto, one.host_ip, one.host_port, lease.container_id)
            raise
        found = [one for held in reserved for one in held]
        self._records.setdefault(lease.container_id, []).extend(one.to_record() for one in found)
        return found

    def hold_again(self, lease: EndpointLease, records: Sequence[Mapping[str, Any]]) -> None:
        """Ports of a container that ran on while ketchd did not, and where they lead."""
        stored = [dict(one) for one in records]
        for one in stored:
            self._table.hold(one["proto"], one["host_ip"], one["host_port"], lease.container_id)
        self._records[lease.container_id] = stored
        self._forwards[lease.container_id] = rules.forwards(stored, lease.address)

    def lead(self, lease: EndpointLease, records: Sequence[Mapping[str, Any]]) -> list[Forward]:
        """The rules' elements that lead the reserved ports to the container."""
        found = rules.forwards([dict(one) for one in records], lease.address)
        self._forwards[lease.container_id] = found
        return found

    def leads_to(self, lease: EndpointLease) -> bool:
        """Whether the container's ports lead to this endpoint of it."""
        return any(one.address == lease.address for one in self._forwards.get(lease.container_id, ()))

    def stop_leading(self, container_id: str) -> list[Forward]:
        """The ports stay held and lead nowhere; the elements to take out of the rules."""
        return self._forwards.pop(container_id, [])

    def let_go(self, container_id: str) -> list[Forward]:
        """The container's ports are free again; the elements to take out of the rules. May be called twice."""
        for one in self._records.pop(container_id, []):
            self._table.let_go(one["proto"], one["host_ip"], one["host_port"], container_id)
        return self._forwards.pop(container_id, [])

    def forwards(self) -> list[Forward]:
        """Every element."""
        return [one for found in self._forwards.values() for one in found]
