"""LaunchPlan: everything a shim needs to know to start one contained process, as plain data.

Made by ketchd (pure, from records), carried to the launcher as one msgpack frame, carried out by `ketchd.shim` and
`ketchd.sandbox`. Plans hold names and numbers only: no decision is left to the process that executes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

PLAN_VERSION = 1
JOURNAL_SOCKET = "/run/systemd/journal/socket"


@dataclass(frozen=True, slots=True)
class LayerMount:
    """One read-only layer. kind: `erofs` (a file, mounted file-backed), `erofs-loop` (the same by loop device) or
    `directory`. path: absolute on the host."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class RootPlan:
    """The overlay root. layers: TOP FIRST (as overlayfs lists them), the init layer included. upper, work: absolute host directories."""

    layers: tuple[LayerMount, ...]
    upper: str
    work: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class MountPlan:
    """One mount below the new root, done in order. type: `bind` (source: host path), `tmpfs`, `proc`, `sysfs`,
    `mqueue`, `devpts`, `cgroup` (version 2's hierarchy), `symlink` (source: the link's text, no mount), `remount` (the
    mount that lies at target gets options; a tmpfs becomes read-only after it was filled).
    options: as mount(8) names them (`ro`, `nosuid`, `size=64m`, `rbind`, `rprivate` …)."""

    target: str
    type: str
    source: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A device node to make below /dev. kind `c` or `b`. source: the host's node, where it is not at `path`."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """What is executed. user: Docker's `user[:group]`, resolved inside the container's own passwd and group files.
    capabilities: names (`CAP_CHOWN`) of bounding/permitted/effective sets, clipped to what the launcher has.
    rlimits: name (`nofile`) -> (soft, hard), -1 unlimited. seccomp: assembled BPF, empty for none."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    groups: tuple[str, ...] = ()
    tty: bool = False
    console_size: tuple[int, int] = (0, 0)  # height, width
    open_stdin: bool = False
    stdin_once: bool = False
    capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: bytes = b""
    rlimits: dict[str, tuple[int, int]] = field(default_factory=dict)
    oom_score_adj: int = 0
    init: bool = False  # run our own PID 1 that reaps and forwards signals


