"""The registry endpoints of a real ketchd: statuses, headers, and the stock docker client where it is installed."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from ketch_testing.consistency import differences
from ketch_testing.machine import Machine, UnixConnection, running
from ketch_testing.tars import Member, make_tar
from ketchd.model.digest import Digest
from ketchd.model.manifest import ACCEPTED, OCI_INDEX, OCI_MANIFEST

pytestmark = pytest.mark.root
ME = {"username": "me", "password": "secret"}


def auth(credentials: dict[str, str]) -> dict[str, str]:
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(credentials).encode()).decode()}


def ask(machine: Machine, method: str, path: str, **more: Any) -> tuple[int, str]:
    status, body = machine.request(method, path, **more)
    return status, body.decode()


def message(body: str) -> str:
    return str(json.loads(body)["message"])


def test_login(machine: Machine, guarded_registry: str) -> None:
    """200 with dockerd's body; 401 for what is wrong; 500 for who is not there."""
    good = {**ME, "serveraddress": guarded_registry}
    status, body = ask(machine, "POST", "/auth", body=good)
    assert (status, json.loads(body)) == (200, {"IdentityToken": "", "Status": "Login Succeeded"})
    status, body = ask(machine, "POST", "/auth", body={**good, "password": "no"})
    assert status == 401
    attempt = f"login attempt to http://{guarded_registry}/v2/ failed with status: 401 Unauthorized"
    assert message(body) == attempt
    status, body = ask(machine, "POST", "/auth", body={**ME, "serveraddress": "127.0.0.1:1"})
    assert status == 500 and message(body).endswith("connect: connection refused")
    assert ask(machine, "POST", "/auth", body={**ME, "serveraddress": "a b"})[0] == 400


def test_push_pull_and_inspect(machine: Machine, guarded_registry: str) -> None:
    """The whole way with credentials in a header."""
    repository = f"{guarded_registry}/door/app"
    assert ask(machine, "POST", f"/images/busybox/tag?repo={quote(repository, safe='')}&tag=1")[0] == 201
    status, body = ask(machine, "POST", f"/v1.41/images/{repository}/push?tag=1", headers=auth(ME))
    assert status == 200 and '"Tag":"1","Digest":"sha256:' in body and "error" not in body
    status, body = ask(machine, "POST", f"/images/{repository}/push?tag=1")
    assert (
        status == 200 and "no basic auth credentials" in body
    )  # docker-py sends no header: that is anonymous
    status, body = ask(machine, "POST", f"/images/{repository}/push?tag=2", headers=auth({}))
    assert status == 200 and f"tag does not exist: {repository}:2" in body

    status, body = ask(machine, "GET", f"/distribution/{repository}:1/json", headers=auth(ME))
    shown = json.loads(body)
    assert status == 200 and shown["Platforms"][0]["os"] == "linux"
    assert set(shown["Descriptor"]) == {"mediaType", "digest", "size"}
    assert ask(machine, "GET", f"/distribution/{repository}:2/json", headers=auth(ME))[0] == 404
    assert (
        ask(machine, "GET", f"/distribution/{repository}:1/json", headers=auth({**ME, "password": "x"}))[0]
        == 401
    )

    digest = shown["Descriptor"]["digest"]
    assert ask(machine, "DELETE", f"/images/{repository}:1")[0] == 200
    for tag in ("1", digest):
        path = f"/images/create?fromImage={quote(repository, safe='')}&tag={tag}"
        status, body = ask(machine, "POST", path, headers=auth(ME))
        assert status == 200 and f"Digest: {digest}" in body and "error" not in body
    assert ask(machine, "GET", f"/images/{repository}@{digest}/json")[0] == 200


