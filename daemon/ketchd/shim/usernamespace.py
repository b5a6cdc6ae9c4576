"""The shim's part of a user namespace: its maps written from outside, and a helper that prepares the child's mounts."""

from __future__ import annotations

import os

from ketchd.kernel import cgroupjoin
from ketchd.kernel.clone import CLONE_PARENT, fork_into_cgroup
from ketchd.kernel.mounts import MS_SLAVE
from ketchd.kernel.namespaces import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, setns, unshare
from ketchd.kernel.ownroot import in_chroot, take_root
from ketchd.sandbox import remapped
from ketchd.sandbox.failures import LaunchError, as_launch_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ketch_wire.launch import LaunchPlan
    from ketchd.sandbox.heldlayers import Layers
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


class Beside:
    """A child in the user namespace of another container. The shim keeps out of it: a process between the two goes there, makes the
    child, which is the shim's by CLONE_PARENT, tells its pid, and ends. So its pid namespace belongs to that user namespace too."""

    def __init__(self, donors: Mapping[str, int]) -> None:
        self._donors = donors
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def pass_through(self) -> None:
        """In the process between: returns in the child alone."""
        try:
            setns(self._donors["user"], CLONE_NEWUSER)
            if "pid" in self._donors:
                setns(self._donors["pid"], CLONE_NEWPID)
            pid = fork_into_cgroup(-1, CLONE_PARENT | (0 if "pid" in self._donors else CLONE_NEWPID))
        except OSError as error:
            os.write(self._writer, f"-{error.errno}".encode())
            os._exit(1)
        if pid:
            os.write(self._writer, f"{pid}".encode())
            os._exit(0)

    def follow(self, spawned: Spawned) -> None:
        """In the shim: `spawned` is the child from now on. Raises LaunchError."""
        os.close(self._writer)
        told = int(os.read(self._reader, 32) or b"0")
        os.close(self._reader)
        os.waitpid(spawned.pid, 0)
        if told <= 0:
            why = os.strerror(-told).lower() if told else "the process between was killed"
            raise LaunchError(f"cannot join the user namespace of another container: {why}")
        os.close(spawned.pidfd)
        spawned.pid, spawned.pidfd = told, os.pidfd_open(told)


def set_up(plan: LaunchPlan, spawned: Spawned, layers: Layers) -> None:
    """Everything that the child, without rights outside of its namespace, cannot do for itself. It waits for the last of it.

    Raises LaunchError; the child is the caller's to end then.
    """
    pid = spawned.pid
    try:
        maps = () if "user" in plan.namespaces else (("uid_map", plan.uid_map), ("gid_map", plan.gid_map))
        for name, extents in maps:
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
            remapped.prepare(plan, layers, user, spawned.channel)
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
