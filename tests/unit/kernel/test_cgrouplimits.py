"""Limits as files and values, for both cgroup versions, and what is said when a host lacks one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketchd.kernel import cgrouphost
from ketchd.kernel.cgrouphost import own_path, read_mountinfo
from ketchd.kernel.cgrouplimits import (
    cpu_list,
    cpu_weight,
    io_weight,
    limits_v1,
    limits_v2,
    memory_v1,
    missing,
)
from ketchd.kernel.cgroupusage import block_v1, block_v2, limit, usage_v1, usage_v2

MIB = 1024 * 1024


def all_of(file: str) -> bool:
    return True


def number(path: str) -> str:
    return {"/dev/sda": "8:0"}[path]


EVERYTHING = {
    "Memory": 64 * MIB, "MemorySwap": 128 * MIB, "MemoryReservation": 32 * MIB, "MemorySwappiness": 10, "OomKillDisable": True,
    "CpuShares": 512, "NanoCpus": 1_500_000_000, "CpusetCpus": "0-1", "CpusetMems": "0", "PidsLimit": 100, "BlkioWeight": 500,
    "BlkioWeightDevice": [{"Path": "/dev/sda", "Weight": 200}], "BlkioDeviceReadBps": [{"Path": "/dev/sda", "Rate": 1024}],
    "BlkioDeviceWriteIOps": [{"Path": "/dev/sda", "Rate": 7}],
}  # fmt: skip


def test_version_1() -> None:
    """Every limit in the file of its controller, the memory limit before the limit with swap."""
    assert limits_v1(EVERYTHING, all_of, number) == [
        ("memory/memory.limit_in_bytes", "67108864"),
        ("memory/memory.memsw.limit_in_bytes", "134217728"),
        ("memory/memory.soft_limit_in_bytes", "33554432"),
        ("memory/memory.swappiness", "10"),
        ("memory/memory.oom_control", "1"),
        ("cpu/cpu.shares", "512"),
        ("cpu/cpu.cfs_period_us", "100000"),
        ("cpu/cpu.cfs_quota_us", "150000"),
        ("cpuset/cpuset.cpus", "0-1"),
        ("cpuset/cpuset.mems", "0"),
        ("pids/pids.max", "100"),
        ("blkio/blkio.weight", "500"),
        ("blkio/blkio.weight_device", "8:0 200"),
        ("blkio/blkio.throttle.read_bps_device", "8:0 1024"),
        ("blkio/blkio.throttle.write_iops_device", "8:0 7"),
    ]


def test_version_2() -> None:
    """The same limits in the unified hierarchy; swap is what lies above memory."""
    assert limits_v2(EVERYTHING, all_of, number) == [
        ("memory.max", "67108864"),
        ("memory.swap.max", "67108864"),
        ("memory.low", "33554432"),
        ("cpu.weight", "59"),
        ("cpu.max", "150000 100000"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("pids.max", "100"),
        ("io.bfq.weight", "500"),
        ("io.bfq.weight", "8:0 200"),
        ("io.max", "8:0 rbps=1024"),
        ("io.max", "8:0 wiops=7"),
    ]


def test_unlimited_and_unset() -> None:
    """-1 lifts a limit, 0 and None leave it."""
    assert limits_v1({}, all_of, number) == limits_v2({}, all_of, number) == []
    lifted = {"Memory": -1, "MemorySwap": -1, "PidsLimit": -1, "CpuQuota": -1}
    assert ("memory/memory.memsw.limit_in_bytes", "-1") in limits_v1(lifted, all_of, number)
    assert limits_v2(lifted, all_of, number) == [
        ("memory.max", "max"), ("memory.swap.max", "max"), ("cpu.max", "max 100000"), ("pids.max", "max"),
    ]  # fmt: skip
    assert limits_v2({"CpuPeriod": 50000}, all_of, number) == [("cpu.max", "max 50000")]


def test_raising_writes_the_total_first() -> None:
    """The limit with swap must never lie below the limit, not even between two writes."""
    files = [
        file for file, _ in memory_v1({"Memory": 9 * MIB, "MemorySwap": 18 * MIB}, all_of, raise_first=True)
    ]
    assert files == ["memory/memory.memsw.limit_in_bytes", "memory/memory.limit_in_bytes"]


def test_what_the_host_lacks_is_left_out_and_said() -> None:
    """No file, no write, one warning in dockerd's words."""
    assert (
        limits_v1(EVERYTHING, lambda file: False, number)
        == limits_v2(EVERYTHING, lambda file: False, number)
        == []
    )
    warnings = [warning for warning, _ in missing(EVERYTHING, lambda file: False, 2)]
    assert (
        "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded."
        in warnings
    )
    assert (
        "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded."
        in warnings
    )
    assert "Your kernel does not support OomKillDisable. OomKillDisable discarded." in warnings
    assert missing(EVERYTHING, all_of, 1) == missing({}, lambda file: False, 1) == []
    without_swap = missing({"Memory": 9 * MIB, "MemorySwap": 9 * MIB}, lambda file: "memsw" not in file, 1)
    assert without_swap == [
        (
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
            {"MemorySwap": -1},
        )
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_lost_is_shown_as_nothing(version: int) -> None:
    """With the values that take its place there is nothing to write and nothing to warn of any more."""
    host = dict(EVERYTHING)
    for _, instead in missing(host, lambda file: False, version):
        assert set(instead) <= set(host)
        host.update(instead)
    assert missing(host, lambda file: False, version) == []
    assert (host["Memory"], host["MemorySwap"], host["CpusetCpus"], host["PidsLimit"]) == (0, -1, "", None)
    assert host["BlkioWeightDevice"] == host["BlkioDeviceReadBps"] == []


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 100), (262144, 10000), (512, 59), (0, 1)])
def test_cpu_weight(shares: int, weight: int) -> None:
    """1024 is the default of one and 100 that of the other."""
    assert cpu_weight(shares) == weight