def test_faults_are_statuses_when_nothing_was_said(machine: Machine, open_registry: str) -> None:
    """With dockerd's lines."""
    create = "/images/create?fromImage="
    for path, expected, words in (
        (f"{open_registry}/a&tag=1", 404, f"manifest for {open_registry}/a:1 not found: manifest unknown: manifest unknown"),
        (f"{open_registry}/a", 404, f"repository {open_registry}/a not found: name unknown: "),
        ("127.0.0.1:1/a&tag=1", 500, 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'),
        ("scratch&tag=latest", 403, "'scratch' is a reserved name"),
        ("A/b/C&tag=1", 400, "invalid reference format: repository name (b/C) must be lowercase"),
        (f"{open_registry}/a&tag=1&platform=a/b/c/d", 400, "cannot parse platform specifier"),
    ):  # fmt: skip
        status, body = ask(machine, "POST", create + path)
        assert status == expected and words in message(body), body


def test_search(machine: Machine, open_registry: str) -> None:
    """Bounds and filters are checked here; a registry that cannot search says so."""
    status, body = ask(machine, "GET", "/images/search?term=a&limit=0")
    assert (status, message(body)) == (400, "Limit 0 is outside the range of [1, 100]")
    filters = quote(json.dumps({"is-official": ["perhaps"]}))
    status, body = ask(machine, "GET", f"/images/search?term=a&filters={filters}")
    assert (status, message(body)) == (400, "Invalid filter 'is-official=[perhaps]'")
    status, body = ask(machine, "GET", f"/images/search?term={open_registry}/a")
    assert (status, message(body)) == (500, "Unexpected status code 404")


def test_the_stock_client(machine: Machine, guarded_registry: str) -> None:
    """docker login, push, pull, logout."""
    if shutil.which("docker") is None:
        pytest.skip("docker (the client) is not installed")
    name = f"{guarded_registry}/stock/app:1"
    machine.run("docker", "login", "-u", "me", "--password-stdin", guarded_registry, stdin=b"secret")
    machine.run("docker", "tag", "busybox", name)
    pushed = machine.run("docker", "push", name).stdout
    assert "1: digest: sha256:" in pushed
    machine.run("docker", "rmi", name)
    pulled = machine.run("docker", "pull", name).stdout
    assert pulled.splitlines()[-2:] == [f"Status: Downloaded newer image for {name}", name]
    assert "Image is up to date" in machine.run("docker", "pull", name).stdout
    machine.run("docker", "logout", guarded_registry)
    refused = machine.run("docker", "pull", name, check=False)
    assert refused.returncode == 1 and "no basic auth credentials" in refused.stderr


def manifest_at(registry: str, repository: str, tag: str) -> dict[str, Any]:
    """The manifest as the registry serves it."""
    asked = Request(
        f"http://{registry}/v2/{repository}/manifests/{tag}", headers={"Accept": ", ".join(ACCEPTED)}
    )
    with urlopen(asked) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_compression_is_chosen(machine: Machine, open_registry: str) -> None:
    """By ketch's options; a manifest that has become OCI's stays so, the image is the same, and what is wrong is one line."""
    name = f"{open_registry}/door/built"
    tar = make_tar(Member("file", data=b"some text\n" * 5000))
    machine.run("ketch", "import", "-", f"{name}:1", stdin=tar)
    image_id = machine.json("GET", f"/images/{name}:1/json")["Id"]
    digests = set()
    for options, media_type in (
        (["--compression-format", "zstd", "--compression-level", "12"], "application/vnd.oci.image.layer.v1.tar+zstd"),
        (["--compression-format=gzip", "--compression-level=9"], "application/vnd.oci.image.layer.v1.tar+gzip"),
        (["--compression-level=1", "--force-compression"], "application/vnd.oci.image.layer.v1.tar+gzip"),
        (["--compression-format=uncompressed"], "application/vnd.oci.image.layer.v1.tar"),
    ):  # fmt: skip
        said = machine.run("ketch", "push", *options, f"{name}:1").stdout
        assert ("an OCI manifest, since Docker's schema 2 has no zstd layers" in said) == (
            "zstd" in options
        ), said
        document = manifest_at(open_registry, "door/built", "1")
        assert document["config"]["digest"] == image_id
        assert [layer["mediaType"] for layer in document["layers"]] == [media_type]
        digests.add(document["layers"][0]["digest"])
    assert len(digests) == 4
    assert " 0 bad, " in machine.run("ketch", "system", "fsck").stdout and differences(machine) == []
    machine.run("ketch", "rmi", f"{name}:1")
    machine.run("ketch", "pull", f"{name}:1")
    assert machine.json("GET", f"/images/{name}:1/json")["Id"] == image_id

    for query, words in (
        ("compressionFormat=lz4", "unknown compression format 'lz4': gzip, zstd or uncompressed is expected"),
        ("compressionLevel=10", "invalid compression level 10 for gzip: 1 to 9 is expected"),
        ("compressionLevel=x", 'strconv.Atoi: parsing "x": invalid syntax'),
        ("compressionFormat=lz4&allPlatforms=1", "unknown compression format 'lz4': gzip, zstd or uncompressed is expected"),
    ):  # fmt: skip
        status, body = ask(machine, "POST", f"/images/{name}/push?tag=1&{query}", headers=auth({}))
        assert (status, message(body)) == (400, words)


def test_compression_is_a_setting(open_registry: str) -> None:
    """For clients that cannot ask: `ketch.push` of daemon.json; a wrong one is one line at the start."""
    with running(settings={"ketch": {"push": {"compression-format": "zstd"}}}) as made:
        name = f"{open_registry}/door/default"
        made.run("ketch", "import", "-", f"{name}:1", stdin=make_tar(Member("file", data=b"text" * 99)))
        assert ask(made, "POST", f"/images/{name}/push?tag=1", headers=auth({}))[0] == 200
        assert manifest_at(open_registry, "door/default", "1")["mediaType"] == OCI_MANIFEST
        made.stop()
        (made.base / "daemon.json").write_text(json.dumps({"ketch": {"push": {"compression-level": 10}}}))
        with pytest.raises(AssertionError):
            made.start()
        assert "ketch.push: invalid compression level 10 for gzip: 1 to 9 is expected" in made.log.read_text()


@pytest.mark.parametrize("client", ["ketch", "docker"])
def test_every_tag_at_once(machine: Machine, open_registry: str, client: str) -> None:
    """push --all-tags, and pull --all-tags gets them back."""
    if shutil.which(client) is None and client == "docker":
        pytest.skip("docker (the client) is not installed")
    repository = f"{open_registry}/door/{client}-tags"
    for tag in ("1", "1.2", "latest"):
        machine.run(client, "tag", "busybox", f"{repository}:{tag}")
    machine.run(client, "push", "--all-tags", repository)
    with urlopen(f"http://{open_registry}/v2/door/{client}-tags/tags/list") as response:
        assert sorted(json.load(response)["tags"]) == ["1", "1.2", "latest"]
    for tag in ("1", "1.2", "latest"):
        machine.run(client, "rmi", f"{repository}:{tag}")
    machine.run(client, "pull", "--all-tags", repository)
    names = machine.json("GET", "/images/busybox/json")["RepoTags"]
    assert {f"{repository}:{tag}" for tag in ("1", "1.2", "latest")} <= set(names)
    refused = machine.run(client, "push", "--all-tags", f"{repository}:1", check=False)
    assert refused.returncode == 1 and "tag can't be used with --all-tags/-a" in refused.stderr


def put_referrer(registry: str, repository: str, subject: bytes) -> str:
    """An SBOM about the manifest, put there as another client would: its digest."""

    def send(
        method: str, url: str, content: bytes = b"", media_type: str = "application/octet-stream"
    ) -> str:
        asked = Request(url, content, {"Content-Type": media_type}, method=method)
        with urlopen(asked) as response:
            return str(response.headers["Location"])

    base = f"http://{registry}/v2/{repository}"
    location = send("POST", f"{base}/blobs/uploads/")
    send("PUT", f"{location}&digest={quote(str(Digest.of(b'{}')))}", b"{}")
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
    content = json.dumps(
        {
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/spdx+json", "config": empty, "layers": [empty],
            "subject": {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(subject)), "size": len(subject)},
        }
    ).encode()  # fmt: skip
    digest = str(Digest.of(content))
    send("PUT", f"{base}/manifests/{digest}", content, OCI_MANIFEST)
    entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(content)}
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    send("PUT", f"{base}/manifests/{str(Digest.of(subject)).replace(':', '-')}", index, OCI_INDEX)
    return digest


