"""A HostConfig's limits as cgroup files and values. Pure: what the host has, and the numbers of block devices, are passed in.

A file is named `controller/file` on version 1 and `file` on version 2. A limit whose file the host lacks is left out:
`missing` gives dockerd's warning for each.
Source: reference of runc's fs and fs2 managers; admin-guide/cgroup-v1, cgroup-v2.rst; Docker's daemon_unix.go for the words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Writes = list[tuple[str, str]]
Has = Callable[[str], bool]
DeviceNumber = Callable[[str], str]  # path -> `major:minor`

_THROTTLES = (
    ("BlkioDeviceReadBps", "read_bps", "rbps"), ("BlkioDeviceWriteBps", "write_bps", "wbps"),
    ("BlkioDeviceReadIOps", "read_iops", "riops"), ("BlkioDeviceWriteIOps", "write_iops", "wiops"),
)  # fmt: skip
DEFAULT_PERIOD = 100_000
# Of version 1. Nothing is written to it, as runc does since 1.1: the kernel takes no limit any more (Linux 5.16).
KERNEL_MEMORY = "memory/memory.kmem.limit_in_bytes"


def cpu_quota(host: Mapping[str, Any]) -> tuple[int, int]:
    """(quota, period) in µs; 0 where nothing is asked. `--cpus` is a quota of a period of 100 ms."""
    if nano := host.get("NanoCpus"):
        return nano * DEFAULT_PERIOD // 1_000_000_000, DEFAULT_PERIOD
    return host.get("CpuQuota") or 0, host.get("CpuPeriod") or 0


def cpu_weight(shares: int) -> int:
    """cpu.weight for cpu.shares, so that 1024 becomes 100 (runc 1.3)."""
    if shares <= 2:
        return 1
    if shares >= 262_144:
        return 10_000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def io_weight(weight: int) -> int:
    """io.weight (1-10000) for blkio.weight (10-1000)."""
    return 1 + (weight - 10) * 9999 // 990


def limits_v1(host: Mapping[str, Any], has: Has, device: DeviceNumber) -> Writes:
    """Version 1, for a new cgroup. Raises what `device` raises."""
    writes = memory_v1(host, has)
    if reservation := host.get("MemoryReservation"):
        writes.append(("memory/memory.soft_limit_in_bytes", str(reservation)))
    if (swappiness := host.get("MemorySwappiness")) is not None and swappiness >= 0:
        writes.append(("memory/memory.swappiness", str(swappiness)))
    if host.get("OomKillDisable"):
        writes.append(("memory/memory.oom_control", "1"))
    if shares := host.get("CpuShares"):
        writes.append(("cpu/cpu.shares", str(shares)))
    quota, period = cpu_quota(host)
    writes += [("cpu/cpu.cfs_period_us", str(period))] if period else []
    writes += [("cpu/cpu.cfs_quota_us", str(quota))] if quota else []
    for key, file in (("CpuRealtimePeriod", "cpu.rt_period_us"), ("CpuRealtimeRuntime", "cpu.rt_runtime_us")):
        writes += [(f"cpu/{file}", str(host[key]))] if host.get(key) else []
    for key, file in (("CpusetCpus", "cpuset.cpus"), ("CpusetMems", "cpuset.mems")):
        writes += [(f"cpuset/{file}", host[key])] if host.get(key) else []
    if pids := host.get("PidsLimit"):
        writes.append(("pids/pids.max", "max" if pids < 0 else str(pids)))
    bfq = "" if has("blkio/blkio.weight") else "bfq."
    if weight := host.get("BlkioWeight"):
        writes.append((f"blkio/blkio.{bfq}weight", str(weight)))
    for one in host.get("BlkioWeightDevice") or []:
        writes.append((f"blkio/blkio.{bfq}weight_device", f"{device(one['Path'])} {one['Weight']}"))
    for key, file, _ in _THROTTLES:
        for one in host.get(key) or []:
            writes.append((f"blkio/blkio.throttle.{file}_device", f"{device(one['Path'])} {one['Rate']}"))
    return [(file, value) for file, value in writes if has(file)]


def memory_v1(host: Mapping[str, Any], has: Has, *, raise_first: bool = False) -> Writes:
    """Limit and limit with swap, in the order in which the second never lies below the first.

    raise_first: the new total lies above what is set now, so it goes first.
    """
    memory, swap = host.get("Memory") or 0, host.get("MemorySwap") or 0
    writes = [("memory/memory.limit_in_bytes", str(memory))] if memory else []
    if swap or memory == -1:
        total = ("memory/memory.memsw.limit_in_bytes", str(swap or -1))
        if has(total[0]):
            writes.insert(0 if raise_first else len(writes), total)
    return writes


def limits_v2(host: Mapping[str, Any], has: Has, device: DeviceNumber) -> Writes:
    """Version 2, for a new cgroup and for a change alike. Raises what `device` raises."""
    writes: Writes = []
    memory, swap = host.get("Memory") or 0, host.get("MemorySwap") or 0
    if memory:
        writes.append(("memory.max", "max" if memory < 0 else str(memory)))
    if swap < 0 or memory < 0:
        writes.append(("memory.swap.max", "max"))
    elif swap and memory:
        writes.append(("memory.swap.max", str(max(0, swap - memory))))
    if reservation := host.get("MemoryReservation"):
        writes.append(("memory.low", str(reservation)))
    if shares := host.get("CpuShares"):
        writes.append(("cpu.weight", str(cpu_weight(shares))))
    quota, period = cpu_quota(host)
    if quota or period:
        writes.append(("cpu.max", f"{quota if quota > 0 else 'max'} {period or DEFAULT_PERIOD}"))
    for key, file in (("CpusetCpus", "cpuset.cpus"), ("CpusetMems", "cpuset.mems")):
        writes += [(file, host[key])] if host.get(key) else []
    if pids := host.get("PidsLimit"):
        writes.append(("pids.max", "max" if pids < 0 else str(pids)))
    bfq = has("io.bfq.weight")
    if weight := host.get("BlkioWeight"):
        writes.append(
            ("io.bfq.weight", str(weight)) if bfq else ("io.weight", f"default {io_weight(weight)}")
        )
    for one in host.get("BlkioWeightDevice") or []:
        value = one["Weight"] if bfq else io_weight(one["Weight"])
        writes.append(("io.bfq.weight" if bfq else "io.weight", f"{device(one['Path'])} {value}"))
    for key, _, name in _THROTTLES:
        for one in host.get(key) or []:
            writes.append(("io.max", f"{device(one['Path'])} {name}={one['Rate']}"))
    return [(file, value) for file, value in writes if has(file)]


_LACKS = "Your kernel does not support {} or the cgroup is not mounted. {}"
_MEMORY = "memory limit capabilities", "Limitation discarded."
_SWAP = "swap limit capabilities", "Memory limited without swap."
_SWAPPINESS = "memory swappiness capabilities", "Memory swappiness discarded."
_KERNEL = "kernel memory limit capabilities", "Limitation discarded."
_KERNEL_DEPRECATED = "Specifying a kernel memory limit is deprecated and will be removed in a future release."
_SOFT = "memory soft limit capabilities", "Limitation discarded."
_PIDS = "PIDs limit capabilities", "PIDs limit discarded."
_SHARES = "CPU shares", "Shares discarded."
_PERIOD, _QUOTA = ("CPU CFS scheduler", "Period discarded."), ("CPU CFS scheduler", "Quota discarded.")
_CPUSET = "cpuset", "Cpuset discarded."
_WEIGHT, _WEIGHT_DEVICE = (
    ("Block I/O weight", "Weight discarded."),
    ("Block I/O weight_device", "Weight-device discarded."),
)
_BLOCK = {
    "BlkioDeviceReadBps": ("BPS Block I/O read limit", "Block I/O BPS read limit discarded."),
    "BlkioDeviceWriteBps": ("BPS Block I/O write limit", "Block I/O BPS write limit discarded."),
    "BlkioDeviceReadIOps": ("IOPS Block read limit", "Block I/O IOPS read limit discarded."),
    "BlkioDeviceWriteIOps": ("IOPS Block write limit", "Block I/O IOPS write limit discarded."),
}


def missing(host: Mapping[str, Any], has: Has, version: int) -> list[tuple[str, dict[str, Any]]]:
    """For each limit that is asked for and that the host cannot set: dockerd's warning, and what its keys are instead.

    Source: moby daemon_unix.go, verifyPlatformContainerResources.
    """
    one = version == 1
    memory = has("memory/memory.limit_in_bytes" if one else "memory.max")
    swap = has("memory/memory.memsw.limit_in_bytes" if one else "memory.swap.max")
    weight = (
        has("blkio/blkio.weight") or has("blkio/blkio.bfq.weight")
        if one
        else has("io.bfq.weight") or has("io.weight")
    )
    weight_device = (
        has("blkio/blkio.weight_device") or has("blkio/blkio.bfq.weight_device") if one else weight
    )  # fmt: skip
    limited = (host.get("Memory") or 0) > 0
    swappiness = host.get("MemorySwappiness")
    kernel = host.get("KernelMemory") or 0
    found: list[tuple[Any, tuple[str, str], dict[str, Any]]] = [
        (limited and not memory, _MEMORY, {"Memory": 0, "MemorySwap": -1}),
        (limited and memory and not swap and host.get("MemorySwap") != -1, _SWAP, {"MemorySwap": -1}),
        (swappiness not in (None, -1) and not (one and has("memory/memory.swappiness")), _SWAPPINESS, {"MemorySwappiness": None}),
        (host.get("MemoryReservation") and not has("memory/memory.soft_limit_in_bytes" if one else "memory.low"), _SOFT, {"MemoryReservation": 0}),
        (kernel > 0 and not (one and has(KERNEL_MEMORY)), _KERNEL, {"KernelMemory": 0}),
        (host.get("PidsLimit") and not has("pids/pids.max" if one else "pids.max"), _PIDS, {"PidsLimit": None}),
        (host.get("CpuShares") and not has("cpu/cpu.shares" if one else "cpu.weight"), _SHARES, {"CpuShares": 0}),
        (host.get("CpuPeriod") and not has_cpu_quota(has, version), _PERIOD, {"CpuPeriod": 0}),
        (host.get("CpuQuota") and not has_cpu_quota(has, version), _QUOTA, {"CpuQuota": 0}),
        (
            (host.get("CpusetCpus") or host.get("CpusetMems")) and not has("cpuset/cpuset.cpus" if one else "cpuset.cpus"),
            _CPUSET, {"CpusetCpus": "", "CpusetMems": ""},
        ),
        (host.get("BlkioWeight") and not weight, _WEIGHT, {"BlkioWeight": 0}),
        (host.get("BlkioWeightDevice") and not weight_device, _WEIGHT_DEVICE, {"BlkioWeightDevice": []}),
        *(
            (host.get(key) and not has(f"blkio/blkio.throttle.{file}_device" if one else "io.max"), _BLOCK[key], {key: []})
            for key, file, _ in _THROTTLES
        ),
    ]  # fmt: skip
    lost: list[tuple[str, dict[str, Any]]] = [(_KERNEL_DEPRECATED, {})] if kernel > 0 else []
    lost += [(_LACKS.format(*words), instead) for applies, words, instead in found if applies]
    if host.get("OomKillDisable") and not (one and has("memory/memory.oom_control")):
        words = "Your kernel does not support OomKillDisable. OomKillDisable discarded."
        lost.append((words, {"OomKillDisable": None}))
    return lost


def has_cpu_quota(has: Has, version: int) -> bool:
    """Whether `--cpus` can be honoured; dockerd refuses it where it cannot."""
    return has("cpu/cpu.cfs_quota_us" if version == 1 else "cpu.max")


def cpu_list(text: str) -> set[int]:
    """`0-2,5` as numbers. Raises ValueError. Source: cpuset(7), list format."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else []:
        first, sign, last = part.strip().partition("-")
        low, high = int(first), int(last) if sign else int(first)
        if not 0 <= low <= high < 8192 or not (first.isdigit() and (not sign or last.isdigit())):
            raise ValueError(f"bad range {part!r}")
        found.update(range(low, high + 1))
    return found