@dataclass(frozen=True, slots=True)
class CgroupPlan:
    """Absolute cgroup directories to make and join, and files to write before that, in order: (path, value).
    device_program: BPF_PROG_TYPE_CGROUP_DEVICE instructions for join[0] (version 2), empty for none.
    Carried out by `ketchd.kernel.cgroupjoin`: `make` from outside, `enter` by the child itself, which on version 1 spares
    the wait for an RCU period that moving another process costs (8 ms a start)."""

    join: tuple[str, ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    device_program: bytes = b""


@dataclass(frozen=True, slots=True)
class LogPlan:
    """driver `json-file`, `local`, `journald` or `none`. path: the file that `logs` reads, "" for none (the journal's is a
    copy); rotated at max_size bytes (0: never), max_files kept, older ones compressed if `compress`.
    attrs: a JSON object that every entry carries, b"" for none. journal: the fields of every message to the journal."""

    driver: str = "json-file"
    path: str = ""
    max_size: int = 16 * 1024 * 1024
    max_files: int = 3
    compress: bool = False
    attrs: bytes = b""
    journal: dict[str, str] = field(default_factory=dict)
    journal_socket: str = JOURNAL_SOCKET


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One container to start.

    namespaces: for each of mount, pid, network, uts, ipc, cgroup: `new`, `host` or `pid:N` (join that process's); with a
    uid_map `user: pid:N` as well, when that is another's, which the other joined ones belong to.
    netlink: raw rtnetlink messages that the child sends inside its own network namespace after the gate opened
    (loopback up, address, routes), in order.
    state_dir: durable, holds `exit` (msgpack: code, oom, finished_ns) when it has ended.
    run_dir: holds `shim.sock` (0600).
    transient: it ends with the ketchd that started it (a build step).
    uid_map, gid_map: (inside, outside, count) of a user namespace of its own, empty for none. Layers, the writable layer and
    binds with the option `idmap` are shown with shifted ids there."""

    id: str
    root: RootPlan
    process: ProcessPlan
    run_dir: str
    state_dir: str
    namespaces: dict[str, str] = field(default_factory=dict)
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[MountPlan, ...] = ()
    devices: tuple[DevicePlan, ...] = ()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    cgroup: CgroupPlan = field(default_factory=CgroupPlan)
    log: LogPlan = field(default_factory=LogPlan)
    netlink: tuple[bytes, ...] = ()
    transient: bool = False
    uid_map: tuple[tuple[int, int, int], ...] = ()
    gid_map: tuple[tuple[int, int, int], ...] = ()
    version: int = PLAN_VERSION

    def to_wire(self) -> dict[str, Any]:
        """As a map for `frames.pack`."""
        wire: dict[str, Any] = to_plain(self)
        return wire

    def outline(self) -> list[Any]:
        """What the shim itself acts on, by position (`ketchd.shim.plans.outline` reads it). The child alone opens the whole plan.

        Namespaces that need nothing of the shim are left out.
        """
        process, cgroup, log = self.process, self.cgroup, self.log
        return [
            self.id, self.state_dir, self.run_dir, self.transient,
            {kind: wanted for kind, wanted in self.namespaces.items() if kind == "pid" or wanted.startswith("pid:")},
            self.uid_map, self.gid_map, [(layer.kind, layer.path) for layer in self.root.layers],
            (process.tty, process.open_stdin, process.stdin_once),
            (cgroup.join, cgroup.writes, cgroup.device_program),
            (log.driver, log.path, log.max_size, log.max_files, log.compress, log.attrs, log.journal, log.journal_socket),
        ]  # fmt: skip

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> LaunchPlan:
        """The plan again. Raises KeyError or TypeError on what is no plan. Unknown keys (a newer daemon's) are left out."""
        return LaunchPlan(
            id=wire["id"],
            root=RootPlan(
                layers=tuple(_build(LayerMount, layer) for layer in wire["root"]["layers"]),
                upper=wire["root"]["upper"],
                work=wire["root"]["work"],
                readonly=wire["root"]["readonly"],
            ),
            process=_build(ProcessPlan, wire["process"]),
            run_dir=wire["run_dir"],
            state_dir=wire["state_dir"],
            namespaces=dict(wire["namespaces"]),
            hostname=wire["hostname"],
            domainname=wire["domainname"],
            mounts=tuple(_build(MountPlan, mount) for mount in wire["mounts"]),
            devices=tuple(_build(DevicePlan, device) for device in wire["devices"]),
            masked_paths=tuple(wire["masked_paths"]),
            readonly_paths=tuple(wire["readonly_paths"]),
            sysctls=dict(wire["sysctls"]),
            cgroup=_build(CgroupPlan, wire["cgroup"]),
            log=_build(LogPlan, wire["log"]),
            netlink=tuple(wire.get("netlink", ())),
            transient=wire.get("transient", False),
            uid_map=_tupled(wire.get("uid_map", [])),
            gid_map=_tupled(wire.get("gid_map", [])),
            version=wire["version"],
        )


def to_plain(value: Any) -> Any:
    """A plan as maps and lists. What dataclasses.asdict does, without copying what cannot change: a tenth of the time."""
    names = getattr(value, "__dataclass_fields__", None)
    if names is not None:
        return {name: to_plain(getattr(value, name)) for name in names}
    if type(value) is tuple and value and hasattr(value[0], "__dataclass_fields__"):
        return [to_plain(item) for item in value]
    return value


def _build(kind: Any, wire: dict[str, Any]) -> Any:
    known = {entry.name for entry in fields(kind)}
    return kind(**{key: _tupled(value) for key, value in wire.items() if key in known})


def _tupled(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tupled(item) for item in value)
    if isinstance(value, dict):
        return {key: _tupled(item) for key, item in value.items()}
    return value