def test_an_image_with_its_sbom(machine: Machine, open_registry: str) -> None:
    """pull --referrers and push --referrers, from and to a registry that has only tags for them."""
    name = f"{open_registry}/door/signed:1"
    machine.run("ketch", "tag", "busybox", name)
    machine.run("ketch", "push", name)
    asked = Request(
        f"http://{open_registry}/v2/door/signed/manifests/1", headers={"Accept": ", ".join(ACCEPTED)}
    )
    with urlopen(asked) as response:
        manifest = response.read()
    sbom = put_referrer(open_registry, "door/signed", manifest)

    assert sbom in machine.run("ketch", "pull", "--referrers", name).stdout
    assert machine.json("GET", f"/images/{open_registry}/door/signed@{sbom}/json")["Id"] == sbom
    target = f"{open_registry}/door/carried"
    machine.run("ketch", "tag", name, f"{target}:1")
    said = machine.run("ketch", "push", "--referrers", f"{target}:1").stdout
    tag = str(Digest.of(manifest)).replace(":", "-")
    assert f"listed under the tag {tag}, the registry has no referrers API" in said
    listed = manifest_at(open_registry, "door/carried", tag)["manifests"]
    assert [(entry["digest"], entry["artifactType"]) for entry in listed] == [(sbom, "application/spdx+json")]
    with urlopen(
        Request(f"http://{open_registry}/v2/door/carried/manifests/{sbom}", headers={"Accept": OCI_MANIFEST})
    ) as response:
        assert str(Digest.of(response.read())) == sbom
    assert " 0 bad, " in machine.run("ketch", "system", "fsck").stdout and differences(machine) == []
    machine.run("ketch", "rmi", f"{open_registry}/door/signed@{sbom}")


def test_the_registry_hears_which_client_asks(machine: Machine) -> None:
    """In the User-Agent of its requests, each client's own, also on one connection; escaped, as dockerd does it."""
    heard: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["User-Agent"])
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server,
        contextlib.closing(UnixConnection(str(machine.socket))) as door,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            path = f"/images/create?fromImage=127.0.0.1:{server.server_address[1]}/a&tag=1"
            for client in ("One/1 (linux; x)", "Two/2"):
                door.request("POST", path, headers={"User-Agent": client})
                assert door.getresponse().read()
        finally:
            server.shutdown()
            thread.join()
    assert {text.partition(" UpstreamClient")[2] for text in heard} == {r"(One/1 \(linux\; x\))", "(Two/2)"}
