"""What stands on the host for the networks is kept standing: packet rules and bridges that somebody takes away are put back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from ketch_wire.faults import EngineFailure
from ketchd.network import foreign, rules, watch
from ketchd.network.firewall import Firewall
from ketchd.network.rules import Forward, NetworkRules
from ketchd.network.watch import Watch

T = TypeVar("T")


class Run(Protocol):
    """Who carries out blocking calls, one at a time and in the order asked: the network thread."""

    async def __call__(self, job: Callable[..., T], *arguments: Any) -> T:
        """What `job` returns."""


class Upkeep:
    """The packet rules of one ketchd, and two watches: on them, and on its bridges.

    networks, forwards: what the rules have to be, as of now. leans_on: whether one of these links must stay. mend: looks at the
    bridges and puts back what is missing. Once what runs is known `start`, then `apply`, from which on the rules are looked
    after; then anything; then `close`.
    """

    def __init__(
        self, instance: str, run: Run, log: Any, *, networks: Callable[[], list[NetworkRules]],
        forwards: Callable[[], list[Forward]], leans_on: Callable[[set[str]], bool], mend: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._run = run
        self._log = log
        self._networks = networks
        self._forwards = forwards
        self._firewall = Firewall(instance, log)
        self._stands = False
        tables = {rules.table_name(instance), foreign.TABLE}
        self._watches = [
            Watch(watch.RULES, lambda datagram: bool(tables & watch.changed_tables(datagram)), self._check),
            Watch(watch.LINKS, lambda datagram: leans_on(watch.changed_links(datagram)), mend),
        ]

    def start(self) -> None:
        """Listen to the kernel. Where it tells nothing, that is said in the log."""
        for one in self._watches:
            try:
                one.start()
            except OSError as error:
                self._log.warning(f"{one.source.what} cannot be watched", reason=error.strerror)

    async def apply(self) -> None:
        """Put every packet rule in place anew. Raises EngineFailure; the next connection tries again then."""
        self._stands = True
        try:
            await self._run(self._firewall.apply, self._networks(), self._forwards())
        except BaseException:
            self._stands = False
            raise

    async def ensure(self) -> None:
        """`apply`, unless the rules are in place. Raises EngineFailure."""
        if not self._stands:
            await self.apply()

    async def add(self, forwards: Sequence[Forward]) -> None:
        """Lead ports to containers, which `forwards` tells of already. Raises EngineFailure."""
        if not await self._run(self._firewall.add, forwards):
            await self.apply()

    async def remove(self, forwards: Sequence[Forward]) -> None:
        """Lead ports nowhere. Raises EngineFailure."""
        if not await self._run(self._firewall.remove, forwards):
            await self.apply()

    async def _check(self) -> None:
        if not self._stands:
            return
        try:
            if await self._run(self._firewall.is_intact):
                await self._run(self._firewall.open_foreign, self._networks())
            else:
                self._log.warning("somebody changed our packet rules: they are put in place again")
                await self.apply()
        except EngineFailure as fault:
            self._log.error("packet rules could not be put in place again", reason=fault.message)

    async def look_away(self) -> None:
        """Listen no more; what was about to be put back is left. May be called twice."""
        self._stands = False
        for one in self._watches:
            await one.close()

    async def clear(self) -> None:
        """Take every rule away."""
        await self._run(self._firewall.clear)

    async def close(self) -> None:
        """End; the rules stay."""
        await self.look_away()
        await self._run(self._firewall.close)
