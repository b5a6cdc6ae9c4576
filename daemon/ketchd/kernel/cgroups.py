"""Cgroups: each container's resources, limits and device policy, whatever version of cgroups the host has.

A container lies at PARENT/ID below the base (`/docker/ID` unless HostConfig.CgroupParent says otherwise). `plan` is carried
out at the start, by the child (`ketchd.kernel.cgroupjoin`); everything else acts at once and takes an id. A host where we
may make no cgroups gets empty plans and a warning for each limit.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ketch_wire.faults import EngineFailure, InvalidInput
from ketch_wire.launch import CgroupPlan
from ketchd.kernel import cgrouplimits
from ketchd.kernel.cgroup1 import CgroupsV1
from ketchd.kernel.cgroup2 import CgroupsV2
from ketchd.kernel.cgrouphost import Mounted, choose_base, own_path, read_mountinfo
from ketchd.kernel.cgroupjoin import NotTaken, write_limit
from ketchd.kernel.cgrouptree import CgroupTree, read, remove_directory
from ketchd.kernel.cgroupusage import Usage
from ketchd.kernel.devicepolicy import DEFAULT_RULES, DeviceRule, parse_rule
from ketchd.kernel.nodes import device_nodes

DEFAULT_PARENT = "docker"
_KILL_ROUNDS, _KILL_PAUSE_SECONDS = 16, 0.001


class Cgroups:
    """version: 1 (also on a hybrid host) or 2. tree: None where no cgroup can be made.

    ready: sees that the base is there, before something is made below it; it may raise OSError.
    """

    def __init__(
        self, version: int, tree: CgroupTree | None, log: Any = None, ready: Callable[[], None] | None = None
    ) -> None:
        self.version = version
        self._tree = tree
        self._log = log
        self._ready = ready
        self._places: dict[str, str] = {}  # id -> path, of those that do not lie below the default parent
        self._parents: set[str] = set()
        self._removals: dict[str, object] = {}  # id -> the token of the thread that still tries
        self._lock = threading.Lock()

    @staticmethod
    def detect(
        log: Any,
        mountinfo: str | None = None,
        *,
        pid: int | str = "self",
        ready: Callable[[], None] | None = None,
    ) -> Cgroups:
        """What this host offers. On version 2 our own processes may move into a leaf of the delegated subtree, which is
        that of process `pid`."""
        mounted = read_mountinfo(read("/proc/self/mountinfo") if mountinfo is None else mountinfo)
        tree: CgroupTree | None = None
        if mounted.version == 1:
            tree = _version1(mounted, log)
        elif mounted.version == 2:
            tree = _version2(mounted, log, pid)
        if tree is None:
            log.warning(
                "no cgroups can be made: containers get no limits, no device policy, no pause, no stats"
            )
        return Cgroups(2 if mounted.version == 2 else 1, tree, log, ready)

    @property
    def driver(self) -> str:
        """As `info` names it."""
        return "cgroupfs" if self._tree is not None else "none"

    def has(self, file: str) -> bool:
        """Whether a limit's file exists (`memory/memory.limit_in_bytes` on version 1, `memory.max` on version 2)."""
        return self._tree is not None and self._tree.has(file)

    def place(self, container_id: str, parent: str) -> str:
        """Remember where a container lies; returns its path. Called by `plan`, and for every container found at start."""
        path = _path(parent, container_id)
        if posixpath.dirname(path) != DEFAULT_PARENT:
            self._places[container_id] = path
        return path

    def path(self, container_id: str) -> str:
        """Where the container lies, relative to the base."""
        return self._places.get(container_id, f"{DEFAULT_PARENT}/{container_id}")

    def plan(self, container_id: str, parent: str, host_config: Mapping[str, Any]) -> CgroupPlan:
        """What a start carries out. Makes the parent. Raises InvalidInput (device rules), EngineFailure (devices, the host)."""
        if self._tree is None:
            return CgroupPlan()
        with self._lock:
            self._removals.pop(container_id, None)
        path = self.place(container_id, parent)
        above = posixpath.dirname(path)
        rules = device_rules(host_config)
        try:
            if self._ready is not None:
                self._ready()
            self._tree.prepare(above)
            writes, device_program = self._tree.writes(path, host_config, rules)
        except OSError as error:
            raise EngineFailure(f"failed to prepare cgroup {path}: {_reason(error)}") from error
        self._parents.add(above)
        return CgroupPlan(self._tree.directories(path), tuple(writes), device_program)

    def update(self, container_id: str, host_config: Mapping[str, Any]) -> None:
        """Write the limits of `host_config` (0, None and "" leave a limit) to a running container's cgroup.

        Raises EngineFailure with the kernel's reason, or with dockerd's words for what it did not take; limits written before it stay.
        """
        if self._tree is None:
            return
        path = self.path(container_id)
        try:
            for file, value in self._tree.changes(path, host_config):
                write_limit(file, value)
        except NotTaken as error:
            raise EngineFailure(
                f"runc did not terminate successfully: exit status 1: {error}\n: unknown"
            ) from error
        except OSError as error:
            raise EngineFailure(f"failed to update cgroup {path}: {_reason(error)}") from error

    def kill(self, container_id: str) -> None:
        """End every process of the container, one that stands still too: its shim is gone, and nobody else would. Never raises.

        Blocks for 20 ms as a rule.
        """
        path = self.path(container_id)
        for _ in range(_KILL_ROUNDS):  # a process may fork while its siblings are killed
            pids = self.pids(container_id)
            if self._tree is None or not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError, TimeoutError):
                if self._tree.is_frozen(path):
                    self._tree.thaw(path)
            time.sleep(_KILL_PAUSE_SECONDS)

    def remove(self, container_id: str) -> None:
        """Remove the container's directories. Nothing is killed: what is not empty is tried again, aside.

        May be called twice. Never raises. Blocks for 15 ms at most.
        """
        if self._tree is None:
            return
        stay = list(self._tree.directories(self.path(container_id)))
        for pause in (0.0, 0.001, 0.002, 0.004, 0.008):
            time.sleep(pause)
            stay = [one for one in stay if not remove_directory(one)]
            if not stay:
                self._places.pop(container_id, None)
                return
        token = self._removals[container_id] = object()
        threading.Thread(target=self._remove_later, args=(container_id, token, stay), daemon=True).start()

    def _remove_later(self, container_id: str, token: object, stay: list[str]) -> None:
        """Dying processes leave late. A new start of the same container ends it."""
        for pause in (0.05, 0.1, 0.2, 0.5, 1, 2, 5):
            time.sleep(pause)
            with self._lock:
                if self._removals.get(container_id) is not token:
                    return
                stay = [one for one in stay if not remove_directory(one)]
                if not stay:
                    del self._removals[container_id]
                    self._places.pop(container_id, None)
                    return
        with self._lock:
            if self._removals.get(container_id) is token:
                del self._removals[container_id]
        if self._log is not None:
            self._log.warning("cgroup stays, it is not empty", container=container_id, directories=stay)

    def freeze(self, container_id: str) -> None:
        """Stop every process. Raises EngineFailure. Blocks until they stand still."""
        self._freezer(container_id, "pause")

    def thaw(self, container_id: str) -> None:
        """Let every process run again. Raises EngineFailure."""
        self._freezer(container_id, "unpause")

    def is_frozen(self, container_id: str) -> bool | None:
        """Whether it was told to stand still; None where that cannot be seen."""
        try:
            return None if self._tree is None else self._tree.is_frozen(self.path(container_id))
        except OSError:
            return None

    def _freezer(self, container_id: str, what: str) -> None:
        if self._tree is None:
            raise EngineFailure(
                f"cannot {what} container {container_id}: the host gives us no freezer cgroup"
            )
        act = self._tree.freeze if what == "pause" else self._tree.thaw
        try:
            act(self.path(container_id))
        except (OSError, TimeoutError) as error:
            raise EngineFailure(f"cannot {what} container {container_id}: {_reason(error)}") from error

    def usage(self, container_id: str) -> Usage | None:
        """Counters now; None when the container has no cgroup."""
        return None if self._tree is None else self._tree.usage(self.path(container_id))

    def pids(self, container_id: str) -> list[int]:
        """Every process of the container, in the host's numbers. Empty when there is no cgroup."""
        return [] if self._tree is None else self._tree.pids(self.path(container_id))

    def discard(self, host_config: dict[str, Any]) -> list[str]:
        """Take out what this host cannot set, so that nobody sees a limit that is none; dockerd's warning for each."""
        warnings = []
        for warning, instead in cgrouplimits.missing(host_config, self.has, self.version):
            warnings.append(warning)
            host_config.update(instead)
        if self._tree is not None and not self._tree.has_device_policy:
            rules = host_config.get("DeviceCgroupRules") or host_config.get("Devices")
            if rules and not host_config.get("Privileged"):
                warnings.append(
                    "Your kernel does not let us set a device policy. Device cgroup rules discarded."
                )
        return warnings

    def check(self, host_config: Mapping[str, Any]) -> None:
        """dockerd's refusals that depend on the host. Raises InvalidInput."""
        if host_config.get("NanoCpus") and not cgrouplimits.has_cpu_quota(self.has, self.version):
            raise InvalidInput(
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"
            )
        kernel = host_config.get("KernelMemory") or 0
        if 0 < kernel < 6 * 1024 * 1024 and self.version == 1 and self.has(cgrouplimits.KERNEL_MEMORY):
            raise InvalidInput("Minimum kernel memory limit allowed is 6MB")
        for text in host_config.get("DeviceCgroupRules") or []:
            parse_rule(text)
        for key, what, words, file in (
            ("CpusetCpus", "cpus", "CPUs", "/sys/devices/system/cpu/online"),
            ("CpusetMems", "mems", "memory nodes", "/sys/devices/system/node/online"),
        ):
            wanted = host_config.get(key)
            if wanted:
                _check_set(str(wanted), what, words, file)

    def close(self) -> None:
        """Remove the parents that hold nothing any more."""
        if self._tree is None:
            return
        for parent in self._parents:
            parts = parent.split("/")
            for length in range(len(parts), 0, -1):
                for directory in self._tree.directories("/".join(parts[:length])):
                    try:
                        os.rmdir(directory)
                    except OSError:
                        continue
        self._parents.clear()


