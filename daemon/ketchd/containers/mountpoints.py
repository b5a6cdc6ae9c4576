"""Binds, Mounts, Volumes, VolumesFrom and Tmpfs of a create request as one list of mount points. Pure.

Source: Engine API, HostConfig.Binds and Mount; messages are dockerd's.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.containers.shapes import pick
from ketchd.sandbox.targets import PROC, PROC_FILES

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
# Of each group one word at most. Source: moby volume/mounts/linux_parser.go
_MODE_GROUPS = (
    ("ro", "rw"), ("z", "Z"), ("nocopy",), ("consistent", "delegated", "cached"), _PROPAGATION,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One mount of a container. type: `bind`, `volume` or `tmpfs`. name: the volume's, "" for a new anonymous one.
    mode: as inspect shows it. make_source: a missing bind source directory is created (`-v`, not `--mount`).
    non_recursive: what is mounted below the source stays outside. implied: nobody asked for this propagation, and where the source cannot
    propagate it is rprivate."""

    type: str
    destination: str
    source: str = ""
    name: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    driver: str = ""
    no_copy: bool = False
    make_source: bool = False
    non_recursive: bool = False
    anonymous: bool = False
    subpath: str = ""
    tmpfs_options: tuple[str, ...] = ()
    driver_options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    implied: bool = False

    def to_record(self) -> dict[str, Any]:
        """For the container's record."""
        return asdict(self)

    @staticmethod
    def from_record(stored: Mapping[str, Any]) -> MountPoint:
        """The mount point again."""
        values = dict(stored)
        values["tmpfs_options"] = tuple(values.get("tmpfs_options", ()))
        return MountPoint(**values)


def parse_bind(text: str) -> MountPoint:
    """`src:dst[:opts]` or `dst`. Raises InvalidInput."""
    parts = text.split(":")
    if len(parts) > 3 or not text:
        raise InvalidInput(f"invalid volume specification: '{text[:200]}'")
    if any(not part for part in parts):
        raise InvalidInput(f"invalid spec: {text[:200]}: empty section between colons")
    if len(parts) == 1:
        return MountPoint("volume", _destination(parts[0], _wrong_bind(text)), anonymous=True, driver="local")
    source = parts[0]
    wrong = _wrong_bind(text, "bind" if source.startswith("/") else "volume")
    options = parts[2].split(",") if len(parts) == 3 else []
    if any(sum(option in group for option in options) > 1 for group in _MODE_GROUPS) or any(
        not any(option in group for group in _MODE_GROUPS) for option in options
    ):
        raise InvalidInput(f"invalid mode: {parts[2][:100]}")
    target = _destination(parts[1], wrong, bind=source.startswith("/"))
    propagation = next((option for option in options if option in _PROPAGATION), "")
    rw = "ro" not in options
    mode = ",".join(option for option in options if option not in _PROPAGATION)
    if source.startswith("/"):
        if "nocopy" in options:
            raise wrong("field VolumeOptions must not be specified")
        return MountPoint(
            "bind", target, source=posixpath.normpath(source), mode=mode, rw=rw,
            propagation=propagation or "rprivate", implied=not propagation, make_source=True,
        )  # fmt: skip
    if propagation:
        raise wrong("field BindOptions must not be specified")
    return MountPoint(
        "volume",
        target,
        name=check_volume_name(source),
        mode=mode or "z",
        rw=rw,
        driver="local",
        no_copy="nocopy" in options,
    )


def _wrong_bind(spec: str, kind: str = "volume") -> Callable[[str], InvalidInput]:
    """dockerd's words around what is wrong with a `-v`."""
    return lambda why: InvalidInput(
        f"invalid volume specification: '{spec[:200]}': invalid mount config for type \"{kind}\": {why}"
    )


def _destination(
    path: str, wrong: Callable[[str], InvalidInput] = InvalidInput, *, bind: bool = False
) -> str:
    """The cleaned path. bind: it may be /proc; whether the source is a procfs is seen where it is opened. Raises InvalidInput."""
    if not path.startswith("/"):
        raise wrong(f"invalid mount path: '{path[:200]}' mount path must be absolute")
    cleaned = posixpath.normpath(path).replace("//", "/")
    if cleaned == "/":
        raise wrong("invalid specification: destination can't be '/'")
    if (cleaned == PROC and not bind) or (cleaned.startswith(f"{PROC}/") and cleaned not in PROC_FILES):
        raise InvalidInput(f'"{cleaned[:200]}" cannot be mounted because it is inside /proc')
    if "\0" in cleaned:
        raise InvalidInput("invalid mount path: it contains a NUL byte")
    return cleaned


