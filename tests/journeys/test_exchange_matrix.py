"""The interoperability matrix: one image and one index through every pair of ketch, skopeo, umoci, dockerd and a registry.

Whichever way it went, it is the same image: the ID, the layers, and where bytes are handed on as they are, the digest.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench.engines import Dockerd
from conftest import busybox_tar, needs_root

from ketch_testing.machine import Machine, running

pytestmark = [pytest.mark.root, needs_root]

INSECURE = ("--src-tls-verify=false", "--dest-tls-verify=false")


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass(slots=True)
class World:
    """ketchd with `name` in it, pushed to the registry. image_id, layers: what it must be everywhere. digest: its manifest's."""

    machine: Machine
    registry: str
    name: str
    image_id: str
    layers: list[str]
    digest: str

    def shown(self, name: str) -> dict[str, Any]:
        """The image as ketchd has it under `name`."""
        shown: dict[str, Any] = self.machine.json("GET", f"/images/{name}/json")
        return shown

    def forget(self) -> None:
        """Remove every image, so that nothing is found that did not come."""
        for row in self.machine.json("GET", "/images/json?all=1"):
            self.machine.request("DELETE", f"/images/{row['Id']}?force=1")
        assert self.machine.json("GET", "/images/json?all=1") == []

    def check(self, name: str) -> None:
        """It came as what it was, and it runs."""
        shown = self.shown(name)
        assert (shown["Id"], shown["RootFS"]["Layers"]) == (self.image_id, self.layers)
        made = self.machine.json("POST", "/containers/create", {"Image": name})["Id"]
        self.machine.json("POST", f"/containers/{made}/start")
        assert self.machine.json("POST", f"/containers/{made}/wait")["StatusCode"] == 7
        self.machine.json("DELETE", f"/containers/{made}")

    def save(self, path: Path, *flags: str) -> Path:
        self.machine.run("ketch", "save", *flags, "-o", str(path), self.name)
        return path

    def load(self, path: Path) -> str:
        return self.machine.run("ketch", "load", "-q", "-i", str(path)).stdout

    def raw(self, repository: str, reference: str) -> tuple[bytes, str]:
        """A manifest's bytes and type, straight from the registry."""
        connection = http.client.HTTPConnection(self.registry)
        accepted = "application/vnd.oci.image.index.v1+json,application/vnd.docker.distribution.manifest.list.v2+json,"
        accepted += (
            "application/vnd.oci.image.manifest.v1+json,application/vnd.docker.distribution.manifest.v2+json"
        )
        connection.request("GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": accepted})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.status == 200, content
        return content, answer.headers["Content-Type"]


def build(machine: Machine, name: str, platform: str = "") -> None:
    """Two layers: an imported root and what a container wrote; its command exits 7."""
    status, answer = machine.request(
        "POST", f"/images/create?fromSrc=-&repo={name}-base&tag=1&platform={platform}", raw=busybox_tar(),
        headers={"Content-Type": "application/x-tar"},
    )  # fmt: skip
    assert status == 200 and b"error" not in answer, answer
    made = machine.json("POST", "/containers/create", {"Image": f"{name}-base:1", "Cmd": ["sh", "-c", "echo 7 > /code; rm /etc/group"]})["Id"]  # fmt: skip
    machine.json("POST", f"/containers/{made}/start")
    assert machine.json("POST", f"/containers/{made}/wait")["StatusCode"] == 0
    machine.json(
        "POST", f"/commit?container={made}&repo={name}&tag=1&changes=CMD%20exit%20%24%28cat%20%2Fcode%29"
    )
    machine.json("DELETE", f"/containers/{made}")


@pytest.fixture(scope="module")
def world(open_registry: str) -> Iterator[World]:
    need("skopeo")
    with running() as machine:
        name = f"{open_registry}/app:1"
        build(machine, name.removesuffix(":1"))
        pushed = machine.run("ketch", "push", name).stdout
        shown = machine.json("GET", f"/images/{name}/json")
        digest = pushed.partition("digest: ")[2].split()[0]
        yield World(machine, open_registry, name, shown["Id"], shown["RootFS"]["Layers"], digest)


class _Quiet(Dockerd):
    """dockerd without network: it only keeps images here."""

    def _config(self) -> Path:
        path = self.base / "daemon.json"
        path.write_text('{"iptables": false, "ip-forward": false, "bridge": "none"}')
        return path


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Dockerd]:
    need("dockerd", "docker", "containerd")
    engine = _Quiet(Path(tempfile.mkdtemp(prefix="ketch-dockerd-")) / "d")
    try:
        yield engine
    finally:
        engine.close()
        shutil.rmtree(engine.base.parent, ignore_errors=True)


