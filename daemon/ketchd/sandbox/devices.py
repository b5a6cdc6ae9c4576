"""Device nodes of the host, as plans for a container's /dev."""

from __future__ import annotations

import os

from ketch_wire.faults import EngineFailure
from ketch_wire.launch import DevicePlan
from ketchd.kernel.nodes import device_nodes

# Mounts of the container's own, and what belongs to the host's terminals and managers.
_LEFT_OUT = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx"))


def all_host_devices() -> list[DevicePlan]:
    """Every device node below /dev, for --privileged."""
    found: list[DevicePlan] = []
    for entry in sorted(os.listdir("/dev")):
        if entry not in _LEFT_OUT and not os.path.islink(f"/dev/{entry}"):
            found += _plans(f"/dev/{entry}", f"/dev/{entry}")
    return found


def host_devices(host_path: str, container_path: str) -> list[DevicePlan]:
    """The node at `host_path` (links followed), or every node below a directory, placed at `container_path`.

    Raises EngineFailure with dockerd's words when there is none.
    """
    words = f'error gathering device information while adding custom device "{host_path[:200]}"'
    try:
        found = _plans(host_path, container_path)
    except OSError as error:
        raise EngineFailure(f"{words}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise EngineFailure(f"{words}: {error}") from error
    if not found:
        raise EngineFailure(f"{words}: not a device node")
    return found


def _plans(path: str, shown: str) -> list[DevicePlan]:
    return [
        DevicePlan(
            shown + node.below,
            node.kind,
            node.major,
            node.minor,
            node.mode,
            node.uid,
            node.gid,
            source=path + node.below,
        )
        for node in device_nodes(path)
    ]
