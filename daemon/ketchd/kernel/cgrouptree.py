"""CgroupTree: what the two cgroup versions have in common, as the engine needs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from ketchd.kernel.cgrouplimits import Writes
from ketchd.kernel.cgroupusage import Usage
from ketchd.kernel.devicepolicy import DeviceRule

FREEZE_SECONDS = 10.0


class CgroupTree(Protocol):
    """One hierarchy or several. path: relative to the tree's base, `docker/ID`. Directories are absolute."""

    version: int
    has_device_policy: bool

    def has(self, file: str) -> bool:
        """Whether the host has the limit's file (`memory/memory.limit_in_bytes`, `memory.max`)."""
        ...

    def directories(self, path: str) -> tuple[str, ...]:
        """Where `path` lies, in each hierarchy."""
        ...

    def prepare(self, parent: str) -> None:
        """Make `parent` usable for children: directories, controllers, cpuset. Cheap when it is already. Raises OSError."""
        ...

    def writes(
        self, path: str, host: Mapping[str, Any], rules: list[DeviceRule] | None
    ) -> tuple[Writes, bytes]:
        """Absolute files and values for a new cgroup, and a device program. rules None: every device."""
        ...

    def changes(self, path: str, host: Mapping[str, Any]) -> Writes:
        """The same for one that exists. Raises OSError."""
        ...

    def freeze(self, path: str) -> None:
        """Stop every process; returns when all stand still. Raises OSError, TimeoutError."""
        ...

    def thaw(self, path: str) -> None:
        """Let them run again."""
        ...

    def is_frozen(self, path: str) -> bool:
        """Whether `freeze` was the last of both. Raises OSError."""
        ...

    def usage(self, path: str) -> Usage | None:
        """Counters now; None when it is gone."""
        ...

    def pids(self, path: str) -> list[int]:
        """Processes, those of cgroups below included."""
        ...


def read(path: str) -> str:
    """A cgroup file's text without the last line feed. Raises OSError."""
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().rstrip("\n")


def processes_below(directory: str) -> list[int]:
    """Pids in `directory` and every cgroup below. Empty when it is gone."""
    found: list[int] = []
    for where, _, files in os.walk(directory):
        if "cgroup.procs" in files:
            try:
                found += [int(line) for line in read(f"{where}/cgroup.procs").split()]
            except OSError:
                continue
    return found


def remove_directory(directory: str) -> bool:
    """rmdir `directory` and what lies below; True when it is gone. Never raises."""
    for _ in range(2):
        try:
            os.rmdir(directory)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            below = _children(directory)
            if not below or not all([remove_directory(one) for one in below]):
                return False
    return False


def _children(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
