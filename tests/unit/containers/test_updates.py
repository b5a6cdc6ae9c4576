"""Updating limits and restart policy: what is kept, what is written, what dockerd refuses."""

from __future__ import annotations

from typing import Any

import pytest

from ketch_wire.faults import Conflict, InvalidInput
from ketchd.containers.settings import normalise_host
from ketchd.containers.updates import merged

MIB = 1024 * 1024


def current(**host: Any) -> dict[str, Any]:
    return normalise_host(host, cgroup_version=2, cpus=4)


def test_zero_and_empty_leave_everything() -> None:
    """The CLI sends the complete object."""
    before = current(Memory=64 * MIB, PidsLimit=5, CpusetCpus="0")
    sent = {
        "Memory": 0,
        "CpusetCpus": "",
        "PidsLimit": None,
        "Devices": [],
        "RestartPolicy": {"Name": "", "MaximumRetryCount": 0},
    }
    after, live = merged(before, sent, cpus=4)
    assert after == before and live == {}


@pytest.mark.parametrize("sent", [0, -1, -2])
def test_no_limit_of_pids_is_shown_as_zero(sent: int) -> None:
    """Where a container that was created without one shows null."""
    after, live = merged(current(PidsLimit=5), {"PidsLimit": sent}, cpus=4)
    assert (after["PidsLimit"], live) == (0, {"PidsLimit": -1})


def test_limits_that_belong_together_are_written_together() -> None:
    """The kernel takes memory and swap, quota and period, only as pairs."""
    after, live = merged(current(Memory=64 * MIB, MemorySwap=512 * MIB), {"memory": 128 * MIB}, cpus=4)
    assert live == {"Memory": 128 * MIB, "MemorySwap": 512 * MIB} and after["Memory"] == 128 * MIB
    _, live = merged(current(), {"NanoCpus": 10**9}, cpus=4)
    assert live == {"NanoCpus": 10**9, "CpuQuota": 0, "CpuPeriod": 0}


@pytest.mark.parametrize("before", [None, 0, 10])
@pytest.mark.parametrize("sent", [None, -1, 0, 60])
def test_swappiness_stays(before: int | None, sent: int | None) -> None:
    """As in dockerd, whose update does not know it: a complete object of a client that writes 0 for null changes nothing."""
    after, live = merged(current(MemorySwappiness=before), {"MemorySwappiness": sent, "CpuShares": 7}, cpus=4)
    assert after["MemorySwappiness"] == before and live == {"CpuShares": 7}


def test_restart_policy() -> None:
    """Changed alone, too."""
    after, live = merged(current(), {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}, cpus=4)
    assert after["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3} and live == {}


@pytest.mark.parametrize(
    ("before", "sent", "fault", "words"),
    [
        ({"Memory": 64 * MIB}, {"Memory": 300 * MIB}, Conflict, "smaller than already set memoryswap limit"),
        ({}, {"Memory": 64 * MIB}, Conflict, "smaller than already set memoryswap limit"),
        ({"AutoRemove": True}, {"RestartPolicy": {"Name": "always"}}, Conflict, "because AutoRemove is enabled"),
        ({"CpuQuota": 5000}, {"NanoCpus": 10**9}, Conflict, "Nano CPUs cannot be updated as CPU Quota has already been set"),
        ({"NanoCpus": 10**9}, {"CpuPeriod": 5000}, Conflict, "CPU Period cannot be updated as NanoCPUs has already been set"),
        ({}, {"Memory": 1}, InvalidInput, "Minimum memory limit allowed is 6MB"),
        ({}, {"Memory": "lots"}, InvalidInput, "cannot unmarshal string into field Memory of type int64"),
        ({}, {"MemorySwap": 64 * MIB}, InvalidInput, "You should always set the Memory limit"),
        ({}, {"BlkioWeight": 5}, InvalidInput, "Range of blkio weight is from 10 to 1000"),
        ({}, {"RestartPolicy": {"Name": "perhaps"}}, InvalidInput, "unknown policy 'perhaps'"),
    ],
)  # fmt: skip
def test_refusals(before: dict[str, Any], sent: dict[str, Any], fault: type[Exception], words: str) -> None:
    """dockerd's words."""
    with pytest.raises(fault, match=words):
        merged(current(**before), sent, cpus=4)
