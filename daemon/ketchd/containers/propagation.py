"""Whether a bind's source can propagate mounts as asked. Pure: /proc/self/mountinfo is passed in.

Source: proc_pid_mountinfo(5), "optional fields"; messages are dockerd's (daemon/oci_linux.go).
"""

from __future__ import annotations

import re

from ketch_wire.faults import EngineFailure

_OCTAL = re.compile(r"\\([0-7]{3})")


def check(mountinfo: str, source: str, propagation: str) -> None:
    """Raises EngineFailure when `source` (no links in it) lies on a mount that cannot. Other words than (r)shared and (r)slave pass."""
    kind = propagation.removeprefix("r")
    if kind not in ("shared", "slave"):
        return
    point, tags = _mount_of(mountinfo, source)
    if "shared" in tags or (kind == "slave" and "master" in tags):
        return
    wanted = "shared" if kind == "shared" else "shared or slave"
    raise EngineFailure(f"path {source} is mounted on {point} but it is not a {wanted} mount")


def _mount_of(mountinfo: str, path: str) -> tuple[str, set[str]]:
    """The mount that `path` lies on: its point and the names of its tags. The last of several on one point counts."""
    best, tags = "", set[str]()
    for line in mountinfo.splitlines():
        fields = line.partition(" - ")[0].split(" ")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, tags = point, {tag.partition(":")[0] for tag in fields[6:]}
    return best, tags
