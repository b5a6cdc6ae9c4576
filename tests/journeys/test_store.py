"""The store under an operator's eyes: what goes when the disk fills, and what a killed daemon leaves behind."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.consistency import differences
from ketch_testing.heldscenarios import held_by
from ketch_testing.machine import Machine, running

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def own() -> Iterator[Machine]:
    """A machine that finds every disk too full, and tidies when told."""
    policy = {"low": 100, "high": 100, "garbage-hours": 0, "interval": 0}
    with running(settings={"ketch": {"gc": policy}}) as made:
        import_busybox(made)
        yield made


def test_the_compressed_form_goes_and_the_image_stays(own: Machine, open_registry: str) -> None:
    """It is said before what will go; the image runs and can be pushed again."""
    name = f"{open_registry}/gc"
    own.json("POST", f"/images/busybox/tag?repo={name}&tag=1")
    push = ("POST", f"/images/{name}/push?tag=1")
    status, answer = own.request(*push, headers={"X-Registry-Auth": "e30="})
    assert status == 200 and b"error" not in answer, answer
    first = re.search(rb'"Digest":"(sha256:[0-9a-f]+)"', answer)

    said = own.run("ketch", "system", "gc", "--dry-run").stdout
    assert re.search(
        r"^blob sha256:[0-9a-f]{64} \S+: .* % of the disk was free, less than 100 %: its layer is unpacked here",
        said,
    )
    assert "Would reclaim" in said
    told = own.json("POST", "/ketch/gc")
    assert [one["Kind"] for one in told["Deleted"]] == ["blob"] and told["SpaceReclaimed"] > 0
    assert "deleted" in own.log.read_text() and "its layer is unpacked here" in own.log.read_text()
    assert own.json("POST", "/ketch/gc")["Deleted"] == []
    made = own.json("POST", "/containers/create", {"Image": f"{name}:1", "Cmd": ["true"]})["Id"]
    own.json("POST", f"/containers/{made}/start")
    assert own.json("POST", f"/containers/{made}/wait")["StatusCode"] == 0
    status, answer = own.request(*push, headers={"X-Registry-Auth": "e30="})
    again = re.search(rb'"Digest":"(sha256:[0-9a-f]+)"', answer)
    assert first and again and first[1] == again[1], answer
    _, answer = own.request("POST", "/ketch/fsck")
    assert json.loads(answer.splitlines()[-1])["aux"]["Bad"] == 0


def test_what_was_stored_last_is_checked_after_a_kill(own: Machine) -> None:
    """A layer that the power cut tore is found without being used; a clean end is followed by no check."""
    own.stop()
    own.start()
    assert "did not end cleanly" not in own.log.read_text()
    layer = own.json("GET", "/images/busybox/json")["RootFS"]["Layers"][0]
    own.kill()
    path = own.data_root / "layers/sha256" / layer[7:]
    target = (
        path
        if path.is_file()
        else next(one for one in path.rglob("*") if one.is_file() and one.stat().st_size)
    )
    with target.open("r+b") as file:
        file.seek(5000)
        file.write(b"torn")

    own.start()

    deadline = time.monotonic() + 60
    while "did not end cleanly" not in (said := own.log.read_text()):
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.05)
    assert "damaged by the unclean end" in said and layer in said
    own.stop()
    before = len(own.log.read_text())
    own.start()
    assert "did not end cleanly" not in own.log.read_text()[before:]


def test_an_artifact_through_the_clients(own: Machine, open_registry: str) -> None:
    """A chart by tag: pulled, listed, shown, pushed on and removed by both clients; run is refused and says why."""
    blobs = {
        kind: (content, "sha256:" + hashlib.sha256(content).hexdigest())
        for kind, content in (("config", b'{"name":"c"}'), ("layer", b"chart"))
    }
    connection = http.client.HTTPConnection(open_registry)

    def ask(
        method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream"
    ) -> http.client.HTTPResponse:
        connection.request(method, path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (201, 202), answer.status
        return answer

    for content, digest in blobs.values():
        location = ask("POST", "/v2/chart/blobs/uploads/").headers["Location"]
        ask("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}", content)
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": blobs["config"][1], "size": len(blobs["config"][0])},
        "layers": [{"mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "digest": blobs["layer"][1], "size": len(blobs["layer"][0])}],
    }  # fmt: skip
    ask("PUT", "/v2/chart/manifests/1", json.dumps(manifest).encode(), manifest["mediaType"])  # type: ignore[arg-type]
    connection.close()
    name = f"{open_registry}/chart:1"

    own.run("ketch", "pull", name)
    assert f"{open_registry}/chart" in own.run("ketch", "images").stdout
    assert json.loads(own.run("ketch", "image", "inspect", name).stdout)[0]["RepoTags"] == [name]
    refused = own.run("ketch", "run", "--rm", name, check=False)
    assert refused.returncode == 125
    assert (
        f"{name} is an artifact of type application/vnd.cncf.helm.config.v1+json, not a container image"
        in refused.stderr
    )
    own.run("ketch", "tag", name, f"{open_registry}/chart-copy:1")
    own.run("ketch", "push", f"{open_registry}/chart-copy:1")
    if shutil.which("docker"):
        assert f"{open_registry}/chart" in own.run("docker", "images").stdout
        own.run("docker", "pull", name)
    own.run("ketch", "rmi", name, f"{open_registry}/chart-copy:1")
    assert "chart" not in own.run("ketch", "images", "-a").stdout
    _, answer = own.request("POST", "/ketch/fsck")
    assert json.loads(answer.splitlines()[-1])["aux"]["Bad"] == 0


def test_pulls_and_removals_of_one_image_at_once(own: Machine, open_registry: str) -> None:
    """The removed one's files are unlinked while the next one's come: a pull never fails, nothing is half there, nothing stays."""
    name = f"{open_registry}/race:1"
    own.run("ketch", "tag", "busybox", name)
    own.run("ketch", "push", name)
    own.run("ketch", "rmi", "busybox", name)

    def pulls() -> list[str]:
        return [own.run("ketch", "pull", "-q", name, check=False).stderr for _ in range(15)]

    def removals(over: threading.Event) -> list[str]:
        said = []
        while not over.is_set():
            said.append(own.run("ketch", "rmi", "-f", name, check=False).stderr)
        return said

    over = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        removing = threads.submit(removals, over)
        try:
            pulling = [threads.submit(pulls) for _ in range(2)]
            assert {fault for one in pulling for fault in one.result()} == {""}
        finally:
            over.set()
        assert "" in removing.result()

    own.run("ketch", "pull", "-q", name)
    assert "0 bad" in own.run("ketch", "system", "fsck").stdout
    assert own.run("ketch", "run", "--rm", name, "echo", "whole").stdout == "whole\n"
    own.run("ketch", "rmi", name)
    assert differences(own) == []
    for place in ("blobs/sha256", "layers/sha256", "trash"):
        assert list((own.data_root / place).iterdir()) == [], place


def test_layers_stay_mounted_between_containers_and_go_with_the_image(own: Machine) -> None:
    """The launcher has them, no shim does; another launcher begins anew; a removed image keeps nothing, though a container ran."""
    if own.json("GET", "/info")["DriverStatus"][0][1] == "directory":
        pytest.skip("layers are directories: the kernel mounts no EROFS file")
    own.run(
        "docker" if shutil.which("docker") else "ketch", "run", "--rm", "--net", "none", "busybox", "true"
    )
    first = held_by(own.launcher())
    assert first is not None and len(first) == 1

    running = own.run("ketch", "run", "-d", "--net", "none", "busybox", "sleep", "60").stdout.strip()
    assert held_by(own.launcher()) == first
    shim = own.json("GET", f"/containers/{running}/json")["State"]["Pid"]
    parent = int(Path(f"/proc/{shim}/stat").read_text().rpartition(")")[2].split()[1])
    assert held_by(parent) is None

    dead = own.launcher()
    os.kill(dead, signal.SIGKILL)
    while Path(f"/proc/{dead}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert own.run("ketch", "run", "--rm", "--net", "none", "busybox", "echo", "again").stdout == "again\n"
    assert own.launcher() != dead and held_by(own.launcher()) == first

    own.run("ketch", "rm", "-f", running)
    own.run("ketch", "rmi", "busybox")
    assert differences(own) == [] and held_by(own.launcher()) == []


def test_an_image_with_a_layer_twice_runs_again_and_again(own: Machine) -> None:
    """The mounts that containers share are of one file system, which overlayfs takes once."""
    context = own.base / "context"
    context.mkdir()
    (context / "file").write_text("seen\n")
    (context / "Dockerfile").write_text("FROM busybox\nCOPY file /\nENV a=b\nCOPY file /\n")
    own.run("ketch", "build", "-q", "-t", "twice", str(context))
    layers = own.json("GET", "/images/twice/json")["RootFS"]["Layers"]
    assert len(layers) == 3 and layers[1] == layers[2]
    for _ in range(3):
        assert own.run("ketch", "run", "--rm", "--net", "none", "twice", "cat", "/file").stdout == "seen\n"