def device_rules(host_config: Mapping[str, Any]) -> list[DeviceRule] | None:
    """The defaults, those of Devices and DeviceCgroupRules; None (everything) when privileged. Raises InvalidInput, EngineFailure."""
    if host_config.get("Privileged"):
        return None
    rules = list(DEFAULT_RULES)
    for one in host_config.get("Devices") or []:
        path, access = one["PathOnHost"], one.get("CgroupPermissions") or "rwm"
        if not re.fullmatch("[rwm]{1,3}", access):
            raise InvalidInput(f"invalid mode for device {path[:200]}: {access[:40]}")
        try:
            nodes = device_nodes(path)
        except (OSError, ValueError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            raise EngineFailure(
                f'error gathering device information while adding custom device "{path[:200]}": {reason}'
            ) from error
        rules += [DeviceRule(node.kind, node.major, node.minor, access) for node in nodes]
    rules += [parse_rule(text) for text in host_config.get("DeviceCgroupRules") or []]
    return rules


def _path(parent: str, container_id: str) -> str:
    """`parent/id` without a way out of the base."""
    above = posixpath.normpath("/" + (parent or DEFAULT_PARENT)).strip("/") or DEFAULT_PARENT
    if "\0" in above:
        raise InvalidInput("invalid cgroup parent: it contains a NUL byte")
    return f"{above}/{container_id}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}: {error.filename}"
    return str(error)


def _check_set(wanted: str, what: str, words: str, file: str) -> None:
    try:
        asked = cgrouplimits.cpu_list(wanted)
    except ValueError:
        raise InvalidInput(
            f"Invalid value {wanted[:100]} for cpuset {what}: invalid format: {wanted[:100]}"
        ) from None
    try:
        available = read(file).strip()
    except OSError:
        return
    if not asked <= cgrouplimits.cpu_list(available):
        raise InvalidInput(
            f"Requested {words} are not available - requested {wanted[:100]}, available: {available}"
        )


def _version1(mounted: Mounted, log: Any) -> CgroupTree | None:
    writable = {
        name: point for name, point in mounted.hierarchies.items() if os.access(point, os.W_OK | os.X_OK)
    }
    lost = sorted(mounted.hierarchies.keys() - writable.keys() - {"systemd"})
    if lost:
        log.warning("cgroup hierarchies cannot be written", controllers=lost)
    if not writable.keys() - {"systemd"}:
        return None
    tree = CgroupsV1(writable)
    if not tree.has_device_policy:
        log.warning("the device policy cannot be set: there is no devices cgroup that we may write")
    return tree


def _version2(mounted: Mounted, log: Any, pid: int | str) -> CgroupTree | None:
    base = choose_base(mounted.unified, own_path(read(f"/proc/{pid}/cgroup")))
    if not os.access(base, os.W_OK | os.X_OK):
        return None
    tree = CgroupsV2(base)
    try:
        tree.evacuate()
    except OSError as error:
        log.warning("our own processes cannot leave the cgroup of the containers", reason=_reason(error))
    absent = sorted(set(("cpu", "memory", "pids")) - tree.controllers())
    if absent:
        log.warning("cgroup controllers are missing", base=base, controllers=absent)
    if not tree.has_device_policy:
        log.warning("the device policy cannot be set: bpf(2) is refused")
    return tree
