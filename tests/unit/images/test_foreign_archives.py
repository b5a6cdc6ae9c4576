"""Archives as other tools write them, odd and legal: each loads as the image that its config is."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import pytest
import zstandard

from images.test_archives import config_of, read_in, rubbish
from ketch_testing.rooms import tar_of
from ketch_wire.faults import InvalidInput, NotFound
from ketchd.engine.imagelist import image_history
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform

ONE, TWO, EMPTY = tar_of({"a": b"1"}), tar_of({"b": b"2"}), bytes(10240)
STEP = {"created": "1970-01-01T00:00:01Z"}
Content = bytes | tuple[bytes, str]  # a file, or a link: its type and target


def archive(*members: tuple[str, Content]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                entry.type, entry.linkname = content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def row(config: str, layers: Sequence[str], *names: str, **more: Any) -> dict[str, Any]:
    return {"Config": config, "RepoTags": list(names) or None, "Layers": list(layers), **more}


def listed(*rows: dict[str, Any]) -> tuple[str, bytes]:
    return "manifest.json", json.dumps(rows).encode()


def plain(layers: Sequence[bytes], config: bytes) -> bytes:
    """Layers under names of their own, as skopeo writes a docker-archive."""
    files = {f"{Digest.of(layer).hex}.tar": layer for layer in layers}
    names = [f"{Digest.of(layer).hex}.tar" for layer in layers]
    return archive(("c.json", config), *files.items(), listed(row("c.json", names, "x:1")))


THREE = config_of([ONE, TWO, TWO])
LINKED = listed(row("c.json", ["1/layer.tar", "2/layer.tar", "3/layer.tar"], "x:1"))
LAYERS = (("1/layer.tar", ONE), ("2/layer.tar", TWO))


@pytest.mark.parametrize(
    "content",
    [
        archive(("c.json", THREE), *LAYERS, ("3/layer.tar", (tarfile.SYMTYPE, "../2/layer.tar")), LINKED),
        archive(("c.json", THREE), ("3/layer.tar", (tarfile.SYMTYPE, "../2/layer.tar")), *LAYERS, LINKED),
        archive(("c.json", THREE), *LAYERS, ("3/layer.tar", (tarfile.LNKTYPE, "2/layer.tar")), LINKED),
        archive(("c.json", THREE), *LAYERS, listed(row("c.json", ["1/layer.tar", "2/layer.tar", "2/layer.tar"], "x:1"))),
        archive(("./manifest.json", LINKED[1]), ("./c.json", THREE), *((f"./{name}", layer) for name, layer in LAYERS), ("./3/layer.tar", TWO)),
    ],
    ids=["symlink", "symlink before its target", "hard link", "one name twice", "names with ./"],
)  # fmt: skip
async def test_shared_layers(rooms: Rooms, content: bytes) -> None:
    """Docker before 25 links to a layer that it wrote before; podman and docker since then name it twice."""
    assert await read_in(rooms, content) == ["Loaded image: x:1\n"]
    image = rooms.images.get(rooms.images.resolve("x:1"))
    assert image.id == Digest.of(THREE) and image.layers == tuple(map(Digest.of, (ONE, TWO, TWO)))


async def test_names_of_other_tools(rooms: Rooms) -> None:
    """crane's `sha256:HEX` and `HEX.tar.gz`, several images that share layers, one without a name."""
    first, second = config_of([ONE, TWO]), config_of([ONE], config=None)
    packed = {layer: gzip.compress(layer, mtime=0) for layer in (ONE, TWO)}
    names = {layer: f"{Digest.of(blob).hex}.tar.gz" for layer, blob in packed.items()}
    content = archive(
        (Digest.of(first).text, first), ("config.json", second), *((names[layer], packed[layer]) for layer in packed),
        listed(
            row(Digest.of(first).text, [names[ONE], names[TWO]], "localhost/one:1", "localhost/one:2", LayerSources=None, Parent=""),
            row("config.json", [names[ONE]]),
        ),
    )  # fmt: skip

    said = await read_in(rooms, content)
    assert said[:2] == ["Loaded image: localhost/one:1\n", "Loaded image: localhost/one:2\n"]
    assert said[2:] == [f"Loaded image ID: {Digest.of(second)}\n"]


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, 0),
        ({"history": None, "config": None, "author": None, "container_config": None, "variant": None, "created": None}, 0),
        ({"history": [STEP, STEP]}, 2),
        ({"history": [{"created": None, "created_by": None}, {"empty_layer": None}]}, 2),
        ({"history": [{"created_by": "a"}, {"created_by": "ENV", "empty_layer": True}, {"created_by": "b"}]}, 3),
        ({"history": [STEP]}, 1),
        ({"history": [STEP] * 4}, 4),
        ({"config": {"Cmd": ["a"], "Env": None, "Labels": None, "Volumes": None, "ExposedPorts": None, "OnBuild": None, "Healthcheck": None}}, 0),
        ({"created": "0001-01-01T00:00:00Z", "moby.buildkit.buildinfo.v1": "e30=", "os.version": None, "os.features": None}, 0),
    ],
)  # fmt: skip
async def test_configs_of_other_tools(rooms: Rooms, config: dict[str, Any], steps: int) -> None:
    """Without history, with more of it than layers, with null where nothing is: listed, shown, and removable."""
    document = config_of([ONE, TWO], **config)
    assert await read_in(rooms, plain([ONE, TWO], document)) == ["Loaded image: x:1\n"]
    assert rooms.images.resolve("x:1") == Digest.of(document)
    assert len(image_history(rooms, "x:1", None)) == steps


