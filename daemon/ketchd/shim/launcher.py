"""The launcher as ketchd holds it: started before the event loop, and again whenever it has died."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgpack

import ketch_wire
import ketchd
from ketchd.kernel import detached, rights
from ketchd.sandbox import heldlayers

# No site module, no environment, no bytecode written: what the interpreter needs is told in full. The path stands in the
# argument list last, so that `ps` shows whose launcher it is.
# msgpack wants datetime: its C half alone does, and spares each shim what is left of the other.
_PROGRAM = (
    "import sys, _datetime; sys.modules['datetime'] = _datetime; sys.path[:0] = sys.argv[2].split(chr(58)); "
    "from ketchd.shim.program import main; main(int(sys.argv[1]))"
)

_NAMES = heldlayers.PACKET // 40  # in one packet: a device and an inode are 33 characters at most


class Launcher:
    """Hands sockets to the launcher process, which holds layers for all of them. `close` ends it; its shims run on.

    house: called with the pid of each launcher process before it starts anything; its shims stay where it moves that.
    """

    def __init__(self, exec_root: Path, house: Callable[[int], None] | None = None) -> None:
        self._exec_root = exec_root
        self._house = house
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._start()

    @property
    def pid(self) -> int:
        """The launcher's process."""
        assert self._process is not None
        return self._process.pid

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, _interpreter() as (interpreter, held):
            self._process = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, str(theirs.fileno()), os.pathsep.join(_import_path()),
                    str(self._exec_root),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                executable=interpreter,
                pass_fds=[theirs.fileno(), *held],
                cwd="/",
                env={"LANG": "C.UTF-8"},
            )  # fmt: skip
        self._control = ours
        if self._house is not None:
            self._house(self._process.pid)

    def revive(self) -> None:
        """Start the launcher process again if it has died. Raises OSError. Thread-safe."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()

    def launch(self) -> socket.socket:
        """A new shim: our end of its connection. Respawns a launcher that has died. Raises OSError. Thread-safe."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                with self._lock:
                    self._hand_over(theirs.fileno())
            except BaseException:
                ours.close()
                raise
        return ours

    def forget_layers(self, names: Sequence[str]) -> int:
        """The layer files of these `heldlayers.names` are removed: nothing that is held for later containers keeps them. Thread-safe.

        Returns a descriptor, the caller's, that comes to its end when all of them are let go of. Raises OSError.
        """
        done, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            with self._lock, contextlib.suppress(OSError):  # a launcher that has died holds nothing
                for start in range(0, len(names), _NAMES):
                    if self._control is not None:
                        packet = b"f" + " ".join(names[start : start + _NAMES]).encode()
                        self._control.sendmsg([packet], rights.packed([theirs]))
        finally:
            os.close(theirs)
        return done

    def _hand_over(self, fd: int) -> None:
        for last in (False, True):
            try:
                if self._control is None:
                    self._start()
                assert self._control is not None
                self._control.sendmsg([b"s"], rights.packed([fd]))
                return
            except (BrokenPipeError, ConnectionError):
                self.close()
                if last:
                    raise

    def close(self) -> None:
        """End the launcher process. May be called twice."""
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
                return
            process.kill()
            process.wait()


@contextlib.contextmanager
def _interpreter() -> Iterator[tuple[str, list[int]]]:
    """(what to execute, the descriptors it needs): the interpreter by way of a detached read-only mount of its file.

    A process of ours that passes through a container shows its executable there as /proc/PID/exe. Through such a mount it
    cannot be opened for writing, whatever the container may do (CVE-2019-5736). The mount is in no namespace, and is gone
    with the last process that executes it.
    """
    path = os.path.realpath(sys.executable)
    try:
        tree = detached.clone_tree(path, recursive=False)
    except OSError:  # a kernel before 5.2, or a seccomp filter around us
        yield path, []
        return
    try:
        attributes = detached.MOUNT_ATTR_RDONLY | detached.MOUNT_ATTR_NOSUID | detached.MOUNT_ATTR_NODEV
        detached.mount_setattr(tree, add=attributes, recursive=False, what=path)
        yield f"/proc/self/fd/{tree}", [tree]
    finally:
        os.close(tree)


def start_launcher(exec_root: Path, house: Callable[[int], None] | None = None) -> Launcher:
    """Start the launcher process. Call it while this process has one thread."""
    return Launcher(exec_root, house)


def _import_path() -> list[str]:
    """Where the launcher's few packages lie."""
    roots = [Path(package.__path__[0]).parent for package in (ketchd, ketch_wire, msgpack)]
    return list(dict.fromkeys(str(root) for root in roots))