@pytest.fixture
def present(world: World) -> World:
    """The world with its image there again, fresh from the registry."""
    world.forget()
    world.machine.run("ketch", "pull", "-q", world.name)
    return world


def by_skopeo(kind: str) -> Callable[[World, Path, Path], None]:
    def copy(world: World, source: Path, target: Path) -> None:
        tag = {"docker-archive": world.name, "oci-archive": "1"}[kind]
        run("skopeo", "copy", "-q", f"{kind}:{source}:{tag}", f"{kind}:{target}:{world.name}")

    return copy


def by_umoci(world: World, source: Path, target: Path) -> None:
    """Taken apart as a layout, named anew, packed again without what is Docker's own."""
    need("umoci")
    layout = source.with_suffix(".layout")
    layout.mkdir()
    run("tar", "-xf", str(source), "-C", str(layout))
    run("umoci", "tag", "--image", f"{layout}:1", "again")
    run("umoci", "rm", "--image", f"{layout}:1")
    run("umoci", "gc", "--layout", str(layout))
    (layout / "manifest.json").unlink()
    index = json.loads((layout / "index.json").read_text())
    for entry in index["manifests"]:
        entry["annotations"] = {"org.opencontainers.image.ref.name": world.name}
    (layout / "index.json").write_text(json.dumps(index))
    with tarfile.open(target, "w") as tar:
        tar.add(layout, arcname=".")


@pytest.mark.parametrize(
    "other",
    [by_skopeo("docker-archive"), by_skopeo("oci-archive"), by_umoci],
    ids=["skopeo docker-archive", "skopeo oci-archive", "umoci"],
)
def test_by_archive(present: World, tmp_path: Path, other: Callable[[World, Path, Path], None]) -> None:
    """ketch save, another program's reading and writing, ketch load."""
    other(present, present.save(tmp_path / "a.tar"), tmp_path / "b.tar")
    present.forget()

    assert f"Loaded image: {present.name}" in present.load(tmp_path / "b.tar")
    present.check(present.name)


def test_by_dockerds_archive(present: World, dockerd: Dockerd, tmp_path: Path) -> None:
    """dockerd loads ours under the same ID, we load dockerd's."""
    dockerd.docker("load", "-i", str(present.save(tmp_path / "a.tar")))
    assert dockerd.docker("inspect", "--format", "{{.Id}} {{json .RootFS.Layers}}", present.name).split(" ", 1) == [
        present.image_id, json.dumps(present.layers, separators=(",", ":")) + "\n",
    ]  # fmt: skip
    dockerd.docker("save", "-o", str(tmp_path / "b.tar"), present.name)
    dockerd.docker("rmi", "-f", present.image_id)
    present.forget()

    present.load(tmp_path / "b.tar")
    present.check(present.name)


def test_by_registry(present: World, tmp_path: Path) -> None:
    """What was pushed is what skopeo reads; what skopeo copies is what ketch pulls, digest for digest."""
    raw, _ = present.raw("app", "1")
    assert digest_of(raw) == present.digest
    assert json.loads(raw)["config"]["digest"] == present.image_id
    shown = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"docker://{present.name}"))
    assert shown["Digest"] == present.digest
    target = f"{present.registry}/copied:1"
    run("skopeo", "copy", "-q", *INSECURE, f"docker://{present.name}", f"docker://{target}")
    present.forget()
    present.machine.run("ketch", "pull", "-q", target)

    present.check(target)
    assert present.shown(target)["RepoDigests"] == [f"{present.registry}/copied@{present.digest}"]
    present.machine.run("ketch", "tag", target, f"{present.registry}/again:1")
    present.machine.run("ketch", "push", "-q", f"{present.registry}/again:1")
    assert present.raw("again", "1") == present.raw("app", "1")


