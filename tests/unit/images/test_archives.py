"""save, load and import: archives of every kind, one into the other, and nothing half made."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import resource
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketch_testing.rooms import image_of, layer_of, tar_of
from ketch_wire.faults import EngineFailure, Fault, InvalidInput, NotFound
from ketchd.content.archives import Piece, copy_piece
from ketchd.engine.imageprune import prune_images
from ketchd.engine.images import delete_image
from ketchd.engine.imports import download, import_image
from ketchd.engine.load import load
from ketchd.engine.rooms import Rooms
from ketchd.engine.save import saving
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference


async def pieces(content: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for position in range(0, len(content), size):
        yield content[position : position + size]


async def save(rooms: Rooms, *names: str) -> bytes:
    async with saving(rooms, names) as archive:
        return b"".join([chunk async for chunk in archive])


async def read_in(rooms: Rooms, archive: bytes, **more: Any) -> list[str]:
    """What load says, its stream lines only."""
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await load(rooms, pieces(archive), **{"quiet": True, "platform": None, "send": send, **more})
    return [message["stream"] for message in said if "stream" in message]


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: tar.extractfile(entry).read() if entry.isreg() else b"" for entry in tar}  # type: ignore[union-attr]


def rubbish(rooms: Rooms) -> list[str]:
    """What is in the stage, or stored and needed by nobody."""
    found = [path.name for path in (rooms.data_root / "stage").iterdir()]
    return found + [item.key for item in rooms.garbage.find()]


def old_archive(config: bytes, layers: Sequence[bytes], names: Sequence[str] | None, **more: Any) -> bytes:
    """As dockerd before version 25 writes it; an equal layer is a link to the first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

        paths, seen = [], {}
        for number, layer in enumerate(layers):
            directory = f"{number:064x}"
            add(f"{directory}/VERSION", b"1.0")
            if layer in seen:
                link = tarfile.TarInfo(f"{directory}/layer.tar")
                link.type, link.linkname = tarfile.SYMTYPE, f"../{seen[layer]}"
                tar.addfile(link)
            else:
                add(f"{directory}/layer.tar", layer)
                seen[layer] = f"{directory}/layer.tar"
            paths.append(f"{directory}/layer.tar")
        name = Digest.of(config).hex + ".json"
        add(name, config)
        row = {"Config": name, "RepoTags": names, "Layers": paths, **more}
        add("manifest.json", json.dumps([row]).encode())
    return buffer.getvalue()


def config_of(layers: Sequence[bytes], **more: Any) -> bytes:
    diff_ids = [str(Digest.of(layer)) for layer in layers]
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    return json.dumps({**document, **more}).encode()


