"""A container's counters as the Engine API shows them. Pure: samples are passed in.

Source: Engine API 1.50, ContainerStats; memory and CPU as docker's CLI computes from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ketchd.kernel.cgroupusage import Usage
from ketchd.model.times import ZERO_TIME, rfc3339

Interfaces = dict[str, dict[str, int]]

_BLOCK_LISTS = (
    "io_service_bytes_recursive", "io_serviced_recursive", "io_queue_recursive", "io_service_time_recursive",
    "io_wait_time_recursive", "io_merged_recursive", "io_time_recursive", "sectors_recursive",
)  # fmt: skip
_COUNTERS = ("bytes", "packets", "errors", "dropped")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a running container. interfaces: None when it has no network of its own."""

    time_ns: int
    usage: Usage
    interfaces: Interfaces | None
    system_cpu_ns: int
    online_cpus: int
    memory_total: int


def read_interfaces(text: str) -> Interfaces:
    """/proc/PID/net/dev but for the loopback. Source: proc_pid_net(5)."""
    found: Interfaces = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        numbers = rest.split()
        if not colon or len(numbers) < 12 or not all(one.isdigit() for one in numbers):
            continue
        name = name.strip()
        if name != "lo":
            received, sent = numbers[0:4], numbers[8:12]
            found[name] = {
                f"{way}_{counter}": int(number)
                for way, values in (("rx", received), ("tx", sent))
                for counter, number in zip(_COUNTERS, values, strict=True)
            }
    return found


def read_system_cpu(text: str, ticks_per_second: int) -> tuple[int, int]:
    """(ns that all CPUs have spent, online CPUs) from /proc/stat. Guest time is part of user time, so it is not added."""
    total, cpus = 0, 0
    for line in text.splitlines():
        if line.startswith("cpu "):
            total = sum(int(word) for word in line.split()[1:8]) * (1_000_000_000 // ticks_per_second)
        elif line.startswith("cpu"):
            cpus += 1
    return total, cpus


def read_memory_total(text: str) -> int:
    """Bytes of memory from /proc/meminfo."""
    for line in text.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def running(container_id: str, name: str, now: Sample, before: Sample | None) -> dict[str, Any]:
    """The object of a running container; `before` fills precpu_stats."""
    shown: dict[str, Any] = {
        "name": "/" + name, "id": container_id, "read": rfc3339(now.time_ns),
        "preread": ZERO_TIME if before is None else rfc3339(before.time_ns),
        "pids_stats": _without_none({"current": now.usage.pids, "limit": now.usage.pids_limit}),
        "blkio_stats": _block(now.usage), "num_procs": 0, "storage_stats": {}, "cpu_stats": _cpu(now),
        "precpu_stats": _cpu(before), "memory_stats": _memory(now),
    }  # fmt: skip
    if now.interfaces is not None:
        shown["networks"] = now.interfaces
    return shown


def stopped(container_id: str, name: str) -> dict[str, Any]:
    """The object of a container that does not run: every counter zero or absent, as dockerd goes on to send it."""
    return {
        "name": "/" + name, "id": container_id, "read": ZERO_TIME, "preread": ZERO_TIME, "pids_stats": {},
        "blkio_stats": dict.fromkeys(_BLOCK_LISTS), "num_procs": 0, "storage_stats": {}, "cpu_stats": _cpu(None),
        "precpu_stats": _cpu(None), "memory_stats": {},
    }  # fmt: skip


def _cpu(sample: Sample | None) -> dict[str, Any]:
    usage = Usage(2) if sample is None else sample.usage
    times: dict[str, Any] = {
        "total_usage": usage.cpu_total, "usage_in_kernelmode": usage.cpu_kernel, "usage_in_usermode": usage.cpu_user,
    }  # fmt: skip
    if usage.cpu_each is not None:
        times["percpu_usage"] = usage.cpu_each
    shown: dict[str, Any] = {"cpu_usage": times}
    if sample is not None:
        shown["system_cpu_usage"], shown["online_cpus"] = sample.system_cpu_ns, sample.online_cpus
    shown["throttling_data"] = {
        "periods": usage.throttle_periods, "throttled_periods": usage.throttled_periods,
        "throttled_time": usage.throttled_time,
    }  # fmt: skip
    return shown


def _memory(sample: Sample) -> dict[str, Any]:
    usage = sample.usage
    if usage.memory is None:
        return {}
    limit = min(usage.memory_limit or sample.memory_total, sample.memory_total or usage.memory_limit or 0)
    shown = _without_none(
        {"usage": usage.memory, "max_usage": usage.memory_peak, "stats": usage.memory_stat, "limit": limit}
    )
    if usage.memory_failures:
        shown["failcnt"] = usage.memory_failures
    return shown


def _block(usage: Usage) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name in _BLOCK_LISTS:
        entries = usage.block.get(name)
        shown[name] = (
            None
            if entries is None
            else [{"major": a, "minor": i, "op": op, "value": value} for a, i, op, value in entries]
        )
    return shown


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
