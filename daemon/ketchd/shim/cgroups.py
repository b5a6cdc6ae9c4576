"""A container's cgroup directories as the shim deals with them: made before the fork, asked about OOM, emptied at the end."""

from __future__ import annotations

import os

from ketchd.kernel import (  # bpf: imported before the fork, for all shims at once
    bpf,  # noqa: F401
    cgroupjoin,
    signals,
)
from ketchd.kernel.process import read_small
from ketchd.sandbox.failures import LaunchError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ketch_wire.launch import CgroupPlan

_OOM_FILES = ("memory.oom_control", "memory.events")


def make(plan: CgroupPlan) -> None:
    """Make every directory, write every setting, attach the device policy. Raises LaunchError."""
    try:
        cgroupjoin.make(plan)
    except cgroupjoin.NotTaken as error:
        raise LaunchError(f"error setting cgroup config for procHooks process: {error}") from error
    except OSError as error:
        raise LaunchError(
            f"unable to apply cgroup configuration: {error.filename}: {reason(error)}"
        ) from error


def oom_kills(plan: CgroupPlan) -> int:
    """How many processes the kernel's OOM killer took in it."""
    for directory in plan.join:
        for name in _OOM_FILES:
            try:
                counters = read_small(f"{directory}/{name}")
            except OSError:
                continue
            for line in counters.splitlines():
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    return 0


def kill_all(plan: CgroupPlan) -> None:
    """SIGKILL to everything in it: what a container that shares a pid namespace leaves behind."""
    for directory in plan.join:
        try:
            with open(f"{directory}/cgroup.kill", "wb", buffering=0) as kill:
                kill.write(b"1")
            return
        except OSError:
            pass
    for directory in plan.join[:1]:
        for _ in range(16):  # a process may fork while its siblings are killed
            try:
                with open(f"{directory}/cgroup.procs", "rb") as members:
                    pids = [int(line) for line in members]
            except OSError:
                return
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signals.SIGKILL)
                except ProcessLookupError:
                    continue
