"""The one place that knows every class: rooms are made bottom up, the catalogue is brought in line with the world, the door opens.

Start: store swept, layers probed, network up, containers adopted or finished; only then does anybody listen. End: the door
first, then the rooms top down; containers run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import ssl
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure, Fault, NotFound
from ketchd.api.archives import ArchiveApi
from ketchd.api.build import BuildApi
from ketchd.api.containerlist import ContainerListApi
from ketchd.api.containers import ContainerApi
from ketchd.api.containerstreams import ContainerStreamApi
from ketchd.api.events import EventsApi
from ketchd.api.execs import ExecApi
from ketchd.api.images import ImageApi
from ketchd.api.networks import NetworkApi
from ketchd.api.registry import RegistryApi
from ketchd.api.routing import Route
from ketchd.api.server import ApiServer
from ketchd.api.store import StoreApi
from ketchd.api.system import SystemApi
from ketchd.api.usage import UsageApi
from ketchd.api.volumes import VolumeApi
from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal
from ketchd.config import Config
from ketchd.containers import logdrivers
from ketchd.containers.daemondefaults import DaemonDefaults
from ketchd.containers.shims import Shims
from ketchd.containers.supervisor import Supervisor
from ketchd.content.blobs import BlobStore
from ketchd.content.cleanmark import CleanMark, Unclean
from ketchd.content.garbage import Garbage
from ketchd.content.images import ImageStore
from ketchd.content.leases import Leases
from ketchd.content.pressure import read_policy
from ketchd.content.recovery import sweep_store
from ketchd.engine import health, ooms, restore, stop
from ketchd.engine.execs import exec_ended, found_again
from ketchd.engine.gc import GarbageKeeper
from ketchd.engine.information import Facts, host_warnings
from ketchd.engine.lastcommitted import check_last_committed
from ketchd.engine.remapping import probe_idmap, read_id_map
from ketchd.engine.rooms import Rooms
from ketchd.engine.steprunner import CGROUP_PARENT
from ketchd.engine.volumes import Volumes
from ketchd.kernel.cgroups import Cgroups
from ketchd.layers.probe import probe
from ketchd.layers.store import LayerStore
from ketchd.layers.trash import Trash
from ketchd.layers.workers import WorkerPool
from ketchd.listening import open_doors
from ketchd.model.compression import read_compression
from ketchd.network.addresses import parse_pool
from ketchd.network.networks import DefaultBridge, Networks
from ketchd.registry.client import RegistryClient
from ketchd.registry.endpoints import Settings
from ketchd.registry.hosts import check_mirror
from ketchd.reloading import attributes
from ketchd.sandbox import seccomp
from ketchd.sandbox.defaults import DEFAULT_CAPABILITIES
from ketchd.shim.launcher import Launcher


class Engine:
    """Everything, assembled. `start`, `open`, `start_by_policy`, then `close`, which may be called at any point and twice.

    `reload` between `start` and `close`.
    """

    def __init__(
        self, config: Config, data_root: Path, exec_root: Path, launcher: Launcher, log: Any
    ) -> None:
        self._config = config
        self._data_root = data_root
        self._exec_root = exec_root
        self._launcher = launcher
        self._log = log
        self._rooms: Rooms | None = None
        self._keeper: GarbageKeeper | None = None
        self._facts: Facts | None = None
        self._server: ApiServer | None = None
        self._closing: list[Any] = []

    async def start(self) -> None:
        """Everything but the door. Raises EngineFailure."""
        config, root, log = self._config, self._data_root, self._log
        try:
            logdrivers.check_names(config.log_driver, config.log_opts)
        except Fault as fault:
            raise EngineFailure(f"failed to set log opts: {fault.message}") from None
        defaults = _container_defaults(config)
        policy, mark = read_policy(config.ketch.get("gc", {})), CleanMark(root)
        compression = read_compression(config.ketch.get("push", {}))
        catalogue = Catalogue(root / "catalogue.sqlite")
        self._closing.append(catalogue.close)
        unclean = mark.begin()
        self._closing.append(mark.end)
        report = sweep_store(root, catalogue, partial_hours=policy.partial_hours)
        for line in (*report.missing, *report.unowned):
            log.warning("store", finding=line)
        if report.removed:
            log.info("store swept", removed=len(report.removed))
        workers = WorkerPool(log=log)
        self._closing.append(workers.close)
        await workers.start()
        kind, reason = await probe(workers, root, config.storage_driver)
        log.info("layers", kind=kind, reason=reason)
        id_map = await read_id_map(config.userns_remap)
        if id_map is not None:
            await probe_idmap(workers, root / "stage", id_map)
            log.info("user namespaces", root="{}:{}".format(*id_map.root))
        events = EventJournal(catalogue)
        self._closing.append(events.close)
        trash = Trash(root, workers, log)
        self._closing.append(trash.close)
        trash.start()
        blobs = BlobStore(root, catalogue, trash)
        layers = LayerStore(root, catalogue, workers, kind, trash, self._launcher.forget_layers)
        self._closing.append(layers.close)
        cgroups = Cgroups.detect(log, pid=self._launcher.pid, ready=self._launcher.revive)
        self._closing.append(cgroups.close)
        supervisor = Supervisor(catalogue, events)
        networks = Networks(
            catalogue, _default_bridge(config), ip_forward=config.ip_forward,
            pools=[parse_pool(base, size) for base, size in config.default_address_pools], log=log,
        )  # fmt: skip
        self._closing.append(networks.close)
        volumes = Volumes(root, catalogue, events, lambda name: _users_of(supervisor, name), trash)

        def on_exec_exit(container_id: str, exec_id: str, code: int) -> None:
            with contextlib.suppress(NotFound):
                exec_ended(rooms, supervisor.find(container_id), exec_id, code)

        def on_detach(container_id: str, exec_id: str) -> None:
            with contextlib.suppress(Fault):
                box = supervisor.find(container_id)
                if exec_id:
                    supervisor.announce(box, "exec_detach", execID=exec_id)
                else:
                    supervisor.announce(box, "detach")

        def on_execs(container_id: str, running: dict[str, int], complete: bool) -> None:
            with contextlib.suppress(Fault):
                found_again(rooms, supervisor.find(container_id), running, complete=complete)

        def on_oom(container_id: str) -> None:
            with contextlib.suppress(NotFound):  # a build step's
                ooms.tell(rooms, supervisor.find(container_id))

        shims = Shims(
            self._launcher, self._exec_root / "containers", log, on_exec_exit, on_detach, on_execs, on_oom,
            cgroups.kill,
        )  # fmt: skip
        self._closing.append(shims.close)
        rooms = self._rooms = Rooms(
            data_root=root, exec_root=self._exec_root, catalogue=catalogue, events=events, blobs=blobs,
            images=ImageStore(catalogue, blobs), leases=Leases(catalogue), trash=trash, garbage=Garbage(catalogue, blobs, layers),
            layers=layers, workers=workers, networks=networks, volumes=volumes, shims=shims, supervisor=supervisor,
            cgroups=cgroups, log=log, cgroup_parent=config.cgroup_parent or "/docker", id_map=id_map,
            default_log_driver=config.log_driver, default_log_options=config.log_opts, registry=self._registry(),
            gc_policy=policy, compression=compression, defaults=defaults,
        )  # fmt: skip
        await networks.start()
        self._closing.append(lambda: health.close(rooms))
        await restore.restore(rooms)
        self._sweep_run_directories(rooms)
        self._tend(rooms, mark, unclean)
        self._server = ApiServer(self._routes(rooms, kind, reason), log)

    def _tend(self, rooms: Rooms, mark: CleanMark, unclean: Unclean | None) -> None:
        """What goes on in the background: the disk is looked after, and what an unclean end may have damaged is checked."""
        keeper = self._keeper = GarbageKeeper(rooms, mark)
        self._closing.append(keeper.close)
        keeper.start()
        if unclean is not None:
            checking = asyncio.create_task(check_last_committed(rooms, mark, unclean))

            async def end_check() -> None:
                checking.cancel()
                await asyncio.gather(checking, return_exceptions=True)

            self._closing.append(end_check)

    def _registry(self) -> RegistryClient:
        client = RegistryClient(_registry_settings(self._config))
        self._closing.append(client.close)
        return client

    def _sweep_run_directories(self, rooms: Rooms) -> None:
        """Run directories that no container owns, and cgroups of the same names: what a killed build step left.

        Its shim ends the step without us; its cgroup is tried until it is empty.
        """
        directory = self._exec_root / "containers"
        owned = {box.record.id for box in rooms.supervisor}
        for name in os.listdir(directory) if directory.is_dir() else []:
            if name not in owned:
                noted = directory / name / CGROUP_PARENT
                rooms.cgroups.place(name, noted.read_text() if noted.exists() else rooms.cgroup_parent)
                rooms.cgroups.remove(name)
                shutil.rmtree(directory / name, ignore_errors=True)

    def _routes(self, rooms: Rooms, kind: str, reason: str) -> Iterable[Route]:
        config = self._config
        security_options = [
            f"name=seccomp,profile={config.seccomp_profile or 'builtin'}",
            *(["name=userns"] if rooms.id_map else []),
            *(["name=no-new-privileges"] if config.no_new_privileges else []),
        ]
        facts = self._facts = Facts(
            engine_id=_engine_id(self._data_root), layer_kind=kind, layer_reason=reason,
            cgroup_driver=rooms.cgroups.driver, log_driver=config.log_driver, security_options=security_options,
            warnings=[*open_doors(config.hosts, tls=config.tls, verified=config.tlsverify), *host_warnings(rooms.cgroups)],
            address_pools=config.default_address_pools,
        )  # fmt: skip
        _show_settings(facts, config)
        registry = RegistryApi(rooms)
        apis = (
            SystemApi(rooms, facts), EventsApi(rooms), ContainerListApi(rooms), ContainerStreamApi(rooms), ContainerApi(rooms), ExecApi(rooms), UsageApi(rooms), ArchiveApi(rooms),
            registry, StoreApi(rooms), ImageApi(rooms, registry.create), BuildApi(rooms), NetworkApi(rooms), VolumeApi(rooms),
        )  # fmt: skip
        return [route for api in apis for route in api.routes()]

    async def open(self, sockets: list[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Answer on the sockets."""
        assert self._server is not None
        await self._server.listen(sockets, tls)

    def reload(self, config: Config) -> None:
        """Take over what is reloadable of `config`; containers are not touched. Raises InvalidInput, and nothing has changed.

        What may fail comes first. What is under way goes on with the settings that it began with.
        """
        rooms, facts, keeper = self._rooms, self._facts, self._keeper
        assert rooms is not None and facts is not None and keeper is not None
        policy = read_policy(config.ketch.get("gc", {}))
        compression = read_compression(config.ketch.get("push", {}))
        told = attributes(config, platform.node(), rooms.cgroups.version)
        rooms.events.append("daemon", "reload", facts.engine_id, told)
        self._config = config
        rooms.defaults = replace(rooms.defaults, **_reloadable_defaults(config))
        rooms.compression = compression
        rooms.registry.reload(_registry_settings(config))
        rooms.transfers.resize(config.max_concurrent_downloads)
        _show_settings(facts, config)
        if policy != rooms.gc_policy:
            rooms.gc_policy = policy
            keeper.look()

    async def start_by_policy(self) -> None:
        """Start what its restart policy wants running."""
        assert self._rooms is not None
        await restore.start_by_policy(self._rooms)

    async def close(self, *, stop_containers: bool = False) -> None:
        """The end, in the opposite order. Containers run on unless `stop_containers`."""
        server, self._server = self._server, None
        if server is not None:
            await server.close()
        if stop_containers and self._rooms is not None:
            await stop.stop_all(self._rooms, self._config.shutdown_timeout)
        while self._closing:
            ending = self._closing.pop()()
            if asyncio.iscoroutine(ending):
                await ending