def check_volume_name(name: str) -> str:
    """`name`, if a local volume may be called that. Raises InvalidInput."""
    if len(name) == 1:
        raise InvalidInput(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _VOLUME_NAME.fullmatch(name) or len(name) > 255:
        raise InvalidInput(
            f'create {name[:260]}: "{name[:260]}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    return name


def parse_mount(sent: Mapping[str, Any]) -> MountPoint:
    """One item of HostConfig.Mounts. Raises InvalidInput."""
    kind = str(pick(sent, "Type", "volume"))
    source, target = str(pick(sent, "Source", "")), str(pick(sent, "Target", ""))
    readonly = bool(pick(sent, "ReadOnly", False))

    def wrong(why: str) -> InvalidInput:
        return InvalidInput(f'invalid mount config for type "{kind}": {why}')

    if not target:
        raise wrong("field Target must not be empty")
    for key, owner in (("BindOptions", "bind"), ("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs")):
        if pick(sent, key) is not None and kind != owner:
            raise wrong(f'{key} must not be specified on mount type "{kind}"')
    if kind == "bind":
        if not source:
            raise wrong("field Source must not be empty")
        if not source.startswith("/"):
            raise wrong(f"invalid mount path: '{source}' mount path must be absolute")
        options = pick(sent, "BindOptions", {})
        propagation = pick(options, "Propagation", "")
        if propagation not in ("", *_PROPAGATION):
            raise wrong(f"invalid propagation mode: {propagation}")
        return MountPoint(
            "bind", _destination(target, wrong, bind=True), source=posixpath.normpath(source), rw=not readonly,
            propagation=propagation or "rprivate", implied=not propagation,
            make_source=bool(pick(options, "CreateMountpoint", False)),
            non_recursive=bool(pick(options, "NonRecursive", False)),
        )  # fmt: skip
    if kind == "volume":
        options = pick(sent, "VolumeOptions", {})
        if not source and readonly:
            raise wrong("must not set ReadOnly mode when using anonymous volumes")
        driver = pick(options, "DriverConfig", {})
        return MountPoint(
            "volume", _destination(target, wrong), name=source and check_volume_name(source), mode="z", rw=not readonly,
            driver=pick(driver, "Name", "") or "local", driver_options=dict(pick(driver, "Options", {})),
            labels=dict(pick(options, "Labels", {})), no_copy=bool(pick(options, "NoCopy", False)),
            anonymous=not source, subpath=str(pick(options, "Subpath", "")),
        )  # fmt: skip
    if kind == "tmpfs":
        if source:
            raise wrong("field Source must not be specified")
        options = pick(sent, "TmpfsOptions", {})
        flags = ["nosuid", "nodev", "noexec"]
        if size := pick(options, "SizeBytes", 0):
            flags.append(f"size={int(size)}")
        if mode := pick(options, "Mode", 0):
            flags.append(f"mode={int(mode):o}")
        if readonly:
            flags.append("ro")
        return MountPoint("tmpfs", _destination(target, wrong), rw=not readonly, tmpfs_options=tuple(flags))
    raise wrong("mount type unknown")


def parse_tmpfs(target: str, options: str) -> MountPoint:
    """One entry of HostConfig.Tmpfs. Raises InvalidInput."""
    flags = ["noexec", "nosuid", "nodev"]
    for option in filter(None, options.split(",")):
        name = option.split("=", 1)[0]
        if name not in (
            "rw", "ro", "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "exec", "noexec", "suid",
            "nosuid", "dev", "nodev", "mpol", "noatime", "relatime", "sync", "dirsync", "huge", *_PROPAGATION,
        ):  # fmt: skip
            raise InvalidInput(f'invalid tmpfs option ["{option[:60]}"]')
        opposite = name.removeprefix("no") if name.startswith("no") else f"no{name}"
        if opposite in flags:
            flags.remove(opposite)
        if option not in flags:
            flags.append(option)
    return MountPoint("tmpfs", _destination(target), mode=options, tmpfs_options=tuple(flags))


def gather(
    host: Mapping[str, Any],
    config: Mapping[str, Any],
    inherited: Iterable[MountPoint] = (),
    *,
    data_root: str = "",
) -> list[MountPoint]:
    """Every mount point of a container; HostConfig.Tmpfs ones too. data_root: the daemon's.

    Raises InvalidInput on two for one destination, and on what each of them may not have.
    """
    points: dict[str, MountPoint] = {point.destination: point for point in inherited}
    named: set[str] = set()
    driver = host["VolumeDriver"] or "local"
    binds = [parse_bind(bind) for bind in host["Binds"] or []]
    asked = [replace(point, driver=driver) if point.type == "volume" else point for point in binds] + [
        parse_mount(item) for item in host["Mounts"] or []
    ]
    for point in asked:
        if point.destination in named:
            raise InvalidInput(f"Duplicate mount point: {point.destination}")
        named.add(point.destination)
        bound = data_root and point.type == "bind"
        points[point.destination] = _beside(point, data_root) if bound else point
    for path in config["Volumes"] or {}:
        destination = _destination(f"/{path}")  # `VOLUME data` is one of the root
        if destination not in points and destination not in (host["Tmpfs"] or {}):
            points[destination] = MountPoint("volume", destination, anonymous=True, driver="local")
    for target, options in (host["Tmpfs"] or {}).items():
        point = parse_tmpfs(target, options)
        if point.destination in named:
            raise InvalidInput(f"Duplicate mount point: {point.destination}")
        points[point.destination] = point
    return sorted(points.values(), key=lambda point: point.destination.count("/"))


def _beside(point: MountPoint, root: str) -> MountPoint:
    """A bind; with rslave, if it is of the data root, of what is in that or of what that is in: a container that has such a one for
    long must not keep what is mounted there from being unmounted. Raises InvalidInput when another propagation was asked for.

    Source: moby daemon/volumes_linux.go, validateBindDaemonRoot.
    """
    if posixpath.commonpath((point.source, root)) not in (point.source, root):
        return point
    if point.implied:
        return replace(point, propagation="rslave")
    if point.propagation not in ("rslave", "rshared"):
        raise InvalidInput(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root, '
            f'daemon root: "{root}", bind mount source: "{point.source}", propagation: "{point.propagation}"'
        )
    return point


def render(point: MountPoint) -> dict[str, Any]:
    """As inspect's Mounts shows it."""
    shown: dict[str, Any] = {"Type": point.type}
    if point.type == "volume":
        shown["Name"] = point.name
    shown.update(Source=point.source, Destination=point.destination)
    if point.type == "volume":
        shown["Driver"] = point.driver
    shown.update(Mode=point.mode, RW=point.rw, Propagation=point.propagation)
    return shown
