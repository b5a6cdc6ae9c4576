"""A plan that came over the wire, as an object with the plan's names.

ketch_wire.launch's dataclasses would do it too, and cost every shim 2 MiB: dataclasses imports inspect, ast, dis and re.
"""

from __future__ import annotations

import os
import types

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


def version_two_cgroup(directories: list[str] | tuple[str, ...]) -> str:
    """The directory among `directories` that belongs to cgroup v2, or ""."""
    for directory in directories:
        if not os.path.exists(f"{directory}/tasks"):
            return directory
    return ""