def _container_defaults(config: Config) -> DaemonDefaults:
    """What containers get that say nothing. Raises EngineFailure when the seccomp profile cannot be used."""
    choice = config.seccomp_profile
    if choice not in ("", "default", "builtin", "unconfined"):
        try:
            choice = Path(choice).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror or "").lower() if isinstance(error, OSError) else str(error)
            raise EngineFailure(
                f"opening seccomp profile ({config.seccomp_profile}) failed: open {config.seccomp_profile}: {reason}"
            ) from error
        if not choice.lstrip().startswith("{"):
            raise EngineFailure(
                f"decoding seccomp profile {config.seccomp_profile} failed: it is no JSON object"
            )
        seccomp.program(choice, DEFAULT_CAPABILITIES)
    return DaemonDefaults(
        init=config.init, dns=config.dns, dns_options=config.dns_opts, dns_search=config.dns_search,
        ulimits=config.default_ulimits, no_new_privileges=config.no_new_privileges,
        seccomp="" if choice in ("default", "builtin") else choice, host_gateways=config.host_gateway_ips, **_reloadable_defaults(config),
    )  # fmt: skip


def _default_bridge(config: Config) -> DefaultBridge:
    return DefaultBridge(
        link=config.bridge, bip=config.bip, fixed_cidr=config.fixed_cidr, default_gateway=config.default_gateway,
        host_ip=config.ip, icc=config.icc, masquerade=config.ip_masq, mtu=config.mtu,
    )  # fmt: skip


