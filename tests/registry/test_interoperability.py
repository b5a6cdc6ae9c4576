"""skopeo and umoci as independent readers and writers of what is pushed and pulled."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from registry.conftest import Engine, need

from ketch_testing.rooms import image_of, layer_of
from ketchd.model.digest import Digest

FILES = {"etc": None, "etc/name": b"ketch\n", "bin/tool": b"\x7fELF" + bytes(300)}


async def run(*words: str) -> str:
    """A program's output. Raises AssertionError unless it ends well."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"{' '.join(words)}:\n{output.decode()}"
    return output.decode()


async def pushed(engine: Engine, name: str) -> Digest:
    layers = [await layer_of(engine.rooms, FILES), await layer_of(engine.rooms, {"etc/more": b"more\n"})]
    image_id = await image_of(engine.rooms, layers, name, config={"Cmd": ["/bin/tool"]})
    await engine.push(name)
    return image_id


async def test_skopeo_reads_what_is_pushed(engine: Engine, real: str) -> None:
    """The same digest, config and layers."""
    need("skopeo")
    image_id = await pushed(engine, f"{real}/app:1")
    (digest,) = [message["aux"]["Digest"] for message in engine.said if "aux" in message]

    shown = json.loads(await run("skopeo", "inspect", "--tls-verify=false", f"docker://{real}/app:1"))
    assert shown["Digest"] == digest and shown["RepoTags"] == ["1"]
    raw = json.loads(await run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{real}/app:1"))
    assert raw["config"]["digest"] == str(image_id)
    assert [layer["digest"] for layer in raw["layers"]] == shown["Layers"]


async def test_umoci_unpacks_what_is_pushed(engine: Engine, real: str, tmp_path: Path) -> None:
    """File by file."""
    need("skopeo", "umoci")
    await pushed(engine, f"{real}/app:1")

    layout = tmp_path / "layout"
    await run("skopeo", "copy", "--src-tls-verify=false", f"docker://{real}/app:1", f"oci:{layout}:1")
    await run("umoci", "unpack", "--rootless", "--image", f"{layout}:1", str(tmp_path / "bundle"))

    root = tmp_path / "bundle" / "rootfs"
    assert (root / "etc/name").read_bytes() == b"ketch\n" and (root / "etc/more").read_bytes() == b"more\n"
    assert (root / "bin/tool").read_bytes() == FILES["bin/tool"]


async def test_what_skopeo_pushes_is_pulled(engine: Engine, real: str) -> None:
    """As OCI, as Docker's schema 2, with zstd: the layers are the same layers, and go out again as they came."""
    need("skopeo")
    image_id = await pushed(engine, f"{real}/app:1")
    layers = engine.rooms.images.get(image_id).layers
    for number, options in enumerate(
        (
            ["--format", "oci"],
            ["--format", "v2s2"],
            ["--format", "oci", "--dest-compress-format", "zstd", "--dest-compress"],
        )
    ):
        target = f"{real}/copied{number}:1"
        await run(
            *("skopeo", "copy", *options, "--src-tls-verify=false", "--dest-tls-verify=false"),
            *(f"docker://{real}/app:1", f"docker://{target}"),
        )
        for layer in layers:
            await engine.rooms.layers.remove(layer)
        copied = await engine.pull(target)
        assert engine.rooms.images.get(copied).layers == layers
        engine.tag(copied, f"{real}/again{number}:1")
        await engine.push(f"{real}/again{number}:1")
        first, second = [
            await run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}")
            for name in (target, f"{real}/again{number}:1")
        ]
        assert first == second