def test_by_dockerds_registry_client(present: World, dockerd: Dockerd) -> None:
    """dockerd pulls ours with the same ID and digest; what it pushes has the digest that we pull."""
    dockerd.docker("pull", "-q", present.name)
    shown = json.loads(dockerd.docker("inspect", present.name))[0]
    assert (shown["Id"], shown["RepoDigests"]) == (
        present.image_id,
        [f"{present.registry}/app@{present.digest}"],
    )
    target = f"{present.registry}/by-dockerd:1"
    dockerd.docker("tag", present.name, target)
    dockerd.docker("push", target)
    shown = json.loads(dockerd.docker("inspect", target))[0]
    (theirs,) = [name for name in shown["RepoDigests"] if name.startswith(f"{present.registry}/by-dockerd@")]
    dockerd.docker("rmi", "-f", present.image_id)
    present.forget()

    present.machine.run("ketch", "pull", "-q", target)
    present.check(target)
    assert present.shown(target)["RepoDigests"] == [theirs]


COMPRESSIONS = [
    ["--compression-format=gzip", "--compression-level=9", "--force-compression"],
    ["--compression-format=uncompressed"],
    ["--compression-format=zstd", "--compression-level=12"],
]


@pytest.mark.parametrize(
    "options", COMPRESSIONS, ids=[options[0].rpartition("=")[2] for options in COMPRESSIONS]
)
def test_by_registry_in_another_compression(
    present: World, dockerd: Dockerd, tmp_path: Path, options: list[str]
) -> None:
    """Another digest, the same image: dockerd pulls it under the same ID, skopeo and umoci read its layers, ketch runs it.

    zstd is beyond dockerd 20.10 and umoci 0.4: skopeo compresses it anew for them, and the layers are still the same.
    """
    kind = options[0].rpartition("=")[2]
    target = f"{present.registry}/as-{kind}:1"
    present.machine.run("ketch", "tag", present.name, target)
    said = present.machine.run("ketch", "push", *options, target).stdout
    raw, _ = present.raw(f"as-{kind}", "1")
    assert digest_of(raw) in said and digest_of(raw) != present.digest
    assert json.loads(raw)["config"]["digest"] == present.image_id

    theirs, anew = target, ["--dest-compress-format=gzip", "--dest-compress"] if kind == "zstd" else []
    if kind == "zstd":
        theirs = f"{present.registry}/again-gzip:1"
        run("skopeo", "copy", "-q", *INSECURE, *anew, f"docker://{target}", f"docker://{theirs}")
    dockerd.docker("pull", "-q", theirs)
    shown = json.loads(dockerd.docker("inspect", theirs))[0]
    assert shown["RootFS"]["Layers"] == present.layers and (kind == "zstd" or shown["Id"] == present.image_id)
    dockerd.docker("rmi", "-f", shown["Id"])
    need("umoci")
    run("skopeo", "copy", "-q", *INSECURE[:1], *anew, f"docker://{theirs}", f"oci:{tmp_path / 'layout'}:1")
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path / 'layout'}:1", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "rootfs" / "code").read_text() == "7\n"

    present.forget()
    present.machine.run("ketch", "pull", "-q", target)
    present.check(target)


# -- several platforms


@pytest.fixture(scope="module")
def index(world: World) -> tuple[str, str]:
    """(name, digest) of an index of amd64 and arm64 in the registry, put there by hand; OCI's kinds, as layouts want them.

    gzip by request: the base may be here as zstd alone, from a test before, and would go out as it is; dockerd 20.10 takes a
    zstd layer for a tar and calls its header invalid.
    """
    for architecture in ("amd64", "arm64"):
        build(world.machine, f"{world.registry}/multi-{architecture}", f"linux/{architecture}")
        target = f"{world.registry}/multi-{architecture}:1"
        world.machine.run("ketch", "push", "-q", "--compression-format=gzip", target)
        run(
            "skopeo", "copy", "-q", "--format", "oci", *INSECURE, f"docker://{world.registry}/multi-{architecture}:1",
            f"docker://{world.registry}/multi:{architecture}",
        )  # fmt: skip
    entries = []
    for architecture in ("amd64", "arm64"):
        content, media_type = world.raw("multi", architecture)
        assert all(layer["mediaType"].endswith("+gzip") for layer in json.loads(content)["layers"]), content
        entries.append(
            {
                "mediaType": media_type, "digest": digest_of(content), "size": len(content),
                "platform": {"architecture": architecture, "os": "linux"},
            }
        )  # fmt: skip
    media_type = "application/vnd.oci.image.index.v1+json"
    content = json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}, indent=4
    ).encode()
    connection = http.client.HTTPConnection(world.registry)
    connection.request("PUT", "/v2/multi/manifests/1", content, {"Content-Type": media_type})
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    connection.close()
    return f"{world.registry}/multi:1", digest_of(content)


