"""Volumes: named directories that outlive containers. On disk `volumes/NAME/_data`; the catalogue's table `volumes` owns them.

Made as `stage/volume-…`, renamed, then recorded; removed in the opposite order. A volume of the local driver with `type`, `o`
and `device` is mounted by each container in its own mount namespace: never in the host's.
Source: Engine API 1.50, tag Volume; moby volume/local.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ketch_wire.faults import Conflict, EngineFailure, InvalidInput, NotFound, Unsupported
from ketchd import tracepoint
from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal
from ketchd.containers.mountpoints import check_volume_name
from ketchd.layers.placing import remove_staged, stats_below
from ketchd.layers.trash import Trash
from ketchd.model.times import rfc3339

tracepoint.declare("volume.placed", "volume.recorded", "volume.forgotten")

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
_OPTIONS = ("type", "o", "device")


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """What a container mounts instead of the volume's directory. kind: `bind` of source, or `tmpfs`. options: mount(8)'s."""

    kind: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume. mountpoint: its directory on the host. anonymous: made for a container without being asked for by name."""

    name: str
    driver: str
    mountpoint: Path
    created_ns: int
    labels: dict[str, str] | None
    options: dict[str, str]
    anonymous: bool

    @property
    def mount(self) -> VolumeMount | None:
        """What containers mount; None for the directory itself."""
        return parse_mount(self.options)

    def show(self) -> dict[str, Any]:
        """As the Engine API shows it."""
        return {
            "CreatedAt": rfc3339(self.created_ns // 10**9 * 10**9),
            "Driver": self.driver,
            "Labels": self.labels,
            "Mountpoint": str(self.mountpoint),
            "Name": self.name,
            "Options": self.options or None,
            "Scope": "local",
        }


def parse_mount(options: Mapping[str, str]) -> VolumeMount | None:
    """The local driver's options as a mount; None without. Raises InvalidInput, Unsupported.

    A bind (`type=none,o=bind,device=/dir`) and a tmpfs can be mounted by the container itself. A tmpfs is a fresh one in each
    container. Network and block device filesystems would have to be mounted once and shared, in the host's mount namespace.
    """
    for key in options:
        if key not in _OPTIONS:
            raise InvalidInput(f'invalid option: "{key[:60]}"')
    if not options:
        return None
    kind, device = options.get("type", ""), options.get("device", "")
    flags = [flag for flag in options.get("o", "").split(",") if flag]
    binds = [flag for flag in flags if flag in ("bind", "rbind")]
    if not device:
        raise InvalidInput('missing required option: "device"')
    if kind == "tmpfs":
        return VolumeMount("tmpfs", "tmpfs", tuple(flags) or ("rw",))
    if not kind and not binds:
        raise InvalidInput('missing required option: "type"')
    if kind not in ("", "none", "bind") or not binds:
        raise Unsupported(
            f"a volume of type {kind or 'none'!r} is not supported: bind (type=none,o=bind) and tmpfs are, since nothing is ever "
            "mounted on the host; mount it there yourself and bind it"
        )
    if not os.path.isabs(device):
        raise InvalidInput(f"invalid volume device: {device[:200]!r} is not an absolute path")
    return VolumeMount(
        "bind", os.path.normpath(device), tuple(flag for flag in flags if flag not in ("bind", "rbind"))
    )


class Volumes:
    """Every volume of one data root. in_use: the containers that mount a volume, by its name.

    A volume is there while its record is; its directory was there before and is deleted after, behind the answer.
    """

    def __init__(
        self, data_root: Path, catalogue: Catalogue, events: EventJournal, in_use: Callable[[str], list[str]],
        trash: Trash | None = None,
    ) -> None:  # fmt: skip
        self._root = data_root / "volumes"
        self._trash = trash or Trash(data_root)
        self._stage = data_root / "stage"
        self._catalogue = catalogue
        self._events = events
        self.in_use = in_use
        self._coming: dict[str, set[str]] = {}
        self._filling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def exists(self, name: str) -> bool:
        """Whether there is a volume of that name."""
        return bool(self._catalogue.query("SELECT 1 FROM volumes WHERE name = ?", (name,)))

    def get(self, name: str) -> Volume:
        """By its exact name. Raises NotFound."""
        rows = self._catalogue.query("SELECT * FROM volumes WHERE name = ?", (name,))
        if not rows:
            raise NotFound(f"get {name[:260]}: no such volume")
        return self._volume(rows[0])

    def list(self) -> list[Volume]:
        """Every volume by name."""
        return [self._volume(row) for row in self._catalogue.query("SELECT * FROM volumes ORDER BY name")]

    def inspect(self, name: str) -> dict[str, Any]:
        """As the Engine API shows it. Raises NotFound."""
        return self.get(name).show()

    def _volume(self, row: Any) -> Volume:
        return Volume(
            name=row["name"],
            driver=row["driver"],
            mountpoint=self._root / row["name"] / "_data",
            created_ns=row["created_ns"],
            labels=json.loads(row["labels"]),
            options=json.loads(row["options"]),
            anonymous=bool(row["anonymous"]),
        )

    async def create(
        self, name: str, driver: str = "local", options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:  # fmt: skip
        """The volume `name`, made unless it is there; without a name a new anonymous one.

        One that is there is given as it is, whatever the options, as dockerd does. Raises InvalidInput, NotFound (driver),
        Unsupported (type), EngineFailure.
        """
        anonymous = not name
        name = check_volume_name(name) if name else secrets.token_hex(32)
        if driver not in ("", "local"):
            raise NotFound(
                f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found'
            )
        wanted = dict(options or {})
        try:
            parse_mount(wanted)
        except (InvalidInput, Unsupported) as fault:
            raise type(fault)(f"create {name}: {fault.message}") from None
        if self.exists(name):
            return self.get(name)
        kept = dict(labels) if labels is not None else None
        if anonymous:
            kept = {**(kept or {}), ANONYMOUS_LABEL: ""}
        self._place(name)
        tracepoint.reach("volume.placed")
        with self._catalogue.transaction(durable=not anonymous) as connection:
            connection.execute(
                "INSERT INTO volumes (name, driver, created_ns, labels, options, anonymous) VALUES (?, ?, ?, ?, ?, ?)",
                (name, "local", time.time_ns(), json.dumps(kept), json.dumps(wanted), int(anonymous)),
            )
            self._events.append("volume", "create", name, {"driver": "local"})
        tracepoint.reach("volume.recorded")
        return self.get(name)

    def _place(self, name: str) -> None:
        final, stage = self._root / name, self._stage / f"volume-{secrets.token_hex(8)}"
        try:
            self._root.mkdir(mode=0o701, exist_ok=True)
            (stage / "_data").mkdir(parents=True)
            stage.chmod(0o701)
            (stage / "_data").chmod(0o755)
            if final.is_dir() and not any((final / "_data").glob("*")):
                remove_staged(str(final))
            stage.rename(final)
        except OSError as error:
            remove_staged(str(stage))
            raise EngineFailure(f"create {name}: {error.strerror}: {error.filename}") from error

    async def remove(self, name: str, force: bool = False) -> None:
        """Remove the volume and what is in it. force: none is as good. Raises NotFound, Conflict."""
        if force and not self.exists(name):
            return
        volume = self.get(name)
        if users := self._users(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        with self._catalogue.transaction(durable=True) as connection:
            connection.execute("DELETE FROM volumes WHERE name = ?", (name,))
            self._events.append("volume", "destroy", name, {"driver": volume.driver})
        tracepoint.reach("volume.forgotten")
        self._trash.take(self._root / name)
        await self._trash.settle()

    @asynccontextmanager
    async def held_for(self, container_id: str) -> AsyncIterator[set[str]]:
        """Volumes whose names are put into the set are not removed: the container is being made, and nobody has it recorded yet."""
        names = self._coming[container_id] = set[str]()
        try:
            yield names
        finally:
            del self._coming[container_id]

    def filling(self, name: str) -> asyncio.Lock:
        """Held while the volume is filled from an image: by one container's create, and the others then find it whole."""
        return self._filling.setdefault(name, asyncio.Lock())

    def _users(self, name: str) -> Sequence[str]:
        return [*self.in_use(name), *(key for key, names in self._coming.items() if name in names)]

    async def size(self, name: str) -> int:
        """Bytes of the files in it. Raises NotFound."""
        return await asyncio.to_thread(directory_size, self.get(name).mountpoint)

    async def prune(self, accept: Callable[[Volume], bool]) -> tuple[list[str], int]:  # type: ignore[valid-type]
        """Remove every volume that nobody mounts and that `accept` accepts: (names, bytes won back)."""
        removed, won = [], 0
        for volume in self.list():
            if self._users(volume.name) or not accept(volume):
                continue
            size = await self.size(volume.name)
            try:
                await self.remove(volume.name)
            except (Conflict, NotFound):
                continue
            removed.append(volume.name)
            won += size
        self._events.append("volume", "prune", "", {"reclaimed": str(won)})
        return removed, won


def directory_size(path: Path) -> int:
    """Bytes of the regular files below `path`, a hard-linked one counted once."""
    total, seen = 0, set()
    for info in stats_below(path):
        if stat.S_ISREG(info.st_mode) and (info.st_dev, info.st_ino) not in seen:
            if info.st_nlink > 1:
                seen.add((info.st_dev, info.st_ino))
            total += info.st_size
    return total
