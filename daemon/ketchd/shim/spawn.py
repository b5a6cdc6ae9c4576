"""Forking the child that becomes a contained process, with its streams and its way home."""

from __future__ import annotations

import _socket
import errno
import os

from ketchd.kernel.clone import fork_into_cgroup, is_too_old
from ketchd.sandbox.failures import LaunchError, reason
from ketchd.sandbox.report import Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    Stdio = tuple[int, int, int]


class Spawned:
    """The parent's side. pidfd: of the child. channel: its reports. sink, outputs: see Streams.connect_pipes."""

    __slots__ = ("channel", "outputs", "pid", "pidfd", "sink")

    def __init__(self, pid: int, channel: _socket.socket, sink: int, outputs: dict[int, int]) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel
        self.sink = sink
        self.outputs = outputs


def spawn(
    become: Callable[[Stdio | None, Report], NoReturn],
    *,
    terminal: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    cgroup: str,
    owner: tuple[int, int] | None = None,
    flags: int = 0,
) -> Spawned:
    """Fork; `become` runs in the child and never returns. cgroup: a version 2 directory to be born in, or "".

    owner: of the pipes, for a child in a user namespace, which could not chown them. flags: CLONE_NEW* to be born in.

    A stream that is not wanted is the container's /dev/null. Raises LaunchError.
    """
    child_ends, sink, outputs = _pipes(
        stdin and not terminal, stdout and not terminal, stderr and not terminal
    )
    try:
        ours, theirs = _pair()
    except OSError:
        _close(*child_ends, sink, *outputs)
        raise
    try:
        if owner is not None:
            for fd in child_ends:
                if fd >= 0:
                    os.fchown(fd, *owner)
        pid = _fork(cgroup, flags)
    except OSError as error:
        _close(*child_ends, sink, *outputs)
        ours.close()
        theirs.close()
        raise LaunchError(_why_no_fork(error)) from error
    if pid == 0:
        try:
            ours.close()
            become(None if terminal else child_ends, Report(theirs))
        finally:
            os._exit(1)
    theirs.close()
    _close(*child_ends)
    return Spawned(pid, ours, sink, outputs)


def _pair() -> tuple[_socket.socket, _socket.socket]:
    kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
    return _socket.socketpair(_socket.AF_UNIX, kind, 0)


def _pipes(stdin: bool, stdout: bool, stderr: bool) -> tuple[Stdio, int, dict[int, int]]:
    """(the child's ends, our end of its input or -1, our ends of its output). Raises OSError; then there is none."""
    sink = -1
    outputs: dict[int, int] = {}
    ends = [-1, -1, -1]
    try:
        if stdin:
            ends[0], sink = os.pipe2(os.O_CLOEXEC)
        for number, wanted in ((1, stdout), (2, stderr)):
            if wanted:
                reader, ends[number] = os.pipe2(os.O_CLOEXEC)
                outputs[reader] = number
    except OSError:
        _close(*ends, sink, *outputs)
        raise
    return (ends[0], ends[1], ends[2]), sink, outputs


def _close(*fds: int) -> None:
    """Those that are open: -1 is none."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _fork(cgroup: str, flags: int) -> int:
    if not cgroup:
        return fork_into_cgroup(-1, flags) if flags else os.fork()
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return fork_into_cgroup(directory, flags)
    except OSError as error:
        if flags or not is_too_old(error):
            raise
        return _fork_and_move(cgroup)
    finally:
        os.close(directory)


def _fork_and_move(cgroup: str) -> int:
    """Before Linux 5.7: the child waits until it was moved."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        if os.read(reader, 1) != b"1":
            os._exit(1)
        os.close(reader)
        return 0
    os.close(reader)
    try:
        with open(f"{cgroup}/cgroup.procs", "wb", buffering=0) as members:
            members.write(str(pid).encode())
        os.write(writer, b"1")
    finally:
        os.close(writer)
    return pid


def _why_no_fork(error: OSError) -> str:
    if error.errno == errno.ENOMEM:
        return "cannot fork: the container's pid namespace has ended"
    return f"cannot fork: {reason(error)}"
