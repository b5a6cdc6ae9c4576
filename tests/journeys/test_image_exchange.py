"""Images travel: ketch ↔ skopeo ↔ umoci ↔ docker's client, by archive and layout, with the same IDs and digests everywhere."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for ketchd")]


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def run(*argv: str, **more: Any) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def image_id(machine: Machine, name: str) -> str:
    return str(machine.json("GET", f"/images/{name}/json")["Id"])


def save(machine: Machine, path: Path, *names: str) -> Path:
    status, content = machine.request("GET", "/images/get?" + "&".join(f"names={name}" for name in names))
    assert status == 200, content
    path.write_bytes(content)
    return path


def load(machine: Machine, content: bytes) -> list[str]:
    status, answer = machine.request(
        "POST", "/images/load?quiet=1", raw=content, headers={"Content-Type": "application/x-tar"}
    )
    assert status == 200, answer
    messages = [json.loads(line) for line in answer.splitlines()]
    assert not [message for message in messages if "error" in message], messages
    return [message["stream"].strip() for message in messages if "stream" in message]


def unpack(archive: Path, directory: Path) -> None:
    directory.mkdir()
    run("tar", "-xf", str(archive), "-C", str(directory))


def remove(machine: Machine, *names: str) -> None:
    for name in names:
        machine.json("DELETE", f"/images/{name}?force=1")


@pytest.fixture
def second(machine: Machine) -> str:
    """An image of two layers, made by a commit, named `two:1`."""
    made = machine.json(
        "POST", "/containers/create?name=source", {"Image": "busybox", "Cmd": ["sh", "-c", "echo more > /more; rm /etc/group"]}
    )["Id"]  # fmt: skip
    machine.json("POST", f"/containers/{made}/start")
    machine.json("POST", f"/containers/{made}/wait")
    machine.json("POST", f"/commit?container={made}&repo=two&tag=1&changes=CMD%20cat%20/more")
    machine.json("DELETE", f"/containers/{made}")
    yield image_id(machine, "two:1")
    machine.request("DELETE", "/images/two:1?force=1")


def test_skopeo_reads_both_kinds_out_of_one_archive(machine: Machine, second: str, tmp_path: Path) -> None:
    need("skopeo")
    archive = save(machine, tmp_path / "a.tar", "two:1", "busybox")

    for source in (f"docker-archive:{archive}:two:1", f"oci-archive:{archive}:1"):
        config = run("skopeo", "inspect", "--config", "--raw", source)
        assert f"sha256:{run('sha256sum', input=config).split()[0]}" == second
    layers = machine.json("GET", "/images/two:1/json")["RootFS"]["Layers"]
    assert json.loads(run("skopeo", "inspect", f"docker-archive:{archive}:two:1"))["Layers"] == layers


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_what_skopeo_writes_loads_with_the_same_id(
    machine: Machine, second: str, tmp_path: Path, kind: str
) -> None:
    need("skopeo")
    archive = save(machine, tmp_path / "a.tar", "two:1")
    name = "two:1" if kind == "docker-archive" else "1"
    run("skopeo", "copy", "-q", f"{kind}:{archive}:{name}", f"{kind}:{tmp_path}/b.tar:reg.example/me/two:1")
    remove(machine, "two:1")

    content = (tmp_path / "b.tar").read_bytes()
    assert load(machine, gzip.compress(content)) == ["Loaded image: reg.example/me/two:1"]
    shown = machine.json("GET", "/images/reg.example/me/two:1/json")
    assert (shown["Id"], shown["Config"]["Cmd"]) == (second, ["/bin/sh", "-c", "cat /more"])
    remove(machine, "reg.example/me/two:1")


def test_umoci_unpacks_what_was_saved(machine: Machine, second: str, tmp_path: Path) -> None:
    need("umoci")
    archive = save(machine, tmp_path / "a.tar", "two:1")
    layout = tmp_path / "layout"
    unpack(archive, layout)
    run("umoci", "unpack", "--image", f"{layout}:1", str(tmp_path / "bundle"))

    root = tmp_path / "bundle" / "rootfs"
    assert (root / "more").read_text() == "more\n"
    assert not (root / "etc/group").exists() and (root / "etc/passwd").exists()


def test_what_umoci_repacks_loads_and_runs(machine: Machine, second: str, tmp_path: Path) -> None:
    need("umoci")
    archive = save(machine, tmp_path / "a.tar", "two:1")
    layout = tmp_path / "layout"
    unpack(archive, layout)
    run("umoci", "unpack", "--image", f"{layout}:1", str(tmp_path / "bundle"))
    (tmp_path / "bundle/rootfs/third").write_text("by umoci\n")
    run("umoci", "repack", "--image", f"{layout}:third", str(tmp_path / "bundle"))
    index = json.loads((layout / "index.json").read_text())
    (entry,) = [
        one
        for one in index["manifests"]
        if one["annotations"]["org.opencontainers.image.ref.name"] == "third"
    ]
    entry["annotations"] = {"org.opencontainers.image.ref.name": "reg.example/three:3"}
    (layout / "index.json").write_text(json.dumps({**index, "manifests": [entry]}))
    (layout / "manifest.json").unlink()  # an OCI layout and nothing else
    packed = tmp_path / "b.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(layout, arcname=".")

    assert "Loaded image: reg.example/three:3" in load(machine, packed.read_bytes())
    assert len(machine.json("GET", "/images/reg.example/three:3/json")["RootFS"]["Layers"]) == 3
    made = machine.json(
        "POST", "/containers/create", {"Image": "reg.example/three:3", "Cmd": ["grep", "umoci", "/third"]}
    )["Id"]
    machine.json("POST", f"/containers/{made}/start")
    assert machine.json("POST", f"/containers/{made}/wait")["StatusCode"] == 0
    machine.json("DELETE", f"/containers/{made}")
    for row in machine.json("GET", "/images/json?all=1"):
        if "busybox:latest" not in row["RepoTags"] and row["Id"] != second:
            remove(machine, row["Id"])


def test_save_and_load_by_dockers_client(machine: Machine, second: str, tmp_path: Path) -> None:
    need("docker")
    machine.run("docker", "save", "-o", str(tmp_path / "a.tar"), "two:1", "busybox")
    remove(machine, "two:1")

    loaded = machine.run("docker", "load", "-i", str(tmp_path / "a.tar"))
    assert "Loaded image: two:1" in loaded.stdout and "Loaded image: busybox:latest" in loaded.stdout
    assert image_id(machine, "two:1") == second
    assert machine.run("docker", "run", "--rm", "two:1").stdout == "more\n"


def test_export_and_import_by_dockers_client(machine: Machine, second: str, tmp_path: Path) -> None:
    need("docker")
    machine.run("docker", "create", "--name", "exported", "two:1")
    machine.run("docker", "export", "-o", str(tmp_path / "root.tar"), "exported")
    machine.run("docker", "rm", "exported")
    machine.run("docker", "import", "-c", 'CMD ["cat", "/more"]', str(tmp_path / "root.tar"), "flat:1")

    assert machine.run("docker", "run", "--rm", "flat:1").stdout == "more\n"
    assert len(machine.json("GET", "/images/flat:1/json")["RootFS"]["Layers"]) == 1
    remove(machine, "flat:1")


def test_cp_by_dockers_client(machine: Machine, tmp_path: Path) -> None:
    need("docker")
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/file").write_text("content")
    (tmp_path / "tree/link").symlink_to("deep/file")
    machine.run("docker", "run", "-d", "--name", "target", "-v", "vol1:/vol", "busybox", "sleep", "1000")
    try:
        for path in ("/tmp", "/vol"):
            machine.run("docker", "cp", str(tmp_path / "tree"), f"target:{path}")
        for _ in ("running", "stopped"):
            for path in ("/tmp/tree", "/vol/tree"):
                out = tmp_path / "out"
                machine.run("docker", "cp", f"target:{path}", str(out))
                assert (out / "deep/file").read_text() == "content"
                assert (out / "link").readlink() == Path("deep/file")
                shutil.rmtree(out)
            missing = machine.run("docker", "cp", "target:/nope", str(tmp_path / "x"), check=False)
            assert "Could not find the file /nope in container target" in missing.stderr
            machine.run("docker", "stop", "-t", "0", "target")
        machine.run("docker", "cp", str(tmp_path / "tree/deep/file"), "target:/vol/renamed")
        machine.run("docker", "start", "target")
        assert machine.run("docker", "exec", "target", "cat", "/vol/renamed").stdout == "content"
        assert machine.run("docker", "diff", "target").stdout.split() == [
            "C", "/tmp", "A", "/tmp/tree", "A", "/tmp/tree/deep", "A", "/tmp/tree/deep/file", "A", "/tmp/tree/link", "A", "/vol",
        ]  # fmt: skip
    finally:
        machine.run("docker", "rm", "-fv", "target")
        machine.run("docker", "volume", "rm", "-f", "vol1")


def test_rmi_in_dockers_words(machine: Machine, second: str) -> None:
    machine.json("POST", "/images/two:1/tag?repo=other/two&tag=2")
    made = machine.json("POST", "/containers/create?name=user", {"Image": "two:1", "Cmd": ["true"]})["Id"]
    try:
        status, answer = machine.request("DELETE", f"/images/{second}")
        assert status == 409 and "is referenced in multiple repositories" in json.loads(answer)["message"]
        assert machine.json("DELETE", "/images/other/two:2") == [{"Untagged": "other/two:2"}]
        status, answer = machine.request("DELETE", "/images/two:1")
        assert (
            status == 409
            and f"container {made[:12]} is using its referenced image" in json.loads(answer)["message"]
        )
    finally:
        machine.json("DELETE", f"/containers/{made}")
    assert machine.request("DELETE", "/images/nope")[0] == 404
    assert machine.request("GET", "/images/json?filters=%7B%22bogus%22%3A%5B%221%22%5D%7D")[0] == 400


def test_load_errors_stand_in_the_stream(machine: Machine) -> None:
    status, answer = machine.request(
        "POST", "/images/load", raw=b"rubbish" * 300, headers={"Content-Type": "application/x-tar"}
    )
    assert status == 200 and "invalid tar" in json.loads(answer)["error"]


def test_fsck_and_df_at_the_door(machine: Machine) -> None:
    status, answer = machine.request("POST", "/ketch/fsck")
    assert status == 200
    assert json.loads(answer.splitlines()[-1])["aux"]["Bad"] == 0
    shown = machine.json("GET", "/system/df")
    assert shown["LayersSize"] > 0 and shown["Images"][0]["SharedSize"] >= 0
