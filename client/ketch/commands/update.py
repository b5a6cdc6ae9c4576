"""`update`: change the limits of containers that are there."""

from __future__ import annotations

from typing import Any

from ketch.faults import CommandFailed
from ketch.limits import parse_restart
from ketch.options import Command, Given
from ketch.session import Session, each

UPDATE = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]",
    """
--blkio-weight uint16  Relative weight of block I/O, 10 to 1000, or 0 for none (default 0)
--cpu-period int  Length of a CPU period in microseconds (CFS)
--cpu-quota int  CPU time within a period in microseconds (CFS)
--cpu-rt-period int  Length of a real-time CPU period in microseconds
--cpu-rt-runtime int  Real-time CPU time within a period in microseconds
-c, --cpu-shares int  CPU shares (relative weight)
--cpus decimal  Number of CPUs
--cpuset-cpus string  CPUs that may be used (0-3, 0,1)
--cpuset-mems string  Memory nodes that may be used (0-3, 0,1)
--kernel-memory bytes  Accepted; kernels do not honour it any more
-m, --memory bytes  Memory limit
--memory-reservation bytes  Memory soft limit
--memory-swap bytes  Limit of memory and swap together: -1 for unlimited swap
--pids-limit int  Limit of processes (-1 for unlimited)
--restart string  When to start again after an exit
""",
    (1, None),
)


def update(session: Session, given: Given) -> int:
    """Send what was given; what was not stays as it is."""
    names = [flag.name for flag in UPDATE.flags()[0]]
    if not any(given.has(name) for name in names):
        raise CommandFailed("you must provide one or more flags when using this command")
    try:
        body = update_body(given)
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    warnings: list[str] = []

    def act(name: str) -> None:
        told = session.engine.json("POST", f"/containers/{name}/update", send=body) or {}
        warnings.extend(told.get("Warnings") or ())

    code = each(session, given.arguments, act)
    for warning in warnings:
        session.say(warning)
    return code


def update_body(given: Given) -> dict[str, Any]:
    """The body of POST /containers/{id}/update: zero and empty leave a value. Raises ValueError."""
    restart = {"Name": "", "MaximumRetryCount": 0}
    if given.text("restart"):
        restart = parse_restart(given.text("restart"))
    kernel_memory = given.number("kernel-memory")  # engines before API 1.42 still know it
    return {
        "CpuShares": given.number("cpu-shares"),
        "Memory": given.number("memory"),
        "NanoCpus": given.number("cpus"),
        "CgroupParent": "",
        "BlkioWeight": given.number("blkio-weight"),
        "BlkioWeightDevice": None,
        "BlkioDeviceReadBps": None,
        "BlkioDeviceWriteBps": None,
        "BlkioDeviceReadIOps": None,
        "BlkioDeviceWriteIOps": None,
        "CpuPeriod": given.number("cpu-period"),
        "CpuQuota": given.number("cpu-quota"),
        "CpuRealtimePeriod": given.number("cpu-rt-period"),
        "CpuRealtimeRuntime": given.number("cpu-rt-runtime"),
        "CpusetCpus": given.text("cpuset-cpus"),
        "CpusetMems": given.text("cpuset-mems"),
        "Devices": None,
        "DeviceCgroupRules": None,
        "DeviceRequests": None,
        "MemoryReservation": given.number("memory-reservation"),
        "MemorySwap": given.number("memory-swap"),
        "MemorySwappiness": None,
        "OomKillDisable": None,
        "PidsLimit": given.number("pids-limit") if given.has("pids-limit") else None,
        "Ulimits": None,
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "RestartPolicy": restart,
        **({"KernelMemory": kernel_memory} if kernel_memory else {}),
    }


COMMANDS = {"update": (UPDATE, update)}
