"""The store under an operator's eyes: what goes when the disk fills, and what a killed daemon leaves behind."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.machine import Machine

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def own() -> Iterator[Machine]:
    """A machine that finds every disk too full, and tidies when told."""
    made = Machine(Path(tempfile.mkdtemp(prefix="ketch-store-")))
    policy = {"low": 100, "high": 100, "garbage-hours": 0, "interval": 0}
    (made.base / "daemon.json").write_text(json.dumps({"ketch": {"gc": policy}}))
    try:
        made.start()
        import_busybox(made)
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


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
    status, answer = own.request("POST", "/ketch/fsck")
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
