"""Version 1 (and hybrid hosts): one directory in each controller's hierarchy. Source: admin-guide/cgroup-v1."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from ketchd.kernel.cgroupjoin import write
from ketchd.kernel.cgrouplimits import Writes, limits_v1, memory_v1
from ketchd.kernel.cgrouptree import FREEZE_SECONDS, processes_below, read
from ketchd.kernel.cgroupusage import Usage, limit, usage_v1
from ketchd.kernel.devicepolicy import DeviceRule, lines
from ketchd.kernel.nodes import device_nodes


def device_number(path: str) -> str:
    """`major:minor` of the device at `path`. Raises OSError."""
    nodes = device_nodes(path)
    if len(nodes) != 1 or nodes[0].below:
        raise OSError(15, "not a block device", path)
    return f"{nodes[0].major}:{nodes[0].minor}"


class CgroupsV1:
    """Satisfies CgroupTree. hierarchies: controller -> mount point, only those we may write to."""

    version = 1

    def __init__(self, hierarchies: Mapping[str, str]) -> None:
        self._points = dict(hierarchies)
        self.has_device_policy = "devices" in hierarchies
        # memory comes first: the shim looks for an OOM in the directory it finds there.
        order = sorted(
            set(hierarchies.values()), key=lambda point: (point != hierarchies.get("memory"), point)
        )
        self._mounts = tuple(order)

    def has(self, file: str) -> bool:
        controller, _, name = file.partition("/")
        if controller not in self._points:
            return False
        # The top has no limit of its own, so no file for it.
        return name == "pids.max" or os.path.exists(f"{self._points[controller]}/{name}")

    def directories(self, path: str) -> tuple[str, ...]:
        return tuple(f"{mount}/{path}" for mount in self._mounts)

    def _at(self, controller: str, path: str) -> str:
        """The directory in the controller's hierarchy. Raises OSError when the host has none."""
        if controller not in self._points:
            raise OSError(19, f"the host has no {controller} cgroup", path)
        return f"{self._points[controller]}/{path}"

    def prepare(self, parent: str) -> None:
        for directory in self.directories(parent):
            if not os.path.isdir(directory):
                os.makedirs(directory, 0o755, exist_ok=True)
        self._fill_cpuset(parent)

    def _fill_cpuset(self, path: str) -> None:
        """A cpuset is made empty, and takes no process before it has CPUs and memory nodes: its parent's."""
        if "cpuset" not in self._points:
            return
        current = self._points["cpuset"]
        for part in path.split("/"):
            above, current = current, f"{current}/{part}"
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not read(f"{current}/{file}").strip():
                    write(f"{current}/{file}", read(f"{above}/{file}").strip())

    def writes(
        self, path: str, host: Mapping[str, Any], rules: list[DeviceRule] | None
    ) -> tuple[Writes, bytes]:
        found: Writes = []
        if "cpuset" in self._points:
            parent = self._at("cpuset", os.path.dirname(path))
            for file, key in (("cpuset.cpus", "CpusetCpus"), ("cpuset.mems", "CpusetMems")):
                if not host.get(key):
                    found.append((f"cpuset/{file}", read(f"{parent}/{file}").strip()))
        if "devices" in self._points and rules is not None:
            found.append(("devices/devices.deny", "a"))
            found += [("devices/devices.allow", line) for line in lines(rules)]
        found += limits_v1(host, self.has, device_number)
        return self._absolute(path, found), b""

    def _absolute(self, path: str, relative: Writes) -> Writes:
        placed = []
        for file, value in relative:
            controller, _, name = file.partition("/")
            placed.append((f"{self._points[controller]}/{path}/{name}", value))
        return placed

    def changes(self, path: str, host: Mapping[str, Any]) -> Writes:
        wanted = limits_v1(host, self.has, device_number)
        memory = [
            one for one in wanted if one[0].endswith(("/memory.limit_in_bytes", ".memsw.limit_in_bytes"))
        ]
        if len(memory) == 2:
            now = limit(read(self._at("memory", path) + "/memory.memsw.limit_in_bytes"))
            swap = host.get("MemorySwap") or 0
            memory = memory_v1(host, self.has, raise_first=now is not None and (swap < 0 or swap > now))
        others = [one for one in wanted if one not in memory]
        return self._absolute(path, [*memory, *others])

    def freeze(self, path: str) -> None:
        self._freezer(path, "FROZEN")

    def thaw(self, path: str) -> None:
        self._freezer(path, "THAWED")

    def is_frozen(self, path: str) -> bool:
        return read(self._at("freezer", path) + "/freezer.self_freezing") == "1"

    def _freezer(self, path: str, wanted: str) -> None:
        """A process that forks meanwhile can hold the state at FREEZING: thaw for a moment and try again, as runc does."""
        file = self._at("freezer", path) + "/freezer.state"
        deadline = time.monotonic() + FREEZE_SECONDS
        tries = 0
        while True:
            write(file, wanted)
            for _ in range(25):
                if read(file) == wanted:
                    return
                time.sleep(0.0005)
            tries += 1
            if time.monotonic() > deadline:
                if wanted == "FROZEN":
                    write(file, "THAWED")
                raise TimeoutError(f"{file} does not become {wanted}")
            if wanted == "FROZEN" and tries % 50 == 49:
                write(file, "THAWED")
                time.sleep(0.01)

    def usage(self, path: str) -> Usage | None:
        def text(file: str) -> str:
            controller, _, name = file.partition("/")
            try:
                return read(f"{self._points[controller]}/{path}/{name}")
            except (OSError, KeyError):
                return ""

        if not any(os.path.isdir(directory) for directory in self.directories(path)):
            return None
        return usage_v1(text, os.sysconf("SC_CLK_TCK"))

    def pids(self, path: str) -> list[int]:
        for controller in ("pids", "memory", "freezer", "cpu", "devices"):
            if controller in self._points:
                return processes_below(self._at(controller, path))
        return []