def platforms(world: World, name: str) -> dict[str, str]:
    """ID of each platform's image that is here."""
    found = {}
    for row in world.machine.json("GET", f"/images/{name}/json?manifests=1")["Manifests"]:
        architecture = row["Descriptor"]["platform"]["architecture"]
        if row["Available"]:
            shown = world.machine.json(
                "GET", f"/images/{name}/json?platform=" + f'{{"os":"linux","architecture":"{architecture}"}}'
            )
            found[architecture] = shown["Id"]
    return found


def ids(world: World) -> dict[str, str]:
    """What the images' IDs must be, from their manifests in the registry."""
    return {
        architecture: json.loads(world.raw("multi", architecture)[0])["config"]["digest"]
        for architecture in ("amd64", "arm64")
    }


def test_an_index_by_registry(world: World, index: tuple[str, str]) -> None:
    """Pulled whole, pushed elsewhere: the same digest, and skopeo finds everything that it names."""
    world.forget()
    name, digest = index
    world.machine.run("ketch", "pull", "-q", "--all-platforms", name)

    assert world.shown(name)["RepoDigests"] == [f"{world.registry}/multi@{digest}"]
    assert platforms(world, name) == ids(world)
    world.machine.run("ketch", "tag", name, f"{world.registry}/whole:1")
    said = world.machine.run("ketch", "push", "--all-platforms", f"{world.registry}/whole:1").stdout
    assert f"1: digest: {digest} " in said
    assert world.raw("whole", "1") == world.raw("multi", "1")
    run(
        "skopeo", "copy", "-q", "--multi-arch", "all", *INSECURE, f"docker://{world.registry}/whole:1",
        f"docker://{world.registry}/whole-copied:1",
    )  # fmt: skip
    assert world.raw("whole-copied", "1") == world.raw("multi", "1")


@pytest.mark.parametrize(
    "options", COMPRESSIONS, ids=[options[0].rpartition("=")[2] for options in COMPRESSIONS]
)
def test_an_index_in_another_compression(
    world: World, index: tuple[str, str], dockerd: Dockerd, tmp_path: Path, options: list[str]
) -> None:
    """Every platform in it, under the IDs that they had: skopeo reads all of it, dockerd pulls its own, ketch all and runs its own.

    zstd is beyond dockerd 20.10.
    """
    kind = options[0].rpartition("=")[2]
    repository = f"all-{kind}"
    target = f"{world.registry}/{repository}:1"
    world.forget()
    world.machine.run("ketch", "pull", "-q", "--all-platforms", index[0])
    here = world.shown(index[0])["Id"]
    world.machine.run("ketch", "tag", index[0], target)
    said = world.machine.run("ketch", "push", "--all-platforms", *options, target).stdout
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{target}").encode()
    assert f"1: digest: {digest_of(raw)} " in said and digest_of(raw) != index[1]
    old = json.loads(world.raw("multi", "1")[0])
    assert [entry["platform"] for entry in json.loads(raw)["manifests"]] == [
        entry["platform"] for entry in old["manifests"]
    ]
    for entry in json.loads(raw)["manifests"]:
        manifest = json.loads(world.raw(repository, entry["digest"])[0])
        assert manifest["config"]["digest"] == ids(world)[entry["platform"]["architecture"]]
        assert {
            layer["mediaType"].removeprefix("application/vnd.oci.image.layer.v1.tar")
            for layer in manifest["layers"]
        } == {"" if kind == "uncompressed" else f"+{kind}"}
    run(
        "skopeo",
        "copy",
        "-q",
        "--multi-arch",
        "all",
        *INSECURE[:1],
        f"docker://{target}",
        f"dir:{tmp_path / 'copied'}",
    )
    said = world.machine.run("ketch", "push", "--all-platforms", *options, target).stdout
    assert "Pushed" not in said and f"1: digest: {digest_of(raw)} " in said
    if kind != "zstd":
        dockerd.docker("pull", "-q", target)
        assert json.loads(dockerd.docker("inspect", target))[0]["Id"] == here
        dockerd.docker("rmi", "-f", here)

    world.forget()
    world.machine.run("ketch", "pull", "-q", "--all-platforms", target)
    assert platforms(world, target) == ids(world)
    assert world.shown(target)["RepoDigests"] == [f"{world.registry}/{repository}@{digest_of(raw)}"]


