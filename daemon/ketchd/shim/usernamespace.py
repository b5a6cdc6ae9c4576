"""The shim's part of a user namespace: its maps written from outside, and a helper that prepares the child's mounts."""

from __future__ import annotations

import os

from ketchd.kernel import cgroupjoin
from ketchd.kernel.mounts import MS_SLAVE
from ketchd.kernel.namespaces import CLONE_NEWNS, CLONE_NEWPID, setns, unshare
from ketchd.kernel.ownroot import in_chroot, take_root
from ketchd.sandbox import remapped
from ketchd.sandbox.failures import LaunchError, as_launch_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ketch_wire.launch import LaunchPlan
    from ketchd.shim.spawn import Spawned


def leave_chroot() -> None:
    """Where ketchd runs in a chroot, the kernel makes no user namespace for its shim (EPERM) unless the shim has a mount namespace
    of its own with that tree as its root. Raises LaunchError.
    """
    try:
        if in_chroot():
            unshare(CLONE_NEWNS)
            take_root(MS_SLAVE)
    except OSError as error:
        raise as_launch_error(error, "error creating namespaces") from error


def set_up(plan: LaunchPlan, spawned: Spawned, loops: Mapping[int, int]) -> None:
    """Everything that the child, without rights outside of its namespace, cannot do for itself. It waits for the last of it.

    Raises LaunchError; the child is the caller's to end then.
    """
    pid = spawned.pid
    try:
        for name, extents in (("uid_map", plan.uid_map), ("gid_map", plan.gid_map)):
            _write(f"/proc/{pid}/{name}", "".join(f"{a} {b} {count}\n" for a, b, count in extents))
        cgroupjoin.add(tuple(one for one in plan.cgroup.join if os.path.exists(f"{one}/tasks")), pid)
        user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise as_launch_error(error, "error setting up the user namespace") from error
    try:
        _write(f"/proc/{pid}/oom_score_adj", str(plan.process.oom_score_adj))
    except OSError:
        pass  # only a privileged daemon may lower it
    helper = os.fork()
    if helper == 0:
        try:
            remapped.prepare(plan, loops, user, spawned.channel)
        finally:
            os._exit(0)
    os.close(user)
    os.waitpid(helper, 0)
    try:
        setns(spawned.pidfd, CLONE_NEWPID)  # for the execs
    except OSError as error:
        raise as_launch_error(error, "error joining the pid namespace") from error


def owner_of(plan: LaunchPlan) -> tuple[int, int] | None:
    """The uid and gid outside of the container's root; None without a user namespace."""
    return (plan.uid_map[0][1], plan.gid_map[0][1]) if plan.uid_map else None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


__all__ = ["LaunchError", "owner_of", "set_up"]
