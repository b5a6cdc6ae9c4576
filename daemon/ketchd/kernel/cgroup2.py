"""Version 2: one directory, controllers enabled from the top down. Source: admin-guide/cgroup-v2.rst."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from ketchd.kernel import bpf
from ketchd.kernel.cgroup1 import device_number
from ketchd.kernel.cgrouphost import LEAF, WANTED_V2
from ketchd.kernel.cgroupjoin import write
from ketchd.kernel.cgrouplimits import Writes, limits_v2
from ketchd.kernel.cgrouptree import FREEZE_SECONDS, processes_below, read
from ketchd.kernel.cgroupusage import Usage, numbers, usage_v2
from ketchd.kernel.devicepolicy import DEFAULT_RULES, DeviceRule, program


class CgroupsV2:
    """Satisfies CgroupTree. base: the directory below which everything is made; its parents are somebody else's."""

    version = 2

    def __init__(self, base: str) -> None:
        self.base = base
        self._files: dict[str, bool] = {}
        self._sample = ""  # a cgroup of ours, in which to look for the files of its kind
        try:
            os.close(bpf.load_device_program(program(DEFAULT_RULES)))
            self.has_device_policy = True
        except (OSError, KeyError):
            # Not ours to do: then we are contained ourselves, and the policy of our own container holds.
            self.has_device_policy = False

    def controllers(self) -> set[str]:
        """Those that our children can be given."""
        try:
            return set(read(f"{self.base}/cgroup.controllers").split())
        except OSError:
            return set()

    def evacuate(self) -> None:
        """Move every process of the base into a leaf, unless it is the top of the machine. Raises OSError."""
        if not os.path.exists(f"{self.base}/cgroup.type"):
            return
        leaf = f"{self.base}/{LEAF}"
        for _ in range(10):  # processes fork meanwhile
            inside = read(f"{self.base}/cgroup.procs").split()
            if not inside:
                return
            os.makedirs(leaf, exist_ok=True)
            for pid in inside:
                try:
                    write(f"{leaf}/cgroup.procs", pid)
                except ProcessLookupError:
                    continue

    def has(self, file: str) -> bool:
        if "/" in file:
            return False  # a name of version 1's
        if self._sample:
            if file not in self._files:
                self._files[file] = os.path.exists(f"{self._sample}/{file}")
            return self._files[file]
        controller = file.partition(".")[0]
        return controller in self.controllers() and (
            file != "memory.swap.max" or os.path.exists("/proc/swaps")
        )

    def directories(self, path: str) -> tuple[str, ...]:
        return (f"{self.base}/{path}",)

    def prepare(self, parent: str) -> None:
        current = self.base
        for part in ["", *parent.split("/")]:
            if part:
                current = f"{current}/{part}"
                os.makedirs(current, 0o755, exist_ok=True)
            self._enable(current)
        if self._sample != current:
            self._sample, self._files = current, {}

    def _enable(self, directory: str) -> None:
        """Each controller on its own: one that cannot be had must not cost the others."""
        enabled = read(f"{directory}/cgroup.subtree_control").split()
        offered = read(f"{directory}/cgroup.controllers").split()
        for controller in WANTED_V2:
            if controller in offered and controller not in enabled:
                try:
                    write(f"{directory}/cgroup.subtree_control", f"+{controller}")
                except OSError:
                    continue  # `missing` says what it costs

    def writes(
        self, path: str, host: Mapping[str, Any], rules: list[DeviceRule] | None
    ) -> tuple[Writes, bytes]:
        device_program = program(rules) if rules is not None and self.has_device_policy else b""
        return self.changes(path, host), device_program

    def changes(self, path: str, host: Mapping[str, Any]) -> Writes:
        return [
            (f"{self.base}/{path}/{file}", value) for file, value in limits_v2(host, self.has, device_number)
        ]

    def freeze(self, path: str) -> None:
        self._freezer(path, 1)

    def thaw(self, path: str) -> None:
        self._freezer(path, 0)

    def is_frozen(self, path: str) -> bool:
        return read(f"{self.base}/{path}/cgroup.freeze") == "1"

    def _freezer(self, path: str, wanted: int) -> None:
        directory = f"{self.base}/{path}"
        write(f"{directory}/cgroup.freeze", str(wanted))
        deadline = time.monotonic() + FREEZE_SECONDS
        while numbers(read(f"{directory}/cgroup.events")).get("frozen") != wanted:
            if time.monotonic() > deadline:
                if wanted:
                    write(f"{directory}/cgroup.freeze", "0")
                raise TimeoutError(f"{directory} does not become frozen={wanted}")
            time.sleep(0.0005)

    def usage(self, path: str) -> Usage | None:
        def text(file: str) -> str:
            try:
                return read(f"{self.base}/{path}/{file}")
            except OSError:
                return ""

        return usage_v2(text) if os.path.isdir(f"{self.base}/{path}") else None

    def pids(self, path: str) -> list[int]:
        return processes_below(f"{self.base}/{path}")