def layout(blobs: Sequence[bytes], entries: Sequence[Mapping[str, Any]]) -> bytes:
    files: dict[str, bytes | None] = {f"blobs/sha256/{Digest.of(blob).hex}": blob for blob in blobs}
    index = {"schemaVersion": 2, "manifests": list(entries)}
    files |= {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
    return tar_of(files)


def described(kind: str, blob: bytes, **more: Any) -> dict[str, Any]:
    return {
        "mediaType": f"application/vnd.oci.image.{kind}",
        "digest": str(Digest.of(blob)),
        "size": len(blob),
        **more,
    }


def oci_image(layers: Sequence[bytes], **config: Any) -> tuple[bytes, list[bytes]]:
    """(manifest, blobs) with gzipped layers."""
    packed = [gzip.compress(layer, mtime=0) for layer in layers]
    document = config_of(layers, **config)
    manifest = json.dumps(
        {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("config.v1+json", document),
            "layers": [described("layer.v1.tar+gzip", blob) for blob in packed],
        }
    ).encode()  # fmt: skip
    return manifest, [*packed, document, manifest]


async def test_what_is_saved_loads_again_as_the_same_image(rooms: Rooms) -> None:
    base, top = await layer_of(rooms, {"a": b"1" * 5000}), await layer_of(rooms, {"b": b"2"})
    image = await image_of(rooms, [base, top, base], "x:1", "me/y:2")
    archive = await save(rooms, "x:1", "me/y")
    await delete_image(rooms, "x:1")
    await delete_image(rooms, "me/y:2")
    assert rooms.images.count() == 0

    assert await read_in(rooms, archive) == ["Loaded image: x:1\n", "Loaded image: me/y:2\n"]
    assert rooms.images.resolve("x:1") == image == rooms.images.resolve("me/y:2")
    assert await save(rooms, "x:1", "me/y") == archive
    assert rubbish(rooms) == []


async def test_the_saved_archive_is_both_kinds(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    image = await image_of(rooms, [layer], "x:1", "x:2")

    found = members(await save(rooms, "x"))
    (row,) = json.loads(found["manifest.json"])
    assert row["RepoTags"] == ["x:1", "x:2"] and row["Config"] == f"blobs/sha256/{image.hex}"
    assert Digest.of(found[row["Layers"][0]]) == layer and Digest.of(found[row["Config"]]) == image
    assert json.loads(found["repositories"]) == {"x": {"1": layer.hex, "2": layer.hex}}
    entries = json.loads(found["index.json"])["manifests"]
    assert [entry["annotations"]["io.containerd.image.name"] for entry in entries] == [
        "docker.io/library/x:1", "docker.io/library/x:2",
    ]  # fmt: skip
    manifest = json.loads(found[f"blobs/sha256/{entries[0]['digest'][7:]}"])
    assert manifest["layers"][0]["digest"] == str(layer)
    assert list(found) == sorted(found)


async def test_by_id_it_has_no_name(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1")

    for name in (str(image), image.hex, image.short):
        archive = await save(rooms, name)
        assert json.loads(members(archive)["manifest.json"])[0]["RepoTags"] is None
    assert await read_in(rooms, archive) == [f"Loaded image ID: {image}\n"]


async def test_an_unknown_name_fails_all(rooms: Rooms) -> None:
    await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1")

    with pytest.raises(NotFound, match="No such image: nope:1"):
        await save(rooms, "x:1", "nope:1")
    await image_of(rooms, [], "empty")
    with pytest.raises(EngineFailure, match="empty export - not implemented"):
        await save(rooms, "empty")


@pytest.mark.parametrize("missing", ["layer", "config"])
async def test_what_is_not_whole_fails_before_the_first_byte(rooms: Rooms, missing: str) -> None:
    """A client that has begun to receive an archive hears of nothing but its end."""
    layer = await layer_of(rooms, {"a": b"1"})
    image = await image_of(rooms, [layer], "x:1")
    if missing == "layer":
        rooms.trash.take(rooms.layers.path(layer))
    else:
        rooms.blobs.path(image).unlink()

    with pytest.raises(
        Fault, match=f"{layer} of image .* is missing" if missing == "layer" else f"no blob {image}"
    ):
        async with saving(rooms, ["x:1"]):
            pytest.fail("it has begun")
    assert rooms.leases.held() == set()


async def test_an_archive_of_the_old_kind(rooms: Rooms) -> None:
    layers = [tar_of({"a": b"1"}), tar_of({"b": b"2"}), tar_of({"a": b"1"})]
    config = config_of(layers)

    assert await read_in(rooms, old_archive(config, layers, ["x:1"])) == ["Loaded image: x:1\n"]
    assert rooms.images.resolve("x:1") == Digest.of(config)
    assert rubbish(rooms) == []


@pytest.mark.parametrize(
    "pack", [gzip.compress, lzma.compress, zstandard.compress], ids=["gzip", "xz", "zstd"]
)
async def test_compressed_archives_and_compressed_layers(rooms: Rooms, pack: Any) -> None:
    layers = [tar_of({"a": b"1" * 3000})]
    archive = old_archive(config_of(layers), [pack(layers[0])], ["x:1"])

    assert await read_in(rooms, pack(archive)) == ["Loaded image: x:1\n"]
    assert rooms.images.get(rooms.images.resolve("x:1")).layers == (Digest.of(layers[0]),)


async def test_a_name_moves_with_a_note(rooms: Rooms) -> None:
    old = await image_of(rooms, [await layer_of(rooms, {"z": b"z"})], "x:1")
    layers = [tar_of({"a": b"1"})]

    said = await read_in(rooms, old_archive(config_of(layers), layers, ["x:1"]))
    assert said[0] == f"The image x:1 already exists, renaming the old one with ID {old} to empty string\n"
    assert rooms.images.has(old)


async def test_an_oci_layout_keeps_manifest_and_blobs(rooms: Rooms) -> None:
    manifest, blobs = oci_image([tar_of({"a": b"1"}), tar_of({"b": b"2"})])
    name = {"org.opencontainers.image.ref.name": "reg.io/me/x:1"}
    archive = layout(blobs, [described("manifest.v1+json", manifest, annotations=name)])

    assert await read_in(rooms, archive) == ["Loaded image: reg.io/me/x:1\n"]
    image = rooms.images.resolve("reg.io/me/x:1")
    assert rooms.images.manifest_of(image) == (
        Digest.of(manifest), "application/vnd.oci.image.manifest.v1+json",
    )  # fmt: skip
    assert all(rooms.blobs.read(Digest.of(blob)) == blob for blob in blobs)
    assert rubbish(rooms) == []


def of_two_platforms(*, damaged: bool = False) -> bytes:
    """A layout of an index named x:1. damaged: its second image has another layer than its config says."""
    arm, arm_blobs = oci_image([tar_of({"a": b"arm"})], architecture="arm64")
    amd, amd_blobs = oci_image([tar_of({"a": b"amd"})])
    if damaged:
        wrong = config_of([tar_of({"a": b"other"})])
        amd = amd.replace(
            json.dumps(described("config.v1+json", amd_blobs[1])).encode(),
            json.dumps(described("config.v1+json", wrong)).encode(),
        )
        amd_blobs = [amd_blobs[0], wrong, amd]
    inner = json.dumps(
        {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                described("manifest.v1+json", blob, platform={"os": "linux", "architecture": name})
                for blob, name in ((arm, "arm64"), (amd, "amd64"))
            ],
        }
    ).encode()  # fmt: skip
    name = {"io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1"}
    return layout([*arm_blobs, *amd_blobs, inner], [described("index.v1+json", inner, annotations=name)])


async def test_a_layer_of_a_layout_in_two_forms_is_kept_in_both(rooms: Rooms) -> None:
    """The manifest names both, and a push sends it as it came."""
    config = config_of([LAYER, LAYER])
    forms = [gzip.compress(LAYER, level, mtime=0) for level in (1, 9)]
    manifest = json.dumps(
        {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("config.v1+json", config),
            "layers": [described("layer.v1.tar+gzip", form) for form in forms],
        }
    ).encode()  # fmt: skip
    await read_in(rooms, layout([config, manifest, *forms], [described("manifest.v1+json", manifest)]))

    assert forms[0] != forms[1] and all(rooms.blobs.has(Digest.of(form)) for form in forms)
    assert {form.digest for form in rooms.blobs.of_layer(Digest.of(LAYER))} == set(map(Digest.of, forms))


async def test_of_several_platforms_the_fitting_one(rooms: Rooms) -> None:
    archive = of_two_platforms()
    assert await read_in(rooms, archive, platform=Platform("linux", "arm64")) == ["Loaded image: x:1\n"]
    assert rooms.images.get(rooms.images.resolve("x:1")).architecture == "arm64"
    with pytest.raises(NotFound, match="no image for platform linux/s390x"):
        await read_in(rooms, archive, platform=Platform("linux", "s390x"))


async def test_of_several_platforms_all_or_none(rooms: Rooms) -> None:
    with pytest.raises(InvalidInput, match="invalid diffID"):
        await read_in(rooms, of_two_platforms(damaged=True))

    assert rooms.images.all() == [] and rubbish(rooms) == []


async def test_a_prune_takes_no_platform_of_a_load_under_way(rooms: Rooms) -> None:
    """None of them is an image before all of them are."""
    counts = []

    async def send(message: dict[str, Any]) -> None:
        counts.append(rooms.images.count())
        await prune_images(rooms, {})

    await load(rooms, pieces(of_two_platforms()), quiet=False, platform=None, send=send)

    assert set(counts[:-1]) == {0} and counts[-1] == 2 == rooms.images.count()


LAYER = tar_of({"a": b"1"})
OTHER = tar_of({"a": b"2"})


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (
            old_archive(config_of([LAYER, OTHER]), [LAYER], ["x:1"]),
            "layers length mismatch: expected 2, got 1",
        ),
        (
            old_archive(config_of([LAYER]), [OTHER], ["x:1"]),
            r'invalid diffID for layer 0: expected "sha256:.*", got',
        ),
        (old_archive(config_of([LAYER]), [LAYER], ["x"]), 'invalid tag "x"'),
        (
            old_archive(config_of([LAYER], os="windows"), [LAYER], ["x:1"]),
            "cannot load windows image on linux",
        ),
        (old_archive(config_of([b"no tar" * 200]), [b"no tar" * 200], ["x:1"]), "invalid tar"),
        (old_archive(config_of([LAYER]), [LAYER], ["x:1"])[:3000], "invalid tar"),
        (old_archive(b"{}", [LAYER], ["x:1"]), "image config has no rootfs"),
        (
            old_archive(config_of([LAYER]), [LAYER], ["x:1"], Config="../../etc/passwd"),
            "no such file or directory",
        ),
        (old_archive(config_of([LAYER]), [LAYER], ["x:1"], Layers="a"), "invalid manifest"),
        (tar_of({"manifest.json": b"null"}), "manifest cannot be null"),
        (tar_of({"manifest.json": b"{"}), "it is not JSON"),
        (tar_of({"../evil": b"x", "manifest.json": b"[]"}), "leads out of it"),
        (tar_of({"a": b"1"}), "neither manifest.json nor index.json"),
        (b"", "neither manifest.json nor index.json"),
        (b"\x1f\x8b\x08\x00rubbish", "gzip"),
        (b"rubbish" * 1000, "invalid tar"),
        (layout([], []), "names no image"),
        (layout([], [described("manifest.v1+json", b"gone")]), "no such file or directory"),
    ],
)
async def test_what_cannot_be_loaded_leaves_nothing(rooms: Rooms, archive: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await read_in(rooms, archive)
    assert rooms.images.count() == 0
    assert rubbish(rooms) == []


async def test_a_wrong_blob_of_a_layout_leaves_nothing(rooms: Rooms) -> None:
    manifest, blobs = oci_image([LAYER])
    archive = layout(blobs, [described("manifest.v1+json", manifest)])
    flipped = archive.replace(blobs[0], blobs[0][:12] + bytes([blobs[0][12] ^ 1]) + blobs[0][13:])

    with pytest.raises(Fault):
        await read_in(rooms, flipped)
    assert rooms.images.count() == 0 and rubbish(rooms) == []


async def test_an_empty_list_loads_nothing_and_succeeds(rooms: Rooms) -> None:
    assert await read_in(rooms, tar_of({"manifest.json": b"[]"})) == []


async def test_progress_unless_quiet(rooms: Rooms) -> None:
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    archive = old_archive(config_of([LAYER]), [LAYER], ["x:1"])
    await load(rooms, pieces(archive), quiet=False, platform=None, send=send)
    assert said[0] == {"status": "Loading layer", "progressDetail": {}, "id": Digest.of(LAYER).short}
    assert said[-1] == {"stream": "Loaded image: x:1\n"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 4000), byte=st.integers(0, 255))
