"""Directories nested deeper than a path can name or a stack can hold: every journey does with them what it can, or says in one line why not."""

from __future__ import annotations

import http.client
import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import needs_root

from ketch_testing.deep import deepen, depth
from ketch_testing.machine import BIN, Machine

pytestmark = [pytest.mark.root, needs_root]
LEVELS = 3000


def ended(machine: Machine, name: str, image: str = "busybox", *, levels: int, called: str) -> str:
    """A container that has ended, with that many directories in its /top; its ID."""
    made: str = machine.json(
        "POST", f"/containers/create?name={name}", {"Image": image, "Cmd": ["sleep", "600"]}
    )["Id"]
    top = machine.data_root / "containers" / made / "upper" / "top"
    top.mkdir()
    deepen(top, levels, called)
    return made


def file_over(name: str) -> bytes:
    """A tar with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    return buffer.getvalue()


def said(answer: bytes) -> str:
    """The one line of an error."""
    message: str = json.loads(answer)["message"]
    assert "\n" not in message and len(message) < 300 and "Error" not in message, message
    return message


@pytest.mark.parametrize("called", ["d", "d" * 200])
@pytest.mark.parametrize("runs", [False, True])
def test_a_container_deeper_than_a_path(machine: Machine, called: str, runs: bool) -> None:
    made = ended(machine, "deep", levels=LEVELS, called=called)
    if runs:
        machine.json("POST", f"/containers/{made}/start")
    long = len(called) > 1

    status, answer = machine.request("GET", f"/containers/{made}/changes")
    if long:
        assert status == 400 and "is nested too deep" in said(answer)
    else:
        assert len(json.loads(answer)) == LEVELS + 2
    for path in (f"/containers/{made}/archive?path=/top", f"/containers/{made}/export"):
        if long:
            with pytest.raises(http.client.IncompleteRead):
                machine.request("GET", path)
            told = machine.log.read_text().splitlines()[-1]
            assert "an answer was cut off" in told and "its path is longer than 65536 bytes" in told
        else:
            status, answer = machine.request("GET", path)
            assert status == 200
            with tarfile.open(fileobj=io.BytesIO(answer)) as tar:
                names = tar.getnames()
            assert f"top/{'d/' * LEVELS}file" in names
    status, answer = machine.request("POST", f"/commit?container={made}&repo=committed")
    assert status == 400 and "a path in a layer has at most 4095 bytes" in said(answer)
    (row,) = machine.json("GET", "/containers/json?all=1&size=1")
    assert row["SizeRw"] == 0 if long else row["SizeRw"] >= 0

    status, answer = machine.request("PUT", f"/containers/{made}/archive?path=/", raw=file_over("top"))
    assert status == 200, answer  # a file takes the directory's place, as in dockerd
    status, answer = machine.request("GET", f"/containers/{made}/archive?path=/top")
    with tarfile.open(fileobj=io.BytesIO(answer)) as tar:
        assert [entry.isfile() for entry in tar] == [True]

    deepen(_remade(machine, made), LEVELS, called)
    machine.json("DELETE", f"/containers/{made}?force=1")
    assert list((machine.data_root / "containers").iterdir()) == []
    assert list((machine.data_root / "stage").iterdir()) == []
    assert "Traceback" not in machine.log.read_text()


def _remade(machine: Machine, made: str) -> Path:
    top = machine.data_root / "containers" / made / "upper" / "again"
    top.mkdir()
    return top


def test_an_image_as_deep_as_a_path_can_name(machine: Machine) -> None:
    """More levels than a stack has: committed, run, changed, copied into a volume and by a build, removed in a container."""
    made = ended(machine, "source", levels=1500, called="d")
    status, answer = machine.request("POST", f"/commit?container={made}&repo=nested")
    assert status == 201, answer
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        text = b"FROM busybox\nCOPY --from=nested /top /copied\n"
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    status, answer = machine.request("POST", "/build?t=built", raw=context.getvalue())
    assert b"Successfully built" in answer, answer[-1000:]

    user = machine.json(
        "POST",
        "/containers/create?name=user",
        {"Image": "nested", "Cmd": ["rm", "-rf", "/top/d"], "Volumes": {"/top": {}}},
    )["Id"]
    (mount,) = machine.json("GET", f"/containers/{user}/json")["Mounts"]
    assert depth(Path(mount["Source"])) == (1500, "text")
    plain = machine.json("POST", "/containers/create", {"Image": "nested", "Cmd": ["sleep", "600"]})["Id"]
    machine.json("POST", f"/containers/{plain}/start")
    status, answer = machine.request("PUT", f"/containers/{plain}/archive?path=/", raw=file_over("top"))
    assert status == 200, answer
    changed = machine.json("GET", f"/containers/{plain}/changes")
    assert {"Path": "/top", "Kind": 0} in changed
    for container in (made, user, plain):
        machine.json("DELETE", f"/containers/{container}?force=1&v=1")
    for image in ("nested", "built"):
        machine.json("DELETE", f"/images/{image}")
    assert "Traceback" not in machine.log.read_text()


@pytest.mark.parametrize("called", ["d", "d" * 200])
def test_a_volume_deeper_than_a_path(machine: Machine, called: str) -> None:
    machine.json("POST", "/volumes/create", {"Name": "deep"})
    deepen(machine.data_root / "volumes" / "deep" / "_data", LEVELS, called)
    assert machine.json("GET", "/system/df")["Volumes"][0]["UsageData"]["Size"] >= 0
    machine.json("DELETE", "/volumes/deep")
    assert list((machine.data_root / "volumes").iterdir()) == []


def test_a_file_that_cannot_be_read(machine: Machine, tmp_path: Path) -> None:
    """An ordinary error where nothing of the tar was sent yet; else it is cut off, and the log says why."""
    unreadable = "/sys/bus/cpu/drivers_probe"  # the kernel refuses to open it for reading
    made = machine.json(
        "POST",
        "/containers/create",
        {
            "Image": "busybox",
            "Cmd": ["sleep", "600"],
            "HostConfig": {"Binds": [f"{tmp_path}:/data", f"{unreadable}:/data/z"]},
        },
    )["Id"]
    (tmp_path / "a").write_bytes(b"a")
    machine.json("POST", f"/containers/{made}/start")
    status, answer = machine.request("GET", f"/containers/{made}/archive?path=/data")
    assert (status, said(answer)) == (500, "cannot read /data/z: permission denied")
    told = machine.run(str(BIN / "ketch"), "cp", f"{made}:/data", str(tmp_path / "out"), check=False).stderr
    assert told.strip().endswith("cannot read /data/z: permission denied")
    assert machine.request("GET", f"/containers/{made}/archive?path=/data/a")[0] == 200
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    with pytest.raises(http.client.IncompleteRead):
        machine.request("GET", f"/containers/{made}/archive?path=/data")
    last = machine.log.read_text().splitlines()[-1]
    assert "an answer was cut off" in last and "cannot read /data/z: permission denied" in last
    machine.json("DELETE", f"/containers/{made}?force=1")
