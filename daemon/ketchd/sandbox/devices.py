"""Device nodes of the host, as plans for a container's /dev."""

from __future__ import annotations

import os
import stat

from ketch_wire.faults import EngineFailure
from ketch_wire.launch import DevicePlan

# Mounts of the container's own, and what belongs to the host's terminals and managers.
_LEFT_OUT = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx"))


def all_host_devices() -> list[DevicePlan]:
    """Every device node below /dev, for --privileged."""
    found: list[DevicePlan] = []
    for entry in sorted(os.listdir("/dev")):
        if entry not in _LEFT_OUT:
            found += _below(f"/dev/{entry}", f"/dev/{entry}")
    return found


def host_devices(host_path: str, container_path: str) -> list[DevicePlan]:
    """The node at `host_path` (links followed), or every node below a directory, placed at `container_path`.

    Raises EngineFailure with dockerd's words when there is none.
    """
    try:
        real = os.path.realpath(host_path, strict=True)
        found = _below(real, container_path)
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        raise EngineFailure(
            f'error gathering device information while adding custom device "{host_path[:200]}": {reason}'
        ) from error
    if not found:
        raise EngineFailure(
            f'error gathering device information while adding custom device "{host_path[:200]}": not a device node'
        )
    return found


def _below(path: str, shown: str) -> list[DevicePlan]:
    info = os.lstat(path)
    if stat.S_ISDIR(info.st_mode):
        found: list[DevicePlan] = []
        for entry in sorted(os.listdir(path)):
            try:
                found += _below(f"{path}/{entry}", f"{shown}/{entry}")
            except OSError:
                continue  # gone, or not ours to see
        return found
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b" if stat.S_ISBLK(info.st_mode) else ""
    if not kind:
        return []
    return [
        DevicePlan(
            shown, kind, os.major(info.st_rdev), os.minor(info.st_rdev), stat.S_IMODE(info.st_mode), info.st_uid,
            info.st_gid,
        )
    ]  # fmt: skip
