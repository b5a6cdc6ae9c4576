"""A plan that came over the wire, as an object with the plan's names.

ketch_wire.launch's dataclasses would do it too, and cost every shim 2 MiB: dataclasses imports inspect, ast, dis and re.
What a shim keeps is the outline, without a dictionary in it: each name there is a count in a page that it shares with all others.
"""

from __future__ import annotations

import os
import types

from ketch_wire.frames import FrameReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ketch_wire.launch import LaunchPlan, ProcessPlan

# What a plan of an older ketchd may lack.
_PROCESS = {
    "groups": (), "console_size": (0, 0), "open_stdin": False, "stdin_once": False, "capabilities": (),
    "no_new_privileges": False, "seccomp": b"", "rlimits": {}, "oom_score_adj": 0, "init": False,
}  # fmt: skip
_LAUNCH = {"transient": False, "netlink": (), "uid_map": (), "gid_map": ()}
_LOG = {"compress": False, "attrs": b"", "journal": {}, "journal_socket": ""}


def _object(values: dict[str, Any]) -> Any:
    return types.SimpleNamespace(**values)


def process_plan(wire: dict[str, Any]) -> ProcessPlan:
    """`wire` as a ProcessPlan."""
    made: ProcessPlan = _object(_PROCESS | wire)
    return made


def launch_plan(wire: dict[str, Any]) -> LaunchPlan:
    """`wire` as a LaunchPlan. Raises KeyError on what is none."""
    values = _LAUNCH | wire
    values["root"] = _object(wire["root"] | {"layers": [_object(one) for one in wire["root"]["layers"]]})
    values["process"] = process_plan(wire["process"])
    values["mounts"] = [_object(one) for one in wire["mounts"]]
    values["devices"] = [_object(one) for one in wire["devices"]]
    values["cgroup"] = _object(wire["cgroup"])
    values["log"] = _object(_LOG | wire["log"])
    made: LaunchPlan = _object(values)
    return made


class _Log:
    __slots__ = ("attrs", "compress", "driver", "journal", "journal_socket", "max_files", "max_size", "path")

    def __init__(self, wire: list[Any]) -> None:
        (
            self.driver, self.path, self.max_size, self.max_files, self.compress, self.attrs, self.journal,
            self.journal_socket,
        ) = wire  # fmt: skip


class _Cgroup:
    __slots__ = ("device_program", "join", "writes")

    def __init__(self, wire: list[Any]) -> None:
        self.join, self.writes, self.device_program = wire


class _Process:
    __slots__ = ("open_stdin", "stdin_once", "tty")

    def __init__(self, wire: list[Any]) -> None:
        self.tty, self.open_stdin, self.stdin_once = wire


class _Layer:
    __slots__ = ("kind", "path")

    def __init__(self, wire: list[Any]) -> None:
        self.kind, self.path = wire


class _Root:
    __slots__ = ("layers",)

    def __init__(self, wire: list[Any]) -> None:
        self.layers = [_Layer(one) for one in wire]


class _Outline:
    __slots__ = (
        "cgroup", "gid_map", "id", "log", "namespaces", "process", "root", "run_dir", "state_dir", "transient", "uid_map",
    )  # fmt: skip

    def __init__(self, wire: list[Any]) -> None:
        (
            self.id, self.state_dir, self.run_dir, self.transient, self.namespaces, self.uid_map, self.gid_map,
            layers, process, cgroup, log,
        ) = wire  # fmt: skip
        self.root = _Root(layers)
        self.process = _Process(process)
        self.cgroup = _Cgroup(cgroup)
        self.log = _Log(log)


def outline(wire: list[Any]) -> LaunchPlan:
    """`LaunchPlan.outline`'s list: as much of a plan as its shim acts on. Raises ValueError on what is none."""
    made: Any = _Outline(wire)
    plan: LaunchPlan = made
    return plan


def whole_plan(frame: bytes) -> LaunchPlan:
    """The plan in `frame`, which its shim has not looked into."""
    return launch_plan(FrameReader().feed(frame)[0])


def version_two_cgroup(directories: list[str] | tuple[str, ...]) -> str:
    """The directory among `directories` that belongs to cgroup v2, or ""."""
    for directory in directories:
        if not os.path.exists(f"{directory}/tasks"):
            return directory
    return ""