def _reloadable_defaults(config: Config) -> dict[str, Any]:
    """Fields of DaemonDefaults that a reload changes, for containers that are created from then on."""
    return {
        "shm_size": config.default_shm_size,
        "ipc_mode": config.default_ipc_mode,
        "cgroupns_mode": config.default_cgroupns_mode,
        "runtime": config.default_runtime,
    }


def _registry_settings(config: Config) -> Settings:
    return Settings(
        insecure=tuple(config.insecure_registries), mirrors=tuple(config.registry_mirrors),
        downloads=config.max_concurrent_downloads, uploads=config.max_concurrent_uploads,
        attempts=config.max_download_attempts, environment=dict(os.environ),
    )  # fmt: skip


def _show_settings(facts: Facts, config: Config) -> None:
    """What `info` shows of the settings that a reload changes."""
    facts.debug, facts.live_restore, facts.labels = config.debug, config.live_restore, config.labels
    facts.default_runtime, facts.insecure_registries = config.default_runtime, config.insecure_registries
    facts.mirrors = [check_mirror(mirror) for mirror in config.registry_mirrors]


def _users_of(supervisor: Supervisor, volume: str) -> list[str]:
    """Containers that mount the named volume."""
    return [
        box.record.id
        for box in supervisor
        if any(stored["type"] == "volume" and stored["name"] == volume for stored in box.record.mounts)
    ]


def _engine_id(data_root: Path) -> str:
    """The engine's identity, made once."""
    path = data_root / "engine-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        path.write_text(made := str(uuid.uuid4()))
        return made