@given(st.integers(2, 262144), st.integers(10, 1000))
def test_weights_stay_in_range(shares: int, weight: int) -> None:
    """What the kernel accepts."""
    assert 1 <= cpu_weight(shares) <= 10000
    assert 1 <= io_weight(weight) <= 10000


def test_cpu_list() -> None:
    """cpuset(7)'s list format."""
    assert cpu_list("0-2,5") == {0, 1, 2, 5}
    assert cpu_list("") == set()
    for text in ("a", "3-1", "-1", "0-", "1,,2", "9999999"):
        with pytest.raises(ValueError):
            cpu_list(text)


HYBRID = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_mountinfo() -> None:
    """Hybrid counts as version 1; version 2 alone is version 2; nothing is nothing."""
    hybrid = read_mountinfo(HYBRID)
    assert (hybrid.version, hybrid.unified) == (1, "/sys/fs/cgroup/unified")
    assert hybrid.hierarchies == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory",
        "systemd": "/sys/fs/cgroup/systemd",
    }  # fmt: skip
    assert read_mountinfo("29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n").version == 2
    assert read_mountinfo("1 1 0:1 / / rw - ext4 /dev/vda rw\nbroken\n").version == 0


def test_own_path() -> None:
    """The line of version 2 among those of version 1."""
    assert own_path("4:memory:/x\n0::/system.slice/ketchd.service\n") == "/system.slice/ketchd.service"
    assert own_path("4:memory:/x\n") == "/"


def test_usage_of_both_versions() -> None:
    """The same counters, in ns and bytes, whatever the files are called."""
    one = {
        "cpuacct/cpuacct.usage": "5000", "cpuacct/cpuacct.stat": "user 3\nsystem 2", "cpuacct/cpuacct.usage_percpu": "1 4 ",
        "memory/memory.usage_in_bytes": "10", "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.stat": "cache 1\ntotal_inactive_file 7", "pids/pids.current": "2", "pids/pids.max": "max",
        "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Total 4096\nTotal 4096",
        "cpu/cpu.stat": "nr_periods 9\nnr_throttled 1\nthrottled_time 3",
    }  # fmt: skip
    first = usage_v1(lambda file: one.get(file, ""), 100)
    assert (first.cpu_total, first.cpu_user, first.cpu_kernel, first.cpu_each) == (
        5000,
        30_000_000,
        20_000_000,
        [1, 4],
    )
    assert (first.memory, first.memory_limit, first.pids, first.pids_limit) == (10, None, 2, None)
    assert first.block["io_service_bytes_recursive"] == [(8, 0, "Read", 4096), (8, 0, "Total", 4096)]
    assert (first.throttle_periods, first.throttled_periods, first.throttled_time) == (9, 1, 3)
    two = {
        "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nnr_throttled 1\nthrottled_usec 3",
        "memory.current": "10", "memory.max": "100", "memory.stat": "anon 1\ninactive_file 7", "memory.events": "oom 4",
        "pids.current": "2", "pids.max": "5", "io.stat": "8:0 rbytes=1 wbytes=2 rios=3\n253:0\nbroken",
    }  # fmt: skip
    second = usage_v2(lambda file: two.get(file, ""))
    assert (second.cpu_total, second.cpu_user, second.cpu_kernel, second.cpu_each) == (5000, 3000, 2000, None)
    assert (second.memory, second.memory_limit, second.memory_failures, second.pids_limit) == (10, 100, 4, 5)
    assert second.block["io_service_bytes_recursive"] == [(8, 0, "read", 1), (8, 0, "write", 2)]


@given(st.text())
def test_any_text_of_a_cgroup_file(text: str) -> None:
    """A newer kernel's format is left out, never an exception."""
    block_v1(text)
    block_v2(text)
    limit(text)
    read_mountinfo(text)


def test_base_is_the_delegated_unit_only_from_its_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else lies at the top: an older systemd could not start us again below our own unit."""
    delegated = {"/sys/fs/cgroup/system.slice/ketchd.service"}
    monkeypatch.setattr(cgrouphost, "is_delegated", lambda directory: directory in delegated)
    for own, base in (
        ("/system.slice/ketchd.service/supervisor", "/sys/fs/cgroup/system.slice/ketchd.service"),
        ("/system.slice/ketchd.service", "/sys/fs/cgroup"),
        ("/user.slice/supervisor", "/sys/fs/cgroup"),
        ("/supervisor", "/sys/fs/cgroup"),
        ("/", "/sys/fs/cgroup"),
        ("/../ketchd.service/supervisor", "/sys/fs/cgroup"),
    ):
        assert cgrouphost.choose_base("/sys/fs/cgroup", own) == base


@pytest.mark.parametrize(("version", "kept"), [(1, True), (2, False)])
def test_a_limit_of_kernel_memory_is_told_to_be_none(version: int, kept: bool) -> None:
    """As dockerd has it on both versions; nothing is written."""
    found = missing({"KernelMemory": 8 * MIB}, lambda file: True, version)

    deprecated = "Specifying a kernel memory limit is deprecated and will be removed in a future release."
    lost = "Your kernel does not support kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded."
    assert found == [(deprecated, {}), *([] if kept else [(lost, {"KernelMemory": 0})])]
    assert missing({"KernelMemory": -1}, lambda file: False, version) == []
