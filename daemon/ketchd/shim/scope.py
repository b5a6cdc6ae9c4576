"""The systemd scope of what outlives ketchd: launcher, shims and containers, in a delegated cgroup that is not ketchd's own.

Every process below a service's cgroup is systemd's to end: `systemctl kill ketchd` reaches them all, whatever KillMode= says.
So `ketchd.service` gets `ketchd-containers.scope` beside it, in the same slice: `supervisor` in it holds launcher and shims,
`docker/ID` a container. systemd takes the scope away with its last process; the next start makes it again.
Source: org.freedesktop.systemd1(5), StartTransientUnit; systemd.scope(5); systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ketchd.kernel.cgrouphost import LEAF, Mounted, own_path
from ketchd.kernel.cgroupjoin import write
from ketchd.kernel.cgrouptree import read

PATIENCE_SECONDS = 30.0
_NO_LIMIT = str((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope beside a service. service, slice: names of units; parent: the slice's cgroup directory."""

    service: str
    slice: str
    parent: str

    @property
    def unit(self) -> str:
        return self.service.removesuffix(".service") + "-containers.scope"

    @property
    def directory(self) -> str:
        return f"{self.parent}/{self.unit}"

    def describe(self, pid: int) -> list[str]:
        """The command that makes the scope around process `pid`."""
        properties = (
            ("Description", "s", "Containers of " + self.service),
            ("Slice", "s", self.slice),
            ("Delegate", "b", "true"),
            ("TasksMax", "t", _NO_LIMIT),
            ("CollectMode", "s", "inactive-or-failed"),
            # When the machine goes down ketchd ends first: it must not see its containers die, and start them again.
            ("Before", "as", "1", self.service),
            # Then every process gets SIGTERM; a container's first one often has no handler for it. Docker's grace.
            ("TimeoutStopUSec", "t", "10000000"),
            ("PIDs", "au", "1", str(pid)),
        )
        return [
            "busctl", "--system", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", self.unit, "fail",
            str(len(properties)), *(word for words in properties for word in words), "0",
        ]  # fmt: skip

    def house(self, pid: int) -> None:
        """Move process `pid` into the leaf of the scope, which is made if there is none. Blocks. Raises OSError."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            if self._is_alive() and self._enter(pid):
                return
            done = subprocess.run(
                self.describe(pid), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            # One that loses its last process now is refused (`was already loaded`) until systemd has taken it away.
            if done.returncode == 0:
                self._await_member(pid, deadline)
            elif time.monotonic() > deadline or "already" not in done.stderr + done.stdout:
                raise OSError(f"{self.unit}: {(done.stderr or done.stdout).strip()}")
            time.sleep(0.05 if done.returncode else 0)

    def _is_alive(self) -> bool:
        try:
            return "populated 1" in read(f"{self.directory}/cgroup.events")
        except OSError:
            return False

    def _enter(self, pid: int) -> bool:
        """False when the scope went away meanwhile."""
        try:
            os.makedirs(f"{self.directory}/{LEAF}", exist_ok=True)
            write(f"{self.directory}/{LEAF}/cgroup.procs", str(pid))
        except FileNotFoundError:
            return False
        return True

    def _await_member(self, pid: int, deadline: float) -> None:
        """Until systemd has moved `pid`: the call answers with a job that runs."""
        while not own_path(read(f"/proc/{pid}/cgroup")).endswith("/" + self.unit):
            if time.monotonic() > deadline:
                raise OSError(f"{self.unit}: systemd does not start it")
            time.sleep(0.002)


def scope_beside(environ: Mapping[str, str], pid: int, mounted: Mounted, own: str) -> Scope | None:
    """The scope for process `pid`, or None where systemd did not start it as a service or cgroups are not version 2. Pure.

    own: the process's cgroup path. environ: its environment (SYSTEMD_EXEC_PID, systemd.exec(5)).
    """
    if mounted.version != 2 or environ.get("SYSTEMD_EXEC_PID") != str(pid):
        return None
    parts = own.strip("/").split("/")
    if parts[-1] == LEAF:
        parts.pop()
    if not parts or not parts[-1].endswith(".service"):
        return None
    *above, service = parts
    if any(not part.endswith(".slice") for part in above):
        return None  # a user's own manager: its slices are not the system's
    return Scope(service, above[-1] if above else "-.slice", "/".join([mounted.unified, *above]))
