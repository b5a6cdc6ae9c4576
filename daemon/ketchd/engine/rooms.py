"""What the container journeys stand on: one value that `assembly` fills and every journey takes first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ketchd.build.cache import BuildCache
from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal
from ketchd.containers.daemondefaults import BUILT_IN, DaemonDefaults
from ketchd.containers.shims import Shims
from ketchd.containers.subids import IdMap
from ketchd.containers.supervisor import Supervisor
from ketchd.content.blobs import BlobStore
from ketchd.content.documents import Documents
from ketchd.content.garbage import Garbage
from ketchd.content.images import ImageStore
from ketchd.content.leases import Leases
from ketchd.content.pressure import Policy
from ketchd.engine.transfers import Transfers
from ketchd.engine.volumes import Volumes
from ketchd.kernel.cgroups import Cgroups
from ketchd.layers.store import LayerStore
from ketchd.layers.trash import Trash
from ketchd.layers.workers import WorkerPool
from ketchd.model.compression import Compression
from ketchd.model.digest import Digest
from ketchd.network.networks import Networks
from ketchd.registry.client import RegistryClient
from ketchd.registry.endpoints import Settings


@dataclass(slots=True)
class Rooms:
    """The rooms below the engine. data_root, exec_root: see the store's layout in DESIGN."""

    data_root: Path
    exec_root: Path
    catalogue: Catalogue
    events: EventJournal
    blobs: BlobStore
    images: ImageStore
    leases: Leases
    trash: Trash
    garbage: Garbage
    layers: LayerStore
    workers: WorkerPool
    networks: Networks
    volumes: Volumes
    shims: Shims
    supervisor: Supervisor
    cgroups: Cgroups
    log: Any
    cgroup_parent: str = "/docker"
    id_map: IdMap | None = None  # of --userns-remap
    default_log_driver: str = "json-file"
    default_log_options: dict[str, str] = field(default_factory=dict)
    defaults: DaemonDefaults = BUILT_IN
    registry: RegistryClient = field(default_factory=lambda: RegistryClient(Settings()))
    gc_policy: Policy = field(default_factory=Policy)
    compression: Compression = field(default_factory=Compression)  # of layers that a push makes
    checking: asyncio.Lock = field(
        default_factory=asyncio.Lock
    )  # one check of the store at a time: they mend
    # (an image's layers, a directory that they have): what every further container of the image need not look for
    working_directories: set[tuple[tuple[Digest, ...], str]] = field(default_factory=set)
    transfers: Transfers = field(init=False)
    documents: Documents = field(init=False)
    cache: BuildCache = field(init=False)

    def __post_init__(self) -> None:
        self.documents = Documents(self.catalogue)
        self.cache = BuildCache(self.catalogue, self.data_root)
        self.transfers = Transfers(
            self.data_root, self.blobs, self.layers, self.registry.settings.downloads, self.trash
        )

    def container_dir(self, container_id: str) -> Path:
        """The container's durable directory."""
        return self.data_root / "containers" / container_id

    def state_dir(self, container_id: str) -> Path:
        """The durable directory of its last run, new for each: an earlier run's shim, whenever it wakes, writes into its own."""
        return self.container_dir(container_id) / "run"

    def run_dir(self, container_id: str) -> Path:
        """The container's directory of sockets, gone after a reboot."""
        return self.exec_root / "containers" / container_id

    def log_path(self, container_id: str) -> Path:
        """The container's newest log file."""
        return self.container_dir(container_id) / f"{container_id}-json.log"
