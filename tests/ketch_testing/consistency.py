"""Whether a data root and its catalogue say the same, and whether the host holds anything that no container owns."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path

from ketch_testing.heldscenarios import held_by
from ketch_testing.machine import Machine
from ketchd.sandbox import heldlayers

TRASH_SECONDS = 60.0
_NAMESPACE_SECONDS = (
    20.0  # the kernel takes a network namespace down, and its end of the veth pair with it, when it has time
)


def differences(machine: Machine) -> list[str]:
    """One line for everything that only one side knows. The daemon runs, and nothing is under way."""
    root = machine.data_root
    connection = sqlite3.connect(f"file:{root}/catalogue.sqlite?mode=ro", uri=True)
    try:
        known = {
            "blobs/sha256": {row[0][7:] for row in connection.execute("SELECT digest FROM blobs")},
            "layers/sha256": {row[0][7:] for row in connection.execute("SELECT diff_id FROM layers")},
            "containers": {row[0] for row in connection.execute("SELECT id FROM containers")},
            "volumes": {row[0] for row in connection.execute("SELECT name FROM volumes")},
        }
        found = [line for directory, names in known.items() for line in _compare(root, directory, names)]
        found += [f"stage/{name} is left" for name in _names(root / "stage")]
        found += [f"trash/{name} is left" for name in _trash(root / "trash")]
        found += [f"lease {row[0]} is left" for row in connection.execute("SELECT id FROM leases")]
        addressed = {row[0] for row in connection.execute("SELECT container_id FROM addresses")}
        running = {row["Id"] for row in machine.json("GET", "/containers/json")}
        found += [f"address of {name} is left" for name in sorted(addressed - running)]
        for (digest,) in connection.execute(
            "SELECT diff_id FROM image_layers WHERE diff_id NOT IN (SELECT diff_id FROM layers)"
        ):
            found.append(f"layer {digest} of an image is missing")
        for (image,) in connection.execute(
            "SELECT id FROM images WHERE id NOT IN (SELECT digest FROM blobs)"
        ):
            found.append(f"config of image {image} is missing")
        for container, record in connection.execute("SELECT id, record FROM containers"):
            layers = set(json.loads(record)["layers"])
            missing = layers - {f"sha256:{name}" for name in known["layers/sha256"]}
            found += [f"layer {layer} of container {container} is missing" for layer in sorted(missing)]
    finally:
        connection.close()
    found += _host(machine, running)
    return found


def _names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.is_dir() else []


def _trash(directory: Path) -> list[str]:
    """What stays of the things thrown away: they are unlinked behind the answer."""
    deadline = time.monotonic() + TRASH_SECONDS
    while (names := _names(directory)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return names


def _compare(root: Path, directory: str, known: set[str]) -> list[str]:
    present = set(_names(root / directory))
    return [f"{directory}/{name} belongs to nothing" for name in sorted(present - known)] + [
        f"{directory}/{name} is missing" for name in sorted(known - present)
    ]


def _host(machine: Machine, running: set[str]) -> list[str]:
    """Run directories, mounts, cgroups and veth ends that no running container owns."""
    run = machine.exec_root / "containers"
    found = [f"run directory {name} is left" for name in _names(run) if name not in running]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount {line.split()[1]} is left" for line in mounts if str(machine.base) in line]
    bridge = Path(f"/sys/class/net/{machine.bridge}/brif")
    attached = sum(
        1
        for row in machine.json("GET", "/containers/json")
        if row["HostConfig"]["NetworkMode"] in ("bridge", "default")
    )
    until = time.monotonic() + _NAMESPACE_SECONDS
    while len(ports := _names(bridge)) != attached and time.monotonic() < until:
        time.sleep(0.05)
    if len(ports) != attached:
        found.append(f"{len(ports)} links hang on the bridge for {attached} containers")
    return found + _held(machine)


def _held(machine: Machine) -> list[str]:
    """Layers that are gone and still mounted for containers to come: they are let go of behind the answer."""
    files = [path for path in (machine.data_root / "layers/sha256").iterdir() if path.is_file()]
    known = {heldlayers.name(str(path)) for path in files}
    launcher = machine.launcher()
    until = time.monotonic() + TRASH_SECONDS
    while (surplus := set(held_by(launcher) or ()) - known) and time.monotonic() < until:
        time.sleep(0.02)
    return [f"removed layer {name} is still mounted" for name in sorted(surplus)]


def cgroups_left(ids: set[str]) -> list[str]:
    """cgroup directories named after containers that are gone."""
    found = []
    for top, directories, _ in os.walk("/sys/fs/cgroup"):
        found += [
            os.path.join(top, name)
            for name in directories
            if name in ids or name.removeprefix("docker-").removesuffix(".scope") in ids
        ]
    return found