def test_an_index_by_skopeos_archive(world: World, index: tuple[str, str], tmp_path: Path) -> None:
    """skopeo's archive of all platforms is loaded whole, and pushed as it was."""
    name, digest = index
    target = f"{world.registry}/from-skopeo:1"
    run(
        "skopeo", "copy", "-q", "--multi-arch", "all", "--preserve-digests", *INSECURE, f"docker://{name}",
        f"oci-archive:{tmp_path}/a.tar:{target}",
    )  # fmt: skip
    world.forget()

    assert world.load(tmp_path / "a.tar") == f"Loaded image: {target}\n"
    assert platforms(world, target) == ids(world)
    assert world.machine.json("GET", f"/images/{target}/json")["Descriptor"]["digest"] == digest
    world.machine.run("ketch", "push", "-q", target)
    assert world.raw("from-skopeo", "1")[0] == world.raw("multi", "1")[0]


def test_an_index_by_our_archive(world: World, index: tuple[str, str], tmp_path: Path) -> None:
    """skopeo copies what ketch saved, to where it is the same index; one platform is saved alone."""
    name, digest = index
    world.forget()
    world.machine.run("ketch", "pull", "-q", "--all-platforms", name)
    world.machine.run("ketch", "save", "--all-platforms", "-o", str(tmp_path / "a.tar"), name)
    run(
        "skopeo", "copy", "-q", "--multi-arch", "all", *INSECURE, f"oci-archive:{tmp_path}/a.tar:1",
        f"docker://{world.registry}/from-ketch:1",
    )  # fmt: skip
    assert digest_of(world.raw("from-ketch", "1")[0]) == digest
    world.machine.run("ketch", "save", "--platform", "linux/arm64", "-o", str(tmp_path / "arm.tar"), name)
    config = run("skopeo", "inspect", "--config", "--raw", f"docker-archive:{tmp_path}/arm.tar:{name}")
    assert digest_of(config.encode()) == ids(world)["arm64"]
    world.forget()
    world.load(tmp_path / "a.tar")
    assert platforms(world, name) == ids(world)


def test_dockerd_and_an_index(world: World, index: tuple[str, str], dockerd: Dockerd, tmp_path: Path) -> None:
    """dockerd takes its platform out of what ketch saved and pushed; its digest of the name is the index'."""
    name, digest = index
    world.forget()
    world.machine.run("ketch", "pull", "-q", "--all-platforms", name)
    world.machine.run("ketch", "save", "--all-platforms", "-o", str(tmp_path / "a.tar"), name)
    world.machine.run("ketch", "tag", name, f"{world.registry}/for-dockerd:1")
    world.machine.run("ketch", "push", "-q", f"{world.registry}/for-dockerd:1")
    here = world.shown(name)["Id"]

    dockerd.docker("load", "-i", str(tmp_path / "a.tar"))
    assert json.loads(dockerd.docker("inspect", name))[0]["Id"] == here
    dockerd.docker("pull", "-q", f"{world.registry}/for-dockerd:1")
    shown = json.loads(dockerd.docker("inspect", f"{world.registry}/for-dockerd:1"))[0]
    assert (shown["Id"], f"{world.registry}/for-dockerd@{digest}" in shown["RepoDigests"]) == (here, True)
    dockerd.docker("rmi", "-f", here)


def test_another_platform_is_created_with_a_warning(world: World, index: tuple[str, str]) -> None:
    """By its name alone it is this host's; asked for by platform it is that one, without a word."""
    name, _ = index
    world.forget()
    world.machine.run("ketch", "pull", "-q", "--all-platforms", name)
    body = {"Image": name, "Cmd": ["true"]}
    foreign = ids(world)["arm64" if world.shown(name)["Architecture"] == "amd64" else "amd64"]
    architecture = "arm64" if foreign == ids(world)["arm64"] else "amd64"

    for path, sent, image, warned in (
        ("", body, world.shown(name)["Id"], False),
        (f"?platform=linux/{architecture}", body, foreign, False),
        ("", {**body, "Image": foreign}, foreign, True),
    ):
        made = world.machine.json("POST", f"/containers/create{path}", sent)
        assert world.machine.json("GET", f"/containers/{made['Id']}/json")["Image"] == image
        warning = (
            f"The requested image's platform (linux/{architecture}) does not match the detected host platform"
        )
        assert any(text.startswith(warning) for text in made["Warnings"]) is warned, made
        world.machine.json("DELETE", f"/containers/{made['Id']}")
