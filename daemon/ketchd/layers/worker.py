"""A layer worker: a process of its own that runs one job at a time, off ketchd's GIL, in its own mount namespace.

`python -m ketchd.layers.worker FD`: frames over the inherited socket. In: {"job": "module:function", "args": {…}}, then what
the job asks for. Out: whatever the job sends, then {"result": {…}} or {"fault": class, "message": …}. It ends with its socket.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import socket
import sys
from typing import Any

from ketch_wire import faults
from ketch_wire.frames import FrameReader, pack
from ketchd.kernel.mounts import MS_PRIVATE, MS_REC, mount
from ketchd.kernel.namespaces import CLONE_NEWNS, unshare
from ketchd.kernel.process import PR_SET_PDEATHSIG, prctl, set_name

_ALLOWED = (
    "ketchd.layers.",
    "ketchd.build.",
    "ketchd.containers.",
    "ketchd.content.",
    "ketchd.registry.",
    "ketchd.engine.",
)


class Cancelled(Exception):
    """ketchd does not want the result any more."""


class JobPort:
    """A job's end of the conversation with whoever began it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = FrameReader()
        self._waiting: list[dict[str, Any]] = []

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
            received = self._channel.recv(1 << 20)
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return {"fault": "EngineFailure", "message": f"no space left on device: {error.filename or name}"}
        return {"fault": "EngineFailure", "message": f"{error.strerror or error}: {error.filename or name}"}
    except EOFError:
        raise
    except Exception as error:  # a defect of the job is that job's fault, not the worker's end
        return {"fault": "EngineFailure", "message": f"{name}: {type(error).__name__}: {error}"}


def main() -> int:
    """Serve until ketchd is gone."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_name("ketch-worker")
    channel = socket.socket(fileno=int(sys.argv[1]))
    if os.geteuid() == 0:
        unshare(CLONE_NEWNS)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
    port = JobPort(channel)
    try:
        while True:
            frame = port.next_frame()
            if "job" in frame:
                port.send(run_job(frame["job"], frame["args"], port))
    except (EOFError, ConnectionError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
