"""What cgroups this host has: versions, mount points, and where we are allowed to make some."""

from __future__ import annotations

import os
from dataclasses import dataclass

_V1_CONTROLLERS = frozenset(
    ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio",
     "perf_event", "rdma", "misc")
)  # fmt: skip
LEAF = (
    "supervisor"  # where our own processes are: a cgroup with controllers for its children holds none itself
)
WANTED_V2 = ("cpuset", "cpu", "io", "memory", "pids")


@dataclass(frozen=True, slots=True)
class Mounted:
    """version 1 or 2, or 0 for none. hierarchies: controller (`name=systemd` as `systemd`) -> mount point, version 1 only.
    unified: mount point of version 2, also of a hybrid host's, or ""."""

    version: int
    hierarchies: dict[str, str]
    unified: str


def read_mountinfo(text: str) -> Mounted:
    """From /proc/self/mountinfo. Pure. Source: proc_pid_mountinfo(5)."""
    hierarchies: dict[str, str] = {}
    unified = ""
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if not dash or len(fields) < 5 or len(tail) < 2:
            continue
        point = fields[4].replace("\\040", " ")
        if tail[0] == "cgroup2":
            unified = unified or point
        elif tail[0] == "cgroup":
            for option in tail[-1].split(","):
                if option in _V1_CONTROLLERS:
                    hierarchies.setdefault(option, point)
                elif option == "name=systemd":
                    hierarchies.setdefault("systemd", point)
    controllers = [name for name in hierarchies if name != "systemd"]
    return Mounted(1 if controllers else 2 if unified else 0, hierarchies, unified)


def own_path(text: str) -> str:
    """Our version 2 cgroup from /proc/self/cgroup, `/` when it does not say. Pure."""
    for line in text.splitlines():
        if line.startswith("0::"):
            return line[3:].removesuffix(" (deleted)") or "/"
    return "/"


def is_delegated(directory: str) -> bool:
    """Whether systemd gave the subtree away (Delegate=yes), which it notes in an extended attribute."""
    for name in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:
            continue
    return False


def choose_base(unified: str, own: str) -> str:
    """The version 2 directory below which cgroups may be made.

    own: where the launcher is. That is the leaf `supervisor` of a delegated unit: of the scope beside our service, or of the
    service itself (DelegateSubgroup=, from systemd 254 on) when the scope could not be made. Else the top, as dockerd's
    cgroupfs driver does: an older systemd attaches a restarted service to the top of its delegated cgroup, which the kernel
    refuses (EBUSY) while containers below it have controllers: seen with 252.
    """
    above, _, leaf = own.rpartition("/")
    if leaf == LEAF and above and ".." not in own and is_delegated(unified + above):
        return unified + above
    return unified
