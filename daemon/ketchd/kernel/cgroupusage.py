"""Usage: a cgroup's counters, read for stats, with the units the Engine API prints. Source: reference of both versions' files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

UNLIMITED = (1 << 63) - 4096  # version 1's "no limit", rounded to pages

BlockEntry = tuple[int, int, str, int]  # major, minor, operation, value


@dataclass(frozen=True, slots=True)
class Usage:
    """Times in ns, sizes in bytes. None where the version or the host does not say.

    block: Docker's list name (`io_service_bytes_recursive`…) -> entries.
    """

    version: int
    cpu_total: int = 0
    cpu_kernel: int = 0
    cpu_user: int = 0
    cpu_each: list[int] | None = None
    throttle_periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0
    memory: int | None = None
    memory_peak: int | None = None
    memory_limit: int | None = None
    memory_failures: int | None = None
    memory_stat: dict[str, int] = field(default_factory=dict)
    pids: int | None = None
    pids_limit: int | None = None
    block: dict[str, list[BlockEntry]] = field(default_factory=dict)


def numbers(text: str) -> dict[str, int]:
    """Lines of `name number`. Other lines are left out. Pure."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isascii() and value.isdigit():
            found[name] = int(value)
    return found


def limit(text: str) -> int | None:
    """A limit's value; None for `max` and for version 1's largest number. Pure."""
    return int(text) if text.isdecimal() and text.isascii() and int(text) < UNLIMITED else None


def block_v1(text: str) -> list[BlockEntry]:
    """`8:0 Read 4096` lines; the `Total` without a device is left out. Pure."""
    found: list[BlockEntry] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2].isdecimal() and words[0].count(":") == 1:
            major, _, minor = words[0].partition(":")
            found.append((int(major), int(minor), words[1], int(words[2])))
    return found


def block_v2(text: str) -> list[BlockEntry]:
    """io.stat: `8:0 rbytes=1 wbytes=2 …` as `read` and `write`. Pure."""
    found: list[BlockEntry] = []
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        major, sign, minor = device.partition(":")
        if not sign or not (major.isdecimal() and minor.isdecimal()):
            continue
        values = dict(part.partition("=")[::2] for part in rest.split())
        for key, operation in (("rbytes", "read"), ("wbytes", "write")):
            if values.get(key, "").isdecimal():
                found.append((int(major), int(minor), operation, int(values[key])))
    return found


# Version 1's files, the recursive one of the scheduler in use before the throttling layer's.
_BLOCK_FILES = {
    "io_service_bytes_recursive": ("io_service_bytes_recursive", "bfq.io_service_bytes_recursive",
                                   "throttle.io_service_bytes_recursive", "throttle.io_service_bytes"),
    "io_serviced_recursive": ("io_serviced_recursive", "bfq.io_serviced_recursive", "throttle.io_serviced_recursive",
                              "throttle.io_serviced"),
    "io_queue_recursive": ("io_queued_recursive", "bfq.io_queued_recursive"),
    "io_service_time_recursive": ("io_service_time_recursive", "bfq.io_service_time_recursive"),
    "io_wait_time_recursive": ("io_wait_time_recursive", "bfq.io_wait_time_recursive"),
    "io_merged_recursive": ("io_merged_recursive", "bfq.io_merged_recursive"),
    "io_time_recursive": ("time_recursive", "bfq.time_recursive"),
    "sectors_recursive": ("sectors_recursive", "bfq.sectors_recursive"),
}  # fmt: skip


def usage_v1(text: Callable[[str], str], ticks_per_second: int) -> Usage:
    """text: `controller/file` -> its content, "" when there is none."""
    stat, throttle = numbers(text("cpuacct/cpuacct.stat")), numbers(text("cpu/cpu.stat"))
    each = [int(word) for word in text("cpuacct/cpuacct.usage_percpu").split()]
    tick = 1_000_000_000 // ticks_per_second
    block = {}
    for name, files in _BLOCK_FILES.items():
        entries: list[BlockEntry] = []
        for file in files:
            if entries := block_v1(text(f"blkio/blkio.{file}")):
                break
        block[name] = entries
    return Usage(
        version=1,
        cpu_total=int(text("cpuacct/cpuacct.usage") or 0),
        cpu_kernel=stat.get("system", 0) * tick,
        cpu_user=stat.get("user", 0) * tick,
        cpu_each=each or None,
        throttle_periods=throttle.get("nr_periods", 0),
        throttled_periods=throttle.get("nr_throttled", 0),
        throttled_time=throttle.get("throttled_time", 0),
        memory=_number(text("memory/memory.usage_in_bytes")),
        memory_peak=_number(text("memory/memory.max_usage_in_bytes")),
        memory_limit=limit(text("memory/memory.limit_in_bytes")),
        memory_failures=_number(text("memory/memory.failcnt")),
        memory_stat=numbers(text("memory/memory.stat")),
        pids=_number(text("pids/pids.current")),
        pids_limit=limit(text("pids/pids.max")),
        block=block,
    )


def usage_v2(text: Callable[[str], str]) -> Usage:
    """text: file -> its content, "" when there is none."""
    cpu = numbers(text("cpu.stat"))
    return Usage(
        version=2,
        cpu_total=cpu.get("usage_usec", 0) * 1000,
        cpu_kernel=cpu.get("system_usec", 0) * 1000,
        cpu_user=cpu.get("user_usec", 0) * 1000,
        throttle_periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_time=cpu.get("throttled_usec", 0) * 1000,
        memory=_number(text("memory.current")),
        memory_limit=limit(text("memory.max")),
        memory_failures=numbers(text("memory.events")).get("oom"),
        memory_stat=numbers(text("memory.stat")),
        pids=_number(text("pids.current")),
        pids_limit=limit(text("pids.max")),
        block={"io_service_bytes_recursive": block_v2(text("io.stat"))},
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() else None
