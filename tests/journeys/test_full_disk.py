"""A disk so full that the catalogue takes nothing any more: what cannot be recorded is as it was, and what ends has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.eventscenarios import Api
from ketch_testing.machine import Machine
from ketch_testing.waiting import until

pytestmark = [needs_root, pytest.mark.root]
NO_SPACE = b'{"message": "catalogue: no space left on device"}\n'


class Crowded:
    """A ketchd on a disk of its own with the network `other`, three containers that run on the default one, and one that never ran."""

    def __init__(self, machine: Machine, disk: Path) -> None:
        self.machine = machine
        self._filling = disk / "filling"
        import_busybox(machine)
        self.api = Api(str(machine.socket))
        self.api("POST", "/networks/create", {"Name": "other"})
        for name in ("left", "killed", "joined"):
            self.api.run(name, "sleep", "1000")
        body = {"Image": "busybox", "Cmd": ["sleep", "1000"], "StopTimeout": 0}
        self.api("POST", "/containers/create?name=fresh", body)
        self.pids = {name: self.state(name)["Pid"] for name in ("left", "killed", "joined")}

    def fill(self) -> None:
        """Until nothing more can be recorded, not even in the catalogue's reserve."""
        with self._filling.open("wb", buffering=0) as file:
            for size in (65536, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue
        for number in range(100_000):
            if self.machine.request("POST", f"/containers/fresh/rename?name=fresh{number}")[0] == 500:
                break
            self.api("POST", f"/containers/fresh{number}/rename?name=fresh", None)

    def empty(self) -> None:
        self._filling.unlink(missing_ok=True)

    def networks(self, name: str) -> dict[str, str]:
        """Name -> address."""
        shown = self.api("GET", f"/containers/{name}/json")["NetworkSettings"]["Networks"]
        return {key: one["IPAddress"] for key, one in shown.items()}

    def state(self, name: str) -> Any:
        return self.api("GET", f"/containers/{name}/json")["State"]

    def reaches_gateway(self, name: str) -> bool:
        """Asked inside, which needs an exec."""
        gateway = self.api("GET", f"/containers/{name}/json")["NetworkSettings"]["Gateway"]
        made = self.api(
            "POST", f"/containers/{name}/exec", {"Cmd": ["ping", "-c", "1", "-W", "10", gateway]}
        )["Id"]
        self.api("POST", f"/exec/{made}/start", {"Detach": True})
        until(lambda: self.api("GET", f"/exec/{made}/json")["ExitCode"] is not None)
        return bool(self.api("GET", f"/exec/{made}/json")["ExitCode"] == 0)


@pytest.fixture
def crowded() -> Iterator[Crowded]:
    base = Path(tempfile.mkdtemp(prefix="ketch-crowded-"))
    (base / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(base / "disk")], check=True)
    machine = Machine(base / "m")
    machine.data_root = base / "disk" / "data"
    try:
        machine.start()
        yield Crowded(machine, base / "disk")
    finally:
        (base / "disk" / "filling").unlink(missing_ok=True)
        machine.close()
        subprocess.run(["umount", str(base / "disk")], check=True)
        (base / "disk").rmdir()
        base.rmdir()


def test_networks_that_cannot_be_recorded_are_as_they_were(crowded: Crowded) -> None:
    before = {name: crowded.networks(name) for name in ("joined", "fresh", "left")}
    crowded.fill()
    ask = crowded.machine.request
    assert ask("POST", "/networks/other/connect", {"Container": "joined"}) == (500, NO_SPACE)
    assert ask("POST", "/networks/other/connect", {"Container": "fresh"}) == (500, NO_SPACE)
    assert ask("POST", "/networks/bridge/disconnect", {"Container": "left"}) == (500, NO_SPACE)
    assert ask("POST", "/networks/bridge/disconnect", {"Container": "fresh"}) == (500, NO_SPACE)
    assert {name: crowded.networks(name) for name in before} == before
    assert crowded.api("GET", "/networks/other")["Containers"] == {}

    crowded.empty()
    assert crowded.reaches_gateway("joined") and crowded.reaches_gateway("left")
    crowded.api("POST", "/networks/other/connect", {"Container": "joined"})
    assert set(crowded.networks("joined")) == {"bridge", "other"}


def test_ends_that_cannot_be_recorded_are_ends(crowded: Crowded) -> None:
    """Containers can be stopped, which may be what makes room, and started again once there is some."""
    crowded.fill()
    os.kill(crowded.state("killed")["Pid"], signal.SIGKILL)
    until(lambda: crowded.state("killed")["Status"] == "exited")
    assert crowded.state("killed")["ExitCode"] == 137
    crowded.api("POST", "/containers/left/kill", None)
    crowded.api("POST", "/containers/joined/stop", None)
    assert {crowded.state(name)["Status"] for name in ("left", "joined")} == {"exited"}

    crowded.empty()
    for name in ("joined", "left", "killed"):
        crowded.api("POST", f"/containers/{name}/start", None)
    assert len({crowded.networks(name)["bridge"] for name in ("joined", "left", "killed")}) == 3
    assert all(crowded.reaches_gateway(name) for name in ("joined", "left", "killed"))
    crowded.machine.kill()
    crowded.machine.start()
    assert {crowded.state(name)["Status"] for name in ("joined", "left", "killed")} == {"running"}


def test_a_pause_that_cannot_be_recorded_is_none(crowded: Crowded) -> None:
    """Nor is one that a commit makes: the container runs on."""
    crowded.fill()
    assert crowded.machine.request("POST", "/containers/left/pause") == (500, NO_SPACE)
    assert crowded.machine.request("POST", "/commit?container=joined")[0] == 500
    assert {crowded.state(name)["Status"] for name in ("left", "joined")} == {"running"}

    crowded.empty()
    assert crowded.reaches_gateway("left") and crowded.reaches_gateway("joined")


def test_ketchd_starts_on_it(crowded: Crowded) -> None:
    """What runs is known, and what ended meanwhile has ended; what makes room can be done."""
    crowded.fill()
    crowded.machine.kill()
    os.kill(crowded.pids["killed"], signal.SIGKILL)
    crowded.machine.start()
    assert {name: crowded.state(name)["Status"] for name in ("left", "joined", "killed", "fresh")} == {
        "left": "running", "joined": "running", "killed": "exited", "fresh": "created"
    }  # fmt: skip
    crowded.api("POST", "/containers/left/stop", None)
    crowded.machine.kill()

    crowded.empty()
    crowded.machine.start()
    assert {crowded.state(name)["Status"] for name in ("left", "killed")} == {"exited"}
    for name in ("left", "killed"):
        crowded.api("POST", f"/containers/{name}/start", None)
    assert all(crowded.reaches_gateway(name) for name in ("joined", "left", "killed"))
