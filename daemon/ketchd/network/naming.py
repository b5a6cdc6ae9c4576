"""The embedded DNS servers of all user-defined networks, and the table of names that they answer from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ketchd.network.definition import Network
from ketchd.network.files import host_servers
from ketchd.network.leases import EndpointLease
from ketchd.network.names import NameTable

if TYPE_CHECKING:
    from ketchd.network.resolver import Resolver


class Naming:
    """One resolver a network with names. leases: every endpoint as it is now. host_resolv_conf: the host's file as it is now.

    `changed` after an endpoint came or went. The server's code is loaded with the first network that needs it.
    """

    def __init__(
        self, leases: Callable[[], Iterable[EndpointLease]], host_resolv_conf: Callable[[], str], log: Any
    ) -> None:
        self._leases = leases
        self._host_resolv_conf = host_resolv_conf
        self._log = log
        self._table: NameTable | None = None
        self._resolvers: dict[str, Resolver] = {}

    def changed(self) -> None:
        """Answer from new names from now on."""
        self._table = None

    def _names(self) -> NameTable:
        if self._table is None:
            self._table = NameTable(self._leases())
        return self._table

    def _servers(self) -> list[str]:
        return host_servers(self._host_resolv_conf())

    async def open(self, network: Network) -> None:
        """Answer on `network`; a network without names has no server. A server that cannot listen is said in the log."""
        if not network.has_names or network.id in self._resolvers:
            return
        from ketchd.network.resolver import Resolver

        made = Resolver(network.id, network.gateway, self._names, self._servers, self._log)
        try:
            await made.start()
        except OSError as error:
            await made.close()
            self._log.error("no DNS server on a network", network=network.name, reason=error.strerror)
            return
        self._resolvers[network.id] = made

    def place(self, network: Network) -> tuple[str, int, int] | None:
        """(gateway, udp port, tcp port) of the network's server."""
        found = self._resolvers.get(network.id)
        return None if found is None else (network.gateway, found.udp_port, found.tcp_port)

    def gateways(self) -> list[str]:
        """Where the servers listen."""
        return [one.gateway for one in self._resolvers.values()]

    async def close(self, network_id: str = "") -> None:
        """Answer no more, on one network or on all. May be called twice."""
        for key in [key for key in self._resolvers if network_id in ("", key)]:
            await self._resolvers.pop(key).close()