@pytest.mark.parametrize("empty", [EMPTY, EMPTY[:1024], b""])
async def test_empty_layers(rooms: Rooms, empty: bytes) -> None:
    """A tar of zeros, of just its end, and of nothing at all, which old Dockers wrote."""
    layers = [ONE, empty, TWO, empty]
    document = config_of(layers)
    assert await read_in(rooms, plain(layers, document)) == ["Loaded image: x:1\n"]
    assert rooms.images.get(Digest.of(document)).layers == tuple(map(Digest.of, layers))


async def test_an_image_of_another_platform_is_named_by_its_id(rooms: Rooms) -> None:
    """Whatever its config is called in the archive."""
    document = config_of([ONE])
    for name in ("c.json", f"{Digest.of(document).hex}.json"):
        content = archive(("1.tar", ONE), (name, document), listed(row(name, ["1.tar"], "x:1")))
        told = f"image {Digest.of(document).short} of the archive is for linux/amd64, not for linux/arm64"
        with pytest.raises(NotFound, match=told):
            await read_in(rooms, content, platform=Platform("linux", "arm64"))


async def test_an_image_without_layers(rooms: Rooms) -> None:
    """FROM scratch with settings alone."""
    document = config_of([])
    content = archive(("c.json", document), listed({"Config": "c.json", "RepoTags": ["x:1"], "Layers": None}))
    assert await read_in(rooms, content) == ["Loaded image: x:1\n"]


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
async def test_both_kinds_in_one(rooms: Rooms, packing: str, with_manifest: bool) -> None:
    """docker save since 25, of layers in every form; the layout alone is skopeo's oci-archive. Null where nothing is."""
    pack = {"": bytes, "+gzip": gzip.compress, "+zstd": zstandard.ZstdCompressor().compress}[packing]
    layers = [ONE, TWO, TWO]
    document, blobs = config_of(layers), [pack(layer) for layer in (ONE, TWO)]
    blobs.append(blobs[1])

    def described(kind: str, blob: bytes, **more: Any) -> dict[str, Any]:
        media_type = f"application/vnd.oci.image.{kind}"
        return {
            "mediaType": media_type,
            "digest": Digest.of(blob).text,
            "size": len(blob),
            "urls": None,
            **more,
        }

    manifest = json.dumps(
        {
            "schemaVersion": 2, "config": described("config.v1+json", document), "annotations": None, "subject": None,
            "layers": [described(f"layer.v1.tar{packing}", blob, annotations=None) for blob in blobs],
        }
    ).encode()  # fmt: skip
    names = {"io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1"}
    top = {
        "schemaVersion": 2,
        "annotations": None,
        "manifests": [described("manifest.v1+json", manifest, annotations=names, platform=None)],
    }
    files = {f"blobs/sha256/{Digest.of(blob).hex}": blob for blob in (document, manifest, *blobs)}
    listing = listed(
        row(
            f"blobs/sha256/{Digest.of(document).hex}",
            [f"blobs/sha256/{Digest.of(blob).hex}" for blob in blobs],
            "x:1",
        )
    )
    content = archive(
        *files.items(), ("index.json", json.dumps(top).encode()), *([listing] if with_manifest else [])
    )

    assert await read_in(rooms, content) == ["Loaded image: x:1\n"]
    assert rooms.images.get(rooms.images.resolve("x:1")).id == Digest.of(document)


async def test_what_docker_saved_before_images_had_digests(rooms: Rooms) -> None:
    """Told for what it is."""
    content = archive(("repositories", b'{"x":{"1":"00"}}'), ("00/json", b"{}"), ("00/layer.tar", ONE))
    with pytest.raises(InvalidInput, match="saved by a Docker before"):
        await read_in(rooms, content)
    assert rubbish(rooms) == []
