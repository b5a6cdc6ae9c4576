"""What an update of a container changes: its limits and its restart policy, merged and checked. Pure.

0, "" and null leave a value, as dockerd reads the CLI's complete object; a swappiness, of which 0 is one, is checked and left, whatever
is sent. Messages are dockerd's (daemon/update.go, container_unix.go).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ketch_wire.faults import Conflict, InvalidInput
from ketchd.containers import fields
from ketchd.containers.settings import check_host
from ketchd.containers.shapes import HOST_CONFIG, fold, pick

RESOURCES: tuple[str, ...] = (
    "BlkioWeight", "BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuShares", "CpusetCpus",
    "CpusetMems", "KernelMemory", "Memory", "MemoryReservation", "MemorySwap", "NanoCpus", "OomKillDisable", "PidsLimit",
)  # fmt: skip
# What the kernel takes only together.
_TOGETHER = (("Memory", "MemorySwap"), ("NanoCpus", "CpuQuota", "CpuPeriod"))


def merged(
    current: Mapping[str, Any], sent: Mapping[str, Any], *, cpus: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the whole HostConfig afterwards, the limits to write now). Raises InvalidInput, Conflict. Source: ContainerUpdate."""
    sent = fields.decode(sent, fields.HOST_CONFIG)
    wanted = fold(sent, HOST_CONFIG)
    if wanted["MemorySwappiness"] == -1:
        wanted["MemorySwappiness"] = None
    host = copy.deepcopy(dict(current))
    changed = [key for key in RESOURCES if wanted[key] not in (0, "", None, [], False) or _lifts(key, wanted)]
    _check_cpus(current, wanted, changed)
    _check_memory(current, wanted)
    for key in changed:
        host[key] = wanted[key]
    if wanted["PidsLimit"] is not None and wanted["PidsLimit"] <= 0:
        host["PidsLimit"] = 0  # an update's "no limit"; a create's is null. Source: moby postContainersUpdate
    _merge_restart(host, sent)
    check_host(host | {"MemorySwappiness": wanted["MemorySwappiness"]}, cpus)
    live = {key: wanted[key] for key in changed}
    if "PidsLimit" in live and live["PidsLimit"] <= 0:
        live["PidsLimit"] = -1
    for together in _TOGETHER:
        if any(key in live for key in together):
            live |= {key: host[key] for key in together}
    return host, live


def _lifts(key: str, wanted: Mapping[str, Any]) -> bool:
    """0 pids means no limit."""
    return key == "PidsLimit" and wanted[key] == 0


def _check_cpus(current: Mapping[str, Any], wanted: Mapping[str, Any], changed: list[str]) -> None:
    names = (("CpuPeriod", "CPU Period"), ("CpuQuota", "CPU Quota"))
    for key, words in names:
        if "NanoCpus" in changed and current[key] > 0:
            raise Conflict(
                f"Conflicting options: Nano CPUs cannot be updated as {words} has already been set"
            )
        if key in changed and wanted[key] > 0 and current["NanoCpus"] > 0:
            raise Conflict(f"Conflicting options: {words} cannot be updated as NanoCPUs has already been set")


def _check_memory(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """A container without a limit of swap is as one whose limit is 0: dockerd wants both at once there too."""
    if 0 < wanted["Memory"] < 6 * 1024 * 1024:
        raise InvalidInput("Minimum memory limit allowed is 6MB")
    if wanted["Memory"] and not wanted["MemorySwap"] and 0 <= current["MemorySwap"] < wanted["Memory"]:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )


def _merge_restart(host: dict[str, Any], sent: Mapping[str, Any]) -> None:
    policy = pick(sent, "RestartPolicy")
    name = pick(policy, "Name", "")
    if not name:
        return
    if host["AutoRemove"] and name != "no":
        raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
    host["RestartPolicy"] = {"Name": name, "MaximumRetryCount": pick(policy, "MaximumRetryCount", 0)}
