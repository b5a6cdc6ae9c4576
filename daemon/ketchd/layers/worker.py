"""A layer worker: a process of its own that runs one job at a time, off ketchd's GIL, in its own mount namespace.

`main(FD)` is the nursery: it imports what jobs need, has no threads, and for each byte that comes with a
descriptor over the inherited socket forks a worker for that descriptor, whose pidfd it sends back. It ends with its socket.

A worker's socket carries frames. In: {"job": "module:function", "args": {…}, "fds": how many descriptors come with it}, then what
the job asks for. Out: whatever the job sends, then {"result": {…}} or {"fault": class, "message": …}. It ends with its socket.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import signal
import socket
from typing import Any

from ketch_wire import faults
from ketch_wire.frames import FrameReader, pack
from ketchd.kernel import memory
from ketchd.kernel.mounts import MNT_DETACH, MS_NODEV, MS_NOSUID, MS_SLAVE, mount, umount
from ketchd.kernel.namespaces import CLONE_NEWNS, unshare
from ketchd.kernel.ownroot import take_root
from ketchd.kernel.process import PR_SET_PDEATHSIG, prctl, set_name

FD_LIMIT = 16
_SCRATCH = "/proc/driver"
_PRELOADED = (
    "ketchd.layers.ingest", "ketchd.layers.snapshots", "ketchd.layers.diff", "isal.igzip_lib", "isal.isal_zlib",
)  # fmt: skip
_ALLOWED = (
    "ketchd.layers.",
    "ketchd.build.",
    "ketchd.containers.",
    "ketchd.content.",
    "ketchd.registry.",
    "ketchd.engine.",
    "ketchd.network.",
)


class Cancelled(Exception):
    """ketchd does not want the result any more."""


class JobPort:
    """A job's end of the conversation with whoever began it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = FrameReader()
        self._waiting: list[dict[str, Any]] = []
        self._fds: list[int] = []
        self._scratched = False
        self._outlives = False
        self._places = 0

    def take_fd(self) -> int:
        """The next descriptor that came with the job; it is the caller's to close. Raises EngineFailure."""
        if not self._fds:
            raise faults.EngineFailure("the job misses a file descriptor")
        return self._fds.pop(0)

    def scratch(self, *, outlives: bool = False) -> str:
        """An empty directory for the job's mounts and small files, on a tmpfs that goes with the job, mounts and all.

        outlives: it may go after the outcome was told, since unmounting waits for every processor; not for a job that mounts
        a writable layer which others will mount next.
        It covers /proc/driver, in this process's mount namespace: a directory that every Linux has, that no job reads, and
        with which nothing is ever left on a disk, however the worker ends. Raises OSError; EngineFailure without root.
        """
        if os.geteuid() != 0:
            raise faults.EngineFailure("mounting layers needs root")
        self._outlives = outlives and (self._outlives or not self._scratched)
        if not self._scratched:
            mount("scratch", _SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=16m")
            self._scratched = True
        self._places += 1
        place = f"{_SCRATCH}/{self._places}"
        os.mkdir(place, 0o700)
        return place

    def end_job(self, outcome: dict[str, Any]) -> None:
        """Tell the outcome, and let go of what the job used: its mounts, and the descriptors that it did not take."""
        if self._outlives:
            self.send(outcome)
        if self._scratched:
            os.chdir("/")
            umount(_SCRATCH, MNT_DETACH)
            self._scratched = False
        self.drop_fds()
        if not self._outlives:
            self.send(outcome)
        self._outlives = False

    def drop_fds(self) -> None:
        """Close the descriptors that nobody took."""
        while self._fds:
            os.close(self._fds.pop())

    def send(self, message: dict[str, Any]) -> None:
        """Say something before the result."""
        self._channel.sendall(pack(message))

    def receive(self) -> dict[str, Any]:
        """The next message. Raises Cancelled."""
        message = self.next_frame()
        if message.get("cancel"):
            raise Cancelled
        return message

    def next_frame(self) -> dict[str, Any]:
        """The next frame. Raises EOFError when ketchd is gone."""
        while not self._waiting:
            received, fds, _, _ = socket.recv_fds(self._channel, 1 << 20, FD_LIMIT, socket.MSG_CMSG_CLOEXEC)
            self._fds += fds
            if not received:
                raise EOFError
            self._waiting += self._reader.feed(received)
        return self._waiting.pop(0)


def run_job(name: str, arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """Carry out one job; its outcome as a message."""
    try:
        module, _, function = name.partition(":")
        if not name.startswith(_ALLOWED):
            raise faults.EngineFailure(f"no such job: {name}")
        result = getattr(importlib.import_module(module), function)(arguments, port)
        return {"result": result}
    except faults.Fault as fault:
        return {"fault": type(fault).__name__, "message": fault.message}
    except Cancelled:
        return {"fault": "EngineFailure", "message": "cancelled"}
    except OSError as error:
        what = f": {_short(error.filename)}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return {"fault": "EngineFailure", "message": f"no space left on device{what}"}
        return {
            "fault": "EngineFailure",
            "message": (error.strerror or str(error)).lower() + (what or f": {name}"),
        }
    except EOFError:
        raise
    except Exception as error:  # a defect of the job is that job's fault, not the worker's end
        return {"fault": "EngineFailure", "message": f"{name}: {type(error).__name__}: {error}"}


def _short(path: Any) -> str:
    """Of a path that was too long for the kernel, its beginning."""
    text = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    return text if len(text) <= 4096 else f"{text[:80]}…"


def _run_apart(frame: dict[str, Any], port: JobPort) -> None:
    """A job that enters what it cannot leave (a user namespace) has a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            port.end_job(run_job(frame["job"], frame["args"], port))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    port.drop_fds()
    if status:
        port.send({"fault": "EngineFailure", "message": f"{frame['job']}: its process ended too soon"})


def serve(channel: socket.socket) -> None:
    """A worker's life: one job after another, until ketchd is gone."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    set_name("ketch-worker")
    if os.geteuid() == 0:
        unshare(CLONE_NEWNS)
        take_root(MS_SLAVE)  # what the host mounts later is seen, nothing goes back
    port = JobPort(channel)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            frame = port.next_frame()
            if "job" in frame:
                root = frame["args"].get("root")
                if isinstance(root, dict) and root.get("user"):
                    _run_apart(frame, port)
                else:
                    port.end_job(run_job(frame["job"], frame["args"], port))


def main(fd: int) -> int:
    """The nursery's life."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a worker: ketchd watches its pidfd
    set_name("ketch-nursery")
    control = socket.socket(fileno=fd)
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    memory.give_back()
    memory.note_instructions()
    memory.let_go_of_instructions()  # it forks; its children run them
    with contextlib.suppress(ConnectionError):
        while True:
            wanted, fds, _, _ = socket.recv_fds(control, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if not wanted:
                break
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                serve(socket.socket(fileno=fds[0]))
                return 0
            _send_pidfd(control, pid)
            for fd in fds:
                os.close(fd)
    return 0


def _send_pidfd(control: socket.socket, pid: int) -> None:
    """The worker's pidfd, or nothing with the byte when it has ended already."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        control.send(b"-")
        return
    socket.send_fds(control, [b"+"], [pidfd])
    os.close(pidfd)
