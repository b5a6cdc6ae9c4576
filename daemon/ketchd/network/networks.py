"""Networks: every network and every endpoint on it, from a container's start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from ketch_wire.faults import Conflict, EngineFailure, Forbidden, InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.catalogue.database import Catalogue
from ketchd.network import bridges, conntrack, hostfiles, rules, wishes
from ketchd.network.addresses import DEFAULT_POOLS, Pool, mac_of
from ketchd.network.definition import BRIDGE, NONE, PREDEFINED, DefaultBridge, Network, configured
from ketchd.network.instance import NO_BRIDGE, Instance, name_of
from ketchd.network.known import KnownNetworks
from ketchd.network.leases import EndpointLease, LeaseBook, inside, outward
from ketchd.network.leftovers import Leftovers
from ketchd.network.naming import Naming
from ketchd.network.publishing import Publishing
from ketchd.network.sockets import ReservedPort
from ketchd.network.standing import StandingBridges
from ketchd.network.upkeep import Upkeep

__all__ = ["DefaultBridge", "EndpointLease", "Network", "Networks", "ReservedPort"]

T = TypeVar("T")
tracepoint.declare("network.bridged", "network.recorded", "network.forgotten")


class Networks:
    """The networks of one ketchd.

    A container's endpoint is reserved (address, in the catalogue), its ports are reserved (sockets, in memory and then with
    its shim), it is connected (veth pair into its namespace) and published (elements of an nft map); `release` undoes all of
    it by the container's id and may be called twice. `start`, `restore` with what runs, then anything, then `close`.

    What touches the kernel runs on one thread of its own, in the order asked; the rest is the event loop's.
    Names of veths are `veth` and seven digits of the endpoint's id; a container's namespace has no name and no mount anywhere.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        default: DefaultBridge,
        *,
        ip_forward: bool = True,
        pools: Sequence[Pool] = (),
        log: Any,
    ) -> None:
        """default: the default network's settings. pools: where subnets come from, dockerd's by default. Raises InvalidInput."""
        self._catalogue = catalogue
        self._known = KnownNetworks(catalogue)
        self.has_default = default.link != NO_BRIDGE
        self.instance = name_of(rules.check_bridge_name(default.link), self._known.predefined(NONE).id)
        self._default = replace(default, link=self.instance)
        self._ip_forward = ip_forward
        self._log = log
        self._book = LeaseBook(catalogue)
        self._thread = ThreadPoolExecutor(1, "network")
        self._forgetting = ThreadPoolExecutor(1, "conntrack")  # its table has any size: nobody waits for it
        self._leftovers = Leftovers(self._thread)
        self._naming = Naming(self._every_lease, hostfiles.resolv_conf, log)
        self._publishing = Publishing()
        self._leases: dict[str, dict[str, EndpointLease]] = {}
        self._instance: Instance | None = None
        self._changing = asyncio.Lock()  # which networks there are, and their bridges
        self._coming: list[Network] = []
        self._bridges = StandingBridges(
            self.instance, self._run, log, self._known, self._book, self._every_lease, pools or DEFAULT_POOLS
        )
        self._upkeep = Upkeep(
            self.instance, self._run, log, networks=self._rules, forwards=self._publishing.forwards,
            leans_on=self._bridges.leans_on, mend=self._mend,
        )  # fmt: skip
        self._closed = False

    # --- life -----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bridges up, strays of ours gone. Published ports of what runs stay as they are until `restore`.

        Raises EngineFailure when another ketchd uses the same bridge. A network whose bridge cannot be made is broken: said in
        the log, and by each start of a container on it.
        """
        self._instance = Instance(self.instance)
        self._predefine()
        if self._ip_forward:
            await self._run(bridges.forward_packets, self._log)
        for network in self._known:
            if network.driver == "bridge":
                await self._naming.open(await self._bridges.bring_up(network))
        with contextlib.suppress(OSError):
            await self._run(bridges.sweep, self.instance, list(self._known), None)

    def _predefine(self) -> None:
        for name in PREDEFINED:
            known = self._known.predefined(name)
            if name == BRIDGE and not self.has_default:
                self._known.hide(known.id)
                continue
            if name == BRIDGE:
                in_use = bool(self._book.users(known.id))
                known, kept = configured(known, self._default, in_use)
                if known.subnet and not (in_use or known.chosen or self._bridges.may_have(known.network)):
                    known = replace(known, subnet="", gateway="")
                if kept:
                    self._log.warning(
                        "containers run: the default network keeps its address",
                        wanted=str(self._default.interface),
                    )
            self._known.save(known)

    async def _mend(self) -> None:
        async with self._changing:
            before = self._rules()
            for network in [] if self._closed else await self._bridges.mend():
                await self._naming.open(network)
            if self._rules() != before:
                with contextlib.suppress(EngineFailure):
                    await self._upkeep.apply()

    async def restore(self, running: Sequence[Mapping[str, Any]]) -> list[str]:
        """Take over what runs: [{container_id, endpoint, published}], `endpoints` for further networks. All else is given back.

        The packet rules are put in place anew; links that belong to nobody are deleted: their names.
        """
        for one in running:
            stored = (one["endpoint"], *one.get("endpoints", ()))
            leases = [EndpointLease.from_record(record) for record in stored]
            self._leases[one["container_id"]] = {lease.network_id: lease for lease in leases}
            if (lead := outward(leases)) is not None:
                self._publishing.hold_again(lead, one["published"])
        self._book.keep_only(self._every_lease())
        self._naming.changed()
        self._upkeep.start()  # not before it is known what runs: rules that were put back would lack its ports
        names = {lease.link for lease in self._every_lease()}
        gone: list[str] = []
        try:
            gone = await self._run(bridges.sweep, self.instance, list(self._known), names)
            if gone:
                self._log.info("links that belonged to nobody are deleted", links=gone)
            await self._mend()
            await self._upkeep.apply()
            self._forgetting.submit(conntrack.forget_questions_quietly, self._naming.gateways())
        except (EngineFailure, OSError) as error:
            self._log.error("networks could not be restored", reason=str(error))
        return gone

    async def close(self) -> None:
        """End. With no container on any network nothing stays on the host; else all of it stays for them. May be called twice."""
        if self._closed:
            return
        self._closed = True
        await self._upkeep.look_away()
        await self._naming.close()
        try:
            await self._leftovers.close()
            if self._instance is not None and self._book.is_empty and not self._leases:
                await self._upkeep.clear()
                await self._run(bridges.remove, self.instance, list(self._known))
        except OSError as error:
            self._log.warning("networks could not be removed", reason=error.strerror)
        if self._instance is not None:
            self._instance.close()
        await self._upkeep.close()
        self._forgetting.shutdown()
        self._thread.shutdown()

    async def _run(self, job: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job, *arguments)

    def _rules(self) -> list[rules.NetworkRules]:
        return [
            one.rules(self._naming.place(one))
            for one in (*self._known, *self._coming)
            if one.driver == "bridge" and one.subnet
        ]

    # --- networks -------------------------------------------------------------------------------------------------------------

    async def create(
        self, body: Mapping[str, Any], tell: Callable[[Network], object] = lambda made: None
    ) -> tuple[Network, str]:
        """A user-defined network, up, and a warning for the client. tell: called in the transaction that records it.

        Raises what `wishes.parse` does; Conflict (name), Forbidden (subnet of another network), EngineFailure. Failed or killed:
        the next start takes a bridge away that has no record. Source: Engine API, NetworkCreate.
        """
        made = wishes.parse(
            body, network_id=secrets.token_hex(32), created_ns=time.time_ns(), default_mtu=self._default.mtu
        )  # fmt: skip
        async with self._changing:
            if self._known.named(made.name) is not None:
                raise Conflict(f"network with name {made.name} already exists")
            if (rival := next((one for one in self._known if one.link == made.link), None)) is not None:
                raise Forbidden(
                    f"cannot create network {made.id} ({made.link}): conflicts with network {rival.id} ({rival.link}): "
                    "networks have same bridge name"
                )
            others = [one.network for one in self._known if one.subnet]
            if made.subnet and any(made.network.overlaps(one) for one in others):
                raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
            warning = ""
            if made.subnet and (clash := await self._run(bridges.clash, made.network)) is not None:
                warning = f"the subnet {made.subnet} overlaps with the route {clash} of this host"
            try:
                made = await self._bridges.ensure(made)
                tracepoint.reach("network.bridged")
                self._coming.append(made)
                await self._naming.open(made)
                await self._upkeep.apply()
                with self._catalogue.transaction(durable=True):
                    self._known.save(made)
                    tell(made)
            except BaseException:
                self._known.hide(made.id)
                self._coming.clear()
                await self._naming.close(made.id)
                await self._run(bridges.remove, self.instance, [made])
                with contextlib.suppress(EngineFailure):
                    await self._upkeep.apply()
                raise
            self._coming.clear()
            tracepoint.reach("network.recorded")
            return made, warning

    async def remove(self, network: Network, tell: Callable[[], object] = lambda: None) -> None:
        """Take a user-defined network that nobody uses away. tell: called in the transaction that forgets it.

        Raises Forbidden, NotFound (somebody else took it away), EngineFailure.
        """
        if network.is_predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        async with self._changing:
            self._known.find(network.id)
            if self.endpoints(network.id):
                raise Forbidden(f"error while removing network: network {network.name} has active endpoints")
            with self._catalogue.transaction():
                self._known.forget(network.id)
                self._book.forget(network.id)
                tell()
            self._known.hide(network.id)
            tracepoint.reach("network.forgotten")
            await self._naming.close(network.id)
            try:
                await self._upkeep.apply()
                await self._run(bridges.remove, self.instance, [network])
            except OSError as error:
                raise EngineFailure(
                    f"network {network.name} is removed, its bridge is not: {error.strerror}"
                ) from error

    # --- endpoints ------------------------------------------------------------------------------------------------------------

    def reserve(
        self, container_id: str, network: str = BRIDGE, *, address: str = "", mac: str = "", position: int = 0,
        default_route: bool = True, names: Iterable[str] = (), links: Iterable[tuple[str, str]] = (),
        upstream: Iterable[str] = (),
    ) -> EndpointLease:  # fmt: skip
        """A place on `network` (name or id) for the container, until `release`.

        address, mac: asked for; empty for the next free and the one made from it. position: `eth` and this number inside.
        names: by which others on a user-defined network find it. links: (name, alias), by which it alone finds others.
        Raises NotFound, InvalidInput, EngineFailure, Unavailable.
        """
        try:
            found = self.find(network)
        except NotFound as fault:
            raise NotFound(f"failed to set up container networking: {fault.message}") from None
        if (reason := self._bridges.broken.get(found.id)) is not None:
            raise EngineFailure(f"failed to set up container networking: {reason}")
        if found.driver != "bridge":
            raise InvalidInput(f"the network {found.name} has no addresses")
        leased = self._book.take(found, container_id, address)
        lease = EndpointLease(
            container_id=container_id, network_id=found.id, network_name=found.name,
            endpoint_id=secrets.token_hex(32), address=str(leased), prefix=found.network.prefixlen,
            gateway=found.gateway, mac=mac.lower() or mac_of(leased), bridge=found.link, mtu=found.mtu,
            position=position, default_route=default_route and not found.internal, has_names=found.has_names,
            isolated=not found.icc, internal=found.internal, names=tuple(names),
            links=tuple(f"{name}:{alias}" for name, alias in links), upstream=tuple(upstream),
            default_gateway=found.default_gateway if found.default_gateway != found.gateway else "",
        )  # fmt: skip
        self._leases.setdefault(container_id, {})[found.id] = lease
        self._naming.changed()
        return lease

    def reserve_ports(
        self, bindings: Sequence[Mapping[str, Any]], *, endpoint_name: str, endpoint_id: str
    ) -> list[ReservedPort]:
        """Hold a host port for each binding {proto, host_ip, host_port, container_port}; the caller closes the sockets.

        Raises InvalidInput; EngineFailure in dockerd's words when one is taken. Nothing of the call stays held then.
        """
        owner = next((lease for lease in self._every_lease() if lease.endpoint_id == endpoint_id), None)
        if owner is None:
            raise EngineFailure(f"no endpoint {endpoint_id}")
        default_ip = self.find(owner.network_id).host_ip or self._default.host_ip
        return self._publishing.reserve(owner, bindings, endpoint_name=endpoint_name, default_ip=default_ip)

    def netlink_messages(self, lease: EndpointLease | None, *more: EndpointLease) -> list[bytes]:
        """What the container's first process sends in its own namespace. None: loopback alone."""
        return inside([] if lease is None else [lease, *more])

    async def connect(self, lease: EndpointLease, pid: int) -> None:
        """A veth pair between the network's bridge and the network namespace of `pid`. Raises OSError."""
        await self._upkeep.ensure()
        try:
            await self._run(bridges.connect, lease, pid)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise
            await self._mend()  # somebody deleted the bridge just now
            await self._run(bridges.connect, lease, pid)

    async def publish(self, lease: EndpointLease, records: Sequence[Mapping[str, Any]]) -> None:
        """Lead the reserved ports to the container, to this endpoint from now on. Raises EngineFailure."""
        await self._unpublish(self._publishing.stop_leading(lease.container_id))
        forwards = self._publishing.lead(lease, records)
        await self._upkeep.add(forwards)
        if stale := [(one.host_ip, one.host_port, one.address) for one in forwards if one.proto == "udp"]:
            self._forgetting.submit(conntrack.forget_ports_quietly, stale)

    def leads_ports_to(self, lease: EndpointLease) -> bool:
        """Whether the container's ports lead to this endpoint of it."""
        return self._publishing.leads_to(lease)

    async def free_ports(self, container_id: str) -> None:
        """Give back the container's ports alone. May be called twice."""
        await self._unpublish(self._publishing.let_go(container_id))

    async def disconnect(self, lease: EndpointLease) -> None:
        """Take one endpoint of a running container away. Ports that led to it lead nowhere until they are published anew: the
        address may be another container's next. Raises EngineFailure as `release` does."""
        if self._publishing.leads_to(lease):
            await self._unpublish(self._publishing.stop_leading(lease.container_id))
        held = self._leases.get(lease.container_id, {})
        held.pop(lease.network_id, None)
        try:
            self._book.give_back(lease.container_id, lease.network_id)
        finally:
            self._naming.changed()
            await self._run(bridges.delete_leftover, [lease.link])

    async def release(self, container_id: str) -> None:
        """Give back all that the container has of networks. May be called twice, and for one that never had any.

        Its veth goes with its namespace; what something else keeps alive is deleted a moment later.
        Raises EngineFailure when the catalogue does not take it (a full disk); it is given back all the same.
        """
        leases = self._leases.pop(container_id, {})
        forwards = self._publishing.let_go(container_id)
        try:
            self._book.give_back(container_id)
        finally:
            if leases:
                self._naming.changed()
                self._leftovers.expect_gone([lease.link for lease in leases.values()])
            await self._unpublish(forwards)

    async def _unpublish(self, forwards: Sequence[rules.Forward]) -> None:
        if not forwards:
            return
        with contextlib.suppress(EngineFailure):
            await self._upkeep.remove(forwards)
        if datagrams := {one.address for one in forwards if one.proto == "udp"}:
            self._forgetting.submit(conntrack.forget_quietly, datagrams)

    def lead_by(self, container_id: str, network_id: str) -> list[EndpointLease]:
        """The container's default route goes by that network from now on, unless it is internal; its leases as they are then."""
        held = self._leases.get(container_id, {})
        for key, lease in held.items():
            held[key] = replace(lease, default_route=key == network_id and not lease.internal)
        return self.leases(container_id)

    def rename(
        self, container_id: str, names: Callable[[EndpointLease], Iterable[str]]
    ) -> list[EndpointLease]:
        """Give the container's endpoints other names; the leases as they are then, to be recorded."""
        held = self._leases.get(container_id, {})
        for key, lease in held.items():
            held[key] = replace(lease, names=tuple(names(lease)))
        self._naming.changed()
        return self.leases(container_id)

    # --- looking --------------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Network]:
        return iter(self._known)

    def find(self, reference: str) -> Network:
        """By full id, exact name, or unique id prefix. Raises NotFound, InvalidInput. Source: Engine API, NetworkInspect."""
        return self._known.find(reference)

    def ids(self) -> dict[str, str]:
        """Name -> id of every network."""
        return {one.name: one.id for one in self._known}

    def gateway(self) -> str:
        """The host as containers of the default network see it; empty without one."""
        found = self._known.named(BRIDGE)
        return "" if found is None else found.gateway

    def leases(self, container_id: str) -> list[EndpointLease]:
        """The container's endpoints, in the order of its interfaces."""
        return sorted(self._leases.get(container_id, {}).values(), key=lambda lease: lease.position)

    def _every_lease(self) -> Iterator[EndpointLease]:
        return (lease for held in self._leases.values() for lease in held.values())

    def endpoints(self, network_id: str) -> list[EndpointLease]:
        """Every endpoint on the network."""
        return [held[network_id] for held in self._leases.values() if network_id in held]