async def test_a_changed_byte_never_makes_another_image(rooms: Rooms, position: int, byte: int) -> None:
    archive = bytearray(old_archive(config_of([LAYER]), [LAYER], ["x:1"]))
    archive[position % len(archive)] = byte
    try:
        await read_in(rooms, bytes(archive))
    except Fault:
        pass
    for record in rooms.images.all():
        assert Digest.of(rooms.blobs.read(record.id)) == record.id
        assert all(rooms.layers.has(layer) for layer in record.layers)
    assert rubbish(rooms) == []


async def test_import_keeps_the_tar_and_takes_changes(rooms: Rooms) -> None:
    root = tar_of({"bin": None, "bin/sh": b"#!"})
    image = await import_image(
        rooms, pieces(gzip.compress(root)), target=Reference.parse("x:1"), changes=['CMD ["sh"]', "ENV A=b C=d", "WORKDIR /w"]
    )  # fmt: skip

    config = rooms.images.config(image)
    assert config.diff_ids == (Digest.of(root),)
    assert (config.run.cmd, config.run.env, config.run.working_dir) == (("sh",), ("A=b", "C=d"), "/w")
    assert config.comment == "Imported from -" and len(config.history) == 1
    assert [event.action for event in rooms.events.since(0)] == ["tag", "import"]
    assert rubbish(rooms) == []


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"no tar" * 1000, {}, "invalid tar"),
        (LAYER, {"changes": ["RUN x"]}, "RUN is not a valid change command"),
        (LAYER, {"changes": ["Bogus x"]}, "Bogus is not a valid change command"),
        (LAYER, {"platform": "windows/amd64"}, "operating system is not supported"),
        (LAYER, {"platform": "a/b/c/d"}, "cannot parse platform specifier"),
    ],
)
async def test_a_bad_import_leaves_nothing(
    rooms: Rooms, content: bytes, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await import_image(rooms, pieces(content), **more)
    assert rooms.images.count() == 0 and rubbish(rooms) == []


async def test_import_from_a_url(rooms: Rooms) -> None:
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=LAYER) if request.path == "/root.tar" else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with download(f"{base}/root.tar", send) as chunks:
            image = await import_image(rooms, chunks, source=f"{base}/root.tar")
        assert rooms.images.get(image).layers == (Digest.of(LAYER),)
        assert said == [{"status": f"Downloading from {base}/root.tar"}]
        with pytest.raises(InvalidInput, match="with status 404"):
            async with download(f"{base}/nope", send) as chunks:
                await import_image(rooms, chunks)
    finally:
        await runner.cleanup()
    with pytest.raises(EngineFailure, match=r"^Get .*: dial tcp .*: connection refused"):
        async with download(f"{base}/root.tar", send) as chunks:
            await import_image(rooms, chunks)


@pytest.mark.parametrize("missing", [0, 1, 100_000])
def test_a_blob_that_has_no_room_is_none(tmp_path: Path, missing: int) -> None:
    """The disk takes the beginning of its last piece and no more, which write(2) tells by its count alone."""
    content = b"x" * 3_000_000
    archive, target = tmp_path / "archive", tmp_path / "blob"
    archive.write_bytes(b"before" + content + b"behind")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) - missing, before[1]))
    try:
        found = copy_piece(archive, Piece(6, len(content)), target)
        assert (found, target.read_bytes(), missing) == (Digest.of(content), content, 0)
    except EngineFailure as fault:
        assert missing and "cannot take a blob out of the archive: file too large" in fault.message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
