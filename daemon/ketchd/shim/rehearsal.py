"""A shim's whole life, played in the launcher before the first shim is forked, so that every shim finds it warm.

What an interpreter does for the first time it writes down in its own memory: specialised instructions, looked-up
attributes, interned names. A shim that had to do so would copy the pages for itself, and take its time. Nothing is started and
nothing stays: the container is a fork that says its lines, its directories lie in a tmpfs that is attached nowhere.
"""

from __future__ import annotations

import _socket
import os

from ketch_wire.frames import pack
from ketchd.kernel.detached import fsmount
from ketchd.shim.shim import Shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from ketchd.sandbox.heldlayers import Layers
    from ketchd.sandbox.report import Report
    from ketchd.shim.spawn import Stdio

_TIMES = 12  # an interpreter specialises what has run eight times


def rehearse() -> None:
    """Play it a few times. SIGCHLD must not be ignored. Where it cannot be played, shims start colder, and that is all."""
    try:
        stage = fsmount("tmpfs", [("mode", "700")])
    except OSError:
        return  # a kernel before 5.2, or a seccomp filter around us
    try:
        path = f"/proc/self/fd/{stage}"
        os.mkdir(f"{path}/cgroup")
        os.close(os.open(f"{path}/cgroup/tasks", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        for _ in range(_TIMES):
            _play(path)
    except OSError:
        return
    finally:
        os.close(stage)


def _play(path: str) -> None:
    ketchd, channel = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        ketchd.sendall(
            pack(
                {"op": "start", "seq": 1, "outline": _outline(path), "whole": b"", "streams": [], "ports": 0}
            )
        )
        ketchd.sendall(pack({"op": "go", "seq": 2}))
        shim = Shim(channel, -1, _container)
        try:
            shim.run()
        finally:
            shim.close()
    finally:
        ketchd.close()


def _container(
    whole: bytes, donors: dict[str, int], layers: Layers, stdio: Stdio | None, report: Report
) -> NoReturn:
    """The child's part, as far as its shim notices."""
    try:
        report.say({"namespaces": True})
        report.wait_for_go()
        assert stdio is not None
        os.write(stdio[1], b"a line\n")
        report.say({"ready": True})
    finally:
        os._exit(0)


def _outline(path: str) -> list[Any]:
    """A plan in which nothing is new but what lies below `path`. Order: LaunchPlan.outline."""
    return [
        "rehearsal", path, path, False, {"pid": "host"}, [], [], [("directory", path)], (False, False, False),
        ([f"{path}/cgroup"], [(f"{path}/cgroup/tasks", "0")], b""),
        ("json-file", f"{path}/log", 0, 1, False, b"", {}, ""),
    ]  # fmt: skip
