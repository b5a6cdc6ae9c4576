"""Carrying out a CgroupPlan: the directories and limits from outside, the joining by the child itself. Few imports: shims use it."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False  # not from typing: every shim would pay for that module
if TYPE_CHECKING:
    from ketch_wire.launch import CgroupPlan


class NotTaken(Exception):
    """The kernel made something else of a limit than what was asked for. The message is runc's."""


def make(plan: CgroupPlan) -> None:
    """Make the directories and write the limits. Raises OSError with the file it was about, NotTaken."""
    for directory in plan.join:
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pass
        except FileNotFoundError:
            os.makedirs(directory, 0o755, exist_ok=True)
    for path, value in plan.writes:
        try:
            write_limit(path, value)
        except PermissionError as error:
            # What our own cgroup's ancestors refuse stays refused without our rule.
            if error.errno != errno.EPERM or not path.endswith("/devices.allow"):
                raise
    if plan.device_program:
        from ketchd.kernel import bpf

        bpf.attach_device_program(plan.join[0], plan.device_program)


def enter(plan: CgroupPlan) -> None:
    """Move the calling process, which must have one thread, into the plan's directories. Raises OSError.

    On version 1 through `tasks`: moving oneself alone takes no lock of the whole system's forks, as `cgroup.procs` does,
    and so does not wait for an RCU period. Version 2 has no such file.
    """
    for directory in plan.join:
        try:
            write(f"{directory}/tasks", "0")
        except FileNotFoundError:
            write(f"{directory}/cgroup.procs", "0")


def add(directories: tuple[str, ...], pid: int) -> None:
    """Move another process into `directories`. Raises OSError."""
    for directory in directories:
        write(f"{directory}/cgroup.procs", str(pid))


def write_limit(path: str, value: str) -> None:
    """`write`, and a look at what came of it. Raises OSError, NotTaken: then the limit is what it was.

    Of CPU shares that are out of its range version 1 takes the nearest in it, without a word. Source: runc fs/cpu.go, checkCPUShares.
    """
    if not path.endswith("/cpu.shares"):
        return write(path, value)
    before = _number(path)
    write(path, value)
    taken = _number(path)
    if taken != int(value):
        write(path, str(before))
        word = "maximum" if taken < int(value) else "minimum"
        raise NotTaken(f"the {word} allowed cpu-shares is {taken}")


def _number(path: str) -> int:
    with open(path, "rb", buffering=0) as file:
        return int(file.read(64))


def write(path: str, value: str) -> None:
    """One write(2) to an existing file; cgroup files take a value whole. Raises OSError with its path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
    finally:
        os.close(fd)
