"""The bridge of every network brought up, and again whenever somebody has taken something from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network
from typing import Any

from ketch_wire.faults import EngineFailure, Unavailable
from ketchd.network import bridges, links
from ketchd.network.addresses import Pool
from ketchd.network.definition import Network
from ketchd.network.known import KnownNetworks
from ketchd.network.leases import EndpointLease, LeaseBook
from ketchd.network.upkeep import Run


class StandingBridges:
    """leases: every endpoint as it is now. pools: where subnets come from.

    A network whose bridge cannot be made is `broken` (id -> why); each `mend` tries it again.
    """

    def __init__(
        self, instance: str, run: Run, log: Any, known: KnownNetworks, book: LeaseBook,
        leases: Callable[[], Iterable[EndpointLease]], pools: Sequence[Pool],
    ) -> None:  # fmt: skip
        self._instance = instance
        self._run = run
        self._log = log
        self._known = known
        self._book = book
        self._leases = leases
        self._pools = pools
        self.broken: dict[str, str] = {}

    def leans_on(self, names: set[str]) -> bool:
        """Whether one of the links with these names, to which something happened, has to be as it was: a bridge, or the host's end
        of an endpoint, unless it went with its container. Asked for every change of a link, so nothing is gone through in vain."""
        if not names:
            return False
        if any(one.link in names for one in self._known):
            return True
        there = {name for name in names if links.exists(name)}
        return bool(there) and any(lease.link in there for lease in self._leases())

    def may_have(self, subnet: IPv4Network) -> bool:
        """Whether it is out of the pools."""
        return any(subnet.subnet_of(pool.base) for pool in self._pools)

    async def ensure(self, network: Network, *, in_use: bool = False) -> Network:
        """The network with its bridge up, recorded nowhere. in_use: it keeps its subnet. Raises EngineFailure, Unavailable."""
        others = [one.network for one in self._known if one.subnet and one.id != network.id]
        return await self._run(
            bridges.ensure, network, self._instance, others, in_use, self._log, self._pools
        )

    async def bring_up(self, network: Network, *, in_use: bool = False) -> Network:
        """The network with its bridge up, as it is then recorded; broken and as it was where that fails: said in the log.

        in_use: it keeps its subnet, whatever the host's routes say; so does a network on which containers are.
        """
        try:
            ready = await self.ensure(network, in_use=in_use or bool(self._book.users(network.id)))
        except (EngineFailure, Unavailable) as fault:
            if self.broken.get(network.id) != fault.message:
                self._log.error("a network is broken", network=network.name, reason=fault.message)
            self.broken[network.id] = fault.message
            return network
        self.broken.pop(network.id, None)
        if ready != network:
            self._known.save(ready)
        return ready

    async def mend(self) -> list[Network]:
        """Put back bridges that somebody deleted, with their addresses and the links of containers that run, and try again what is
        broken: the networks that stand again."""
        networks = [one for one in self._known if one.driver == "bridge"]
        leases = list(self._leases())
        try:
            harmed = await self._run(bridges.harmed, [one for one in networks if one.subnet], leases)
        except OSError as error:
            self._log.error("bridges cannot be looked at", reason=error.strerror)
            return []
        mended = []
        for network in networks:
            was_broken = network.id in self.broken
            if not was_broken and network not in harmed:
                continue
            again = await self.bring_up(network, in_use=True)
            if network.id in self.broken:
                continue
            endpoints = [one for one in leases if one.network_id == network.id]
            await self._run(bridges.reattach, again, endpoints)
            mended.append(again)
            if was_broken:
                self._log.info("a network is no longer broken", network=network.name, bridge=network.link)
            else:
                self._log.warning(
                    "somebody deleted or changed a bridge: it is put back with its endpoints",
                    bridge=network.link, network=network.name, endpoints=len(endpoints),
                )  # fmt: skip
        return mended
