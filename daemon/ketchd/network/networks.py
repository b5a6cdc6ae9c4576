"""Networks: every network and every endpoint on it, from a container's start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, TypeVar

from ketch_wire.faults import EngineFailure, InvalidInput, NotFound
from ketchd.catalogue.database import Catalogue
from ketchd.network import bridges, links, rules
from ketchd.network.addresses import mac_of
from ketchd.network.definition import BRIDGE, DRIVERS, PREDEFINED, Network, default_options
from ketchd.network.files import only_loopback
from ketchd.network.firewall import Firewall
from ketchd.network.leases import EndpointLease, LeaseBook, inside
from ketchd.network.publishing import Publishing
from ketchd.network.sockets import ReservedPort
from ketchd.network.watch import RuleWatch

__all__ = ["EndpointLease", "Network", "Networks", "ReservedPort"]

_LEFTOVER_SECONDS = 1.0
_UPSTREAM_RESOLV_CONF = "/run/systemd/resolve/resolv.conf"
T = TypeVar("T")


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
        *,
        bridge: str = "ketch0",
        bip: str | None = None,
        mtu: int = 1500,
        default_ip: str = "",
        ip_forward: bool = True,
        masquerade: bool = True,
        icc: bool = True,
        log: Any,
    ) -> None:
        """bridge: name of the default network's bridge, `none` for no default network. bip: its address, CIDR; None for a
        subnet that nothing on this host uses. default_ip: where ports are published that name no address. Raises InvalidInput.
        """
        self.has_default = bridge != "none"
        self.instance = rules.check_bridge_name(bridge)
        self._catalogue = catalogue
        self._bip = bip
        self._default_ip = default_ip
        self._ip_forward = ip_forward
        self._settings: dict[str, Any] = {"mtu": mtu, "masquerade": masquerade, "icc": icc}
        self._log = log
        self._book = LeaseBook(catalogue)
        self._firewall = Firewall(self.instance, log)
        self._thread = ThreadPoolExecutor(1, "network")
        self._networks: dict[str, Network] = {}
        self._broken: dict[str, str] = {}
        self._leases: dict[str, dict[str, EndpointLease]] = {}
        self._publishing = Publishing()
        self._applied = False
        self._instance_lock: socket.socket | None = None
        self._watch: RuleWatch | None = None
        self._checking: asyncio.Task[None] | None = None
        self._leftover: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    # --- life -----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bridges up, strays of ours gone. Published ports of what runs stay as they are until `restore`.

        Raises EngineFailure when another ketchd uses the same bridge. A network whose bridge cannot be made is broken: said in
        the log, and by each start of a container on it.
        """
        self._hold_instance()
        self._load()
        if self._ip_forward:
            await self._run(bridges.forward_packets, self._log)
        for network in list(self._networks.values()):
            if network.driver == "bridge":
                await self._bring_up(network)
        with contextlib.suppress(OSError):
            await self._run(bridges.sweep, self.instance, list(self._networks.values()), _Everything())
        try:
            self._watch = RuleWatch(rules.table_name(self.instance), self._rules_touched)
        except OSError as error:
            self._log.warning("packet rules cannot be watched", reason=error.strerror)

    def _hold_instance(self) -> None:
        """One ketchd a default bridge. An abstract socket that nobody answers on: it is the host's network namespace's, as
        bridges are, and it goes with the process."""
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            lock.bind(f"\0ketch-network-{self.instance}")
        except OSError as error:
            lock.close()
            raise EngineFailure(
                f"another ketchd on this host uses the bridge {self.instance}: give one of them another by --bridge"
            ) from error
        self._instance_lock = lock

    def _load(self) -> None:
        for row in self._catalogue.query("SELECT record FROM networks"):
            network = Network.from_json(row["record"])
            self._networks[network.id] = network
        names = {one.name: one for one in self._networks.values()}
        for name in PREDEFINED:
            if name == BRIDGE and not self.has_default:
                if BRIDGE in names:
                    del self._networks[names[BRIDGE].id]
                continue
            known = names.get(name) or Network(secrets.token_hex(32), name, DRIVERS[name], time.time_ns())
            self.save(self._as_configured(known) if name == BRIDGE else known)

    def _as_configured(self, known: Network) -> Network:
        options = default_options(self.instance, host_ip=self._default_ip, **self._settings)
        network = replace(known, link=self.instance, options=options, **self._settings)
        if self._bip:
            interface = IPv4Interface(self._bip)
            return replace(network, subnet=str(interface.network), gateway=str(interface.ip), chosen=True)
        if known.chosen:
            return replace(network, subnet="", gateway="", chosen=False)
        return network

    async def _bring_up(self, network: Network) -> Network:
        others = [one.network for one in self._networks.values() if one.subnet and one.id != network.id]
        in_use = bool(self._book.users(network.id))
        try:
            ready = await self._run(bridges.ensure, network, self.instance, others, in_use, self._log)
        except EngineFailure as fault:
            self._log.error("a network is broken", network=network.name, reason=fault.message)
            self._broken[network.id] = fault.message
            return network
        self._broken.pop(network.id, None)
        if ready != network:
            self.save(ready)
        return ready

    async def restore(self, running: Sequence[Mapping[str, Any]]) -> None:
        """Take over what runs: [{container_id, endpoint, published}], `endpoints` for further networks. All else is given back.

        The packet rules are put in place anew, veths that belong to nobody are deleted.
        """
        for one in running:
            leases = [
                EndpointLease.from_record(stored) for stored in (one["endpoint"], *one.get("endpoints", ()))
            ]
            self._leases[one["container_id"]] = {lease.network_id: lease for lease in leases}
            self._publishing.hold_again(leases[0], one["published"])
        self._book.keep_only(set(self._leases))
        names = {lease.link for leases in self._leases.values() for lease in leases.values()}
        try:
            gone = await self._run(bridges.sweep, self.instance, list(self._networks.values()), names)
            if gone:
                self._log.info("links that belonged to nobody are deleted", links=gone)
            await self.apply_rules()
        except (EngineFailure, OSError) as error:
            self._log.error("networks could not be restored", reason=str(error))

    async def close(self) -> None:
        """End. With no container on any network nothing stays on the host; else all of it stays for them. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.close()
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking
        names = list(self._leftover)
        for timer in self._leftover.values():
            timer.cancel()
        self._leftover.clear()
        if self._instance_lock is not None:
            try:
                await self._run(bridges.delete_leftover, names)
                if self._book.is_empty and not self._leases:
                    await self._run(self._firewall.clear)
                    await self._run(bridges.remove, self.instance, list(self._networks.values()))
            except OSError as error:
                self._log.warning("networks could not be removed", reason=error.strerror)
            self._instance_lock.close()
            self._instance_lock = None
        await self._run(self._firewall.close)
        self._thread.shutdown()

    async def _run(self, job: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job, *arguments)

    # --- rules ----------------------------------------------------------------------------------------------------------------

    async def apply_rules(self) -> None:
        """Put every packet rule in place anew. Raises EngineFailure."""
        networks = [one.rules() for one in self._networks.values() if one.driver == "bridge" and one.subnet]
        self._applied = True
        try:
            await self._run(self._firewall.apply, networks, self._publishing.forwards())
        except BaseException:
            self._applied = False
            raise

    def _rules_touched(self) -> None:
        if self._applied and not self._closed and (self._checking is None or self._checking.done()):
            self._checking = asyncio.get_running_loop().create_task(self._check_rules())

    async def _check_rules(self) -> None:
        try:
            if not await self._run(self._firewall.is_intact):
                self._log.warning("somebody deleted our packet rules: they are put in place again")
                await self.apply_rules()
        except EngineFailure as fault:
            self._log.error("packet rules could not be put in place again", reason=fault.message)

    # --- endpoints ------------------------------------------------------------------------------------------------------------

    def reserve(
        self, container_id: str, network: str = BRIDGE, *, address: str = "", mac: str = "", position: int = 0,
        default_route: bool = True, names: Iterable[str] = (),
    ) -> EndpointLease:  # fmt: skip
        """A place on `network` (name or id) for the container, until `release`.

        address, mac: asked for; empty for the next free and the one made from it. position: `eth` and this number inside.
        names: by which others on a user-defined network find it. Raises NotFound, InvalidInput, EngineFailure, Unavailable.
        """
        try:
            found = self.find(network)
        except NotFound as fault:
            raise NotFound(f"failed to set up container networking: {fault.message}") from None
        if found.id in self._broken:
            raise EngineFailure(f"failed to set up container networking: {self._broken[found.id]}")
        if found.driver != "bridge":
            raise InvalidInput(f"the network {found.name} has no addresses")
        leased = self._book.take(found, container_id, address)
        lease = EndpointLease(
            container_id=container_id, network_id=found.id, network_name=found.name,
            endpoint_id=secrets.token_hex(32), address=str(leased), prefix=found.network.prefixlen,
            gateway=found.gateway, mac=mac.lower() or mac_of(leased), bridge=found.link, mtu=found.mtu,
            position=position, default_route=default_route and not found.internal, has_names=found.has_names,
            isolated=not found.icc, names=tuple(names),
        )  # fmt: skip
        self._leases.setdefault(container_id, {})[found.id] = lease
        return lease

    def reserve_ports(
        self, bindings: Sequence[Mapping[str, Any]], *, endpoint_name: str, endpoint_id: str
    ) -> list[ReservedPort]:
        """Hold a host port for each binding {proto, host_ip, host_port, container_port}; the caller closes the sockets.

        Raises InvalidInput; EngineFailure in dockerd's words when one is taken. Nothing of the call stays held then.
        """
        owner = next(
            (lease for held in self._leases.values() for lease in held.values() if lease.endpoint_id == endpoint_id), None
        )  # fmt: skip
        if owner is None:
            raise EngineFailure(f"no endpoint {endpoint_id}")
        default_ip = self._networks[owner.network_id].host_ip or self._default_ip
        return self._publishing.reserve(owner, bindings, endpoint_name=endpoint_name, default_ip=default_ip)

    def netlink_messages(self, lease: EndpointLease | None, *more: EndpointLease) -> list[bytes]:
        """What the container's first process sends in its own namespace. None: loopback alone."""
        return inside([] if lease is None else [lease, *more])

    async def connect(self, lease: EndpointLease, pid: int) -> None:
        """A veth pair between the network's bridge and the network namespace of `pid`. Raises OSError."""
        if not self._applied:
            await self.apply_rules()
        await self._run(_connect, lease, pid)

    async def publish(self, lease: EndpointLease, records: Sequence[Mapping[str, Any]]) -> None:
        """Lead the reserved ports to the container. Raises EngineFailure."""
        if not await self._run(self._firewall.add, self._publishing.lead(lease, records)):
            await self.apply_rules()

    async def release(self, container_id: str) -> None:
        """Give back all that the container has of networks. May be called twice, and for one that never had any.

        Its veth goes with its namespace; what something else keeps alive is deleted a moment later.
        """
        leases = self._leases.pop(container_id, {})
        forwards = self._publishing.let_go(container_id)
        self._book.give_back(container_id)
        for lease in leases.values():
            self._delete_later(lease.link)
        if forwards and not await self._run(self._firewall.remove, forwards):
            with contextlib.suppress(EngineFailure):
                await self.apply_rules()

    def _delete_later(self, name: str) -> None:
        def due() -> None:
            self._leftover.pop(name, None)
            self._thread.submit(_quietly, bridges.delete_leftover, [name])

        if not self._closed:
            self._leftover[name] = asyncio.get_running_loop().call_later(_LEFTOVER_SECONDS, due)

    # --- looking --------------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Network]:
        return iter(list(self._networks.values()))

    def find(self, reference: str) -> Network:
        """By full id, exact name, or unique id prefix. Raises NotFound, InvalidInput. Source: Engine API, NetworkInspect."""
        if (found := self._networks.get(reference)) is not None:
            return found
        for matches in (
            [one for one in self._networks.values() if one.name == reference],
            [one for one in self._networks.values() if reference and one.id.startswith(reference)],
        ):
            if len(matches) > 1:
                raise InvalidInput(
                    f"network {reference[:200]} is ambiguous ({len(matches)} matches found on name)"
                )
            if matches:
                return matches[0]
        raise NotFound(f"network {reference[:200]} not found")

    def ids(self) -> dict[str, str]:
        """Name -> id of every network."""
        return {one.name: one.id for one in self._networks.values()}

    def gateway(self) -> str:
        """The host as containers of the default network see it; empty without one."""
        return next((one.gateway for one in self._networks.values() if one.name == BRIDGE), "")

    def leases(self, container_id: str) -> list[EndpointLease]:
        """The container's endpoints, its first one first."""
        return sorted(self._leases.get(container_id, {}).values(), key=lambda lease: lease.position)

    def endpoints(self, network_id: str) -> list[EndpointLease]:
        """Every endpoint on the network."""
        return [held[network_id] for held in self._leases.values() if network_id in held]

    def host_file(self, path: str) -> str:
        """A file of the host, empty when it is not there. For resolv.conf the real servers behind systemd's stub."""
        try:
            text = Path(path).read_text(errors="replace")
            if path == "/etc/resolv.conf" and only_loopback(text):
                with contextlib.suppress(OSError):
                    return Path(_UPSTREAM_RESOLV_CONF).read_text(errors="replace")
            return text
        except OSError:
            return ""

    def save(self, network: Network) -> None:
        """Record `network`, a new one or a changed one."""
        with self._catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO networks (id, name, driver, record) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
                (network.id, network.name, network.driver, network.to_json()),
            )
        self._networks[network.id] = network


class _Everything:
    """A collection that has whatever is asked for."""

    def __contains__(self, _: object) -> bool:
        return True


def _connect(lease: EndpointLease, pid: int) -> None:
    links.connect(
        name=lease.link, bridge=socket.if_nametoindex(lease.bridge), mtu=lease.mtu, pid=pid,
        peer_name=lease.interface, peer_index=lease.index, peer_mac=lease.mac, isolated=lease.isolated,
    )  # fmt: skip


def _quietly(job: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(OSError):
        job(*arguments)
