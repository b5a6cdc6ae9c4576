"""The store heals: bytes flipped on the disk are found and fetched again, and a repair that is killed is repaired by the next."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.consistency import differences
from ketch_testing.machine import BIN, Machine, running
from ketch_testing.oldindex import index_as_before

pytestmark = [pytest.mark.root, needs_root]


def fsck(machine: Machine, *, repair: bool = False) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(findings, the sum of them)."""
    status, answer = machine.request("POST", f"/ketch/fsck?repair={int(repair)}")
    assert status == 200, answer
    messages = [json.loads(line) for line in answer.splitlines()]
    assert not [message for message in messages if "error" in message], messages
    told = [message["aux"] for message in messages if "aux" in message]
    return told[:-1], told[-1]


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture(scope="module")
def pulled(open_registry: str) -> Iterator[tuple[Machine, str]]:
    """A machine whose `base:1` came from the registry, with config, manifest and blobs."""
    name = f"{open_registry}/base:1"
    with running() as machine:
        import_busybox(machine)
        machine.json("POST", f"/images/busybox/tag?repo={open_registry}/base&tag=1")
        status, answer = machine.request(
            "POST", f"/images/{open_registry}/base/push?tag=1", headers={"X-Registry-Auth": "e30="}
        )
        assert status == 200 and b"error" not in answer, answer
        for row in machine.json("GET", "/images/json"):
            machine.json("DELETE", f"/images/{row['Id']}?force=1")
        status, answer = machine.request("POST", f"/images/create?fromImage={open_registry}/base&tag=1")
        assert status == 200 and b"error" not in answer, answer
        yield machine, name


def harm(machine: Machine, name: str) -> list[str]:
    """A bit of every file that the image is made of; their digests."""
    shown = machine.json("GET", f"/images/{name}/json")
    (layer,) = shown["RootFS"]["Layers"]
    flip(machine.data_root / "layers/sha256" / layer[7:], 100_000)
    blobs = sorted((machine.data_root / "blobs/sha256").iterdir())
    for path in blobs:
        flip(path, 2)
    return [layer, *(f"sha256:{path.name}" for path in blobs)]


def runs(machine: Machine, name: str) -> bool:
    made = machine.json("POST", "/containers/create", {"Image": name, "Cmd": ["true"]})["Id"]
    machine.json("POST", f"/containers/{made}/start")
    code = machine.json("POST", f"/containers/{made}/wait")["StatusCode"]
    machine.json("DELETE", f"/containers/{made}")
    return bool(code == 0)


def test_everything_that_was_harmed_is_found_and_fetched(pulled: tuple[Machine, str]) -> None:
    machine, name = pulled
    assert fsck(machine) == ([], fsck(machine)[1])
    harmed = harm(machine, name)

    found, total = fsck(machine)
    assert sorted(one["Key"] for one in found) == sorted(harmed)
    assert total["Bad"] == len(harmed) and total["Repaired"] == 0
    found, total = fsck(machine, repair=True)
    assert total["Repaired"] >= 3 and not [one for one in found if not one["Repaired"]], found
    assert fsck(machine)[0] == [] and runs(machine, name)


@pytest.mark.parametrize("point", ["fsck.layer-removed", "fsck.blob-removed"])
def test_a_repair_that_was_killed(pulled: tuple[Machine, str], point: str) -> None:
    machine, name = pulled
    harm(machine, name)
    if point == "fsck.blob-removed":  # only the layer's blob is bad: it is fetched for itself
        fsck(machine, repair=True)
        shown = machine.json("GET", f"/images/{name}/json")
        kept = {shown["Id"][7:], shown["Descriptor"]["digest"][7:]}
        for path in (machine.data_root / "blobs/sha256").iterdir():
            if path.name not in kept:
                flip(path, 2)
    # By then it has ended cleanly once: after another end it would begin to mend by itself.
    with machine.killed_at(point), pytest.raises(Exception):  # noqa: B017 (however the connection ends)
        fsck(machine, repair=True)

    fsck(machine, repair=True)
    assert fsck(machine)[0] == [] and runs(machine, name)


@pytest.mark.parametrize("point", ["", "fsck.layer-replaced"])
def test_a_layer_that_an_older_ketchd_indexed(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Nothing is fetched for it: the tar is there. What runs on the old file runs on; killed amid it, the next check mends it."""
    with running() as machine:
        if machine.json("GET", "/info")["Driver"] == "directory":
            pytest.skip("the kernel mounts no EROFS files here")
        import_busybox(machine)
        image = machine.json("GET", "/images/busybox/json")
        (layer,) = image["RootFS"]["Layers"]
        path = machine.data_root / "layers/sha256" / layer[7:]
        with contextlib.closing(sqlite3.connect(machine.data_root / "catalogue.sqlite")) as catalogue:
            tar_size = catalogue.execute("SELECT tar_size FROM layers").fetchone()[0]
        index_as_before(path, tar_size, monkeypatch)
        old = machine.json("POST", "/containers/create", {"Image": "busybox", "Cmd": ["sleep", "600"]})["Id"]
        machine.json("POST", f"/containers/{old}/start")
        assert ".." not in listed(machine)

        (finding,), _ = fsck(machine)
        assert (finding["Key"], finding["Repaired"]) == (layer, "")
        assert finding["Problem"].startswith("was indexed by an older ketchd")
        if point:
            with machine.killed_at(point), pytest.raises(Exception):  # noqa: B017 (however the connection ends)
                fsck(machine, repair=True)
        else:
            (finding,), _ = fsck(machine, repair=True)
            assert finding["Repaired"] == "indexed again from its own tar"
        assert fsck(machine)[0] == [] and differences(machine) == []
        assert ".." in listed(machine)
        assert machine.json("GET", f"/containers/{old}/json")["State"]["Running"]
        assert machine.json("GET", "/images/busybox/json")["Size"] == path.stat().st_blocks * 512


def listed(machine: Machine) -> list[str]:
    """What a new container sees in /bin."""
    return machine.run(str(BIN / "ketch"), "run", "--rm", "busybox", "ls", "-a", "/bin").stdout.split()


def test_what_cannot_be_opened_is_refused_before_it_is_sent(pulled: tuple[Machine, str]) -> None:
    """An export, a copy and a save say what is missing, in place of an end too soon."""
    machine, name = pulled
    layer = machine.json("GET", f"/images/{name}/json")["RootFS"]["Layers"][0]
    made = machine.json("POST", "/containers/create", {"Image": name, "Cmd": ["true"]})["Id"]
    path = machine.data_root / "layers/sha256" / layer[7:]
    path.rename(path.with_name("away"))
    try:
        for request in (
            f"/containers/{made}/export",
            f"/containers/{made}/archive?path=/",
            f"/images/{name}/get",
        ):
            status, answer = machine.request("GET", request)
            assert status == 500 and layer[7:] in json.loads(answer)["message"], answer
    finally:
        path.with_name("away").rename(path)
        machine.json("DELETE", f"/containers/{made}")
