"""Pulls that end early, by cancellation or by kill -9 at every trace point: the next one is right, and fetches the rest only."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from aiohttp import web
from registry.conftest import Engine, noise, until

import ketchd.engine.pull
from ketch_testing.hostile import HostileRegistry, digest_of
from ketch_testing.rooms import tar_of
from ketchd import tracepoint
from ketchd.model.digest import Digest

PULL_POINTS = sorted(name for name in tracepoint.ALL if name.startswith(("pull.", "layer.")))
PUSH_POINTS = sorted(name for name in tracepoint.ALL if name.startswith("push."))
SCRIPT = Path(__file__).with_name("resumable.py")
PIECE = 1024 * 1024


async def run(root: Path, name: str, *words: str, tracepoints: str = "") -> tuple[int, str]:
    """A pull (or `push`) in its own process: exit status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(SCRIPT), str(root), name, *words,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), "KETCHD_TRACEPOINTS": tracepoints},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


class Stalling:
    """A trick: a blob's body stops after `after` bytes until `go` is set."""

    def __init__(self, digest: str, content: bytes, after: int) -> None:
        self.digest, self.content, self.after = digest, content, after
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "GET" or self.digest not in request.path or self.go.is_set():
            return None
        response = web.StreamResponse()
        response.content_length = len(self.content)
        await response.prepare(request)
        await response.write(self.content[: self.after])
        self.reached.set()
        await self.go.wait()
        return response


def begin_of(hostile: HostileRegistry, digest: str) -> list[int]:
    return [
        int(seen.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        for seen in hostile.asked("GET", digest)
    ]


def recorded(root: Path, digest: str) -> int:
    """Bytes on record of a partial blob."""
    path = root / "partial" / f"{digest[7:]}.map"
    return (
        sum(int(b) - int(a) for a, b in (line.split() for line in path.read_text().splitlines()))
        if path.exists()
        else 0
    )


async def test_a_cancelled_pull_goes_on_where_it_was(engine: Engine, hostile: HostileRegistry) -> None:
    """Ctrl-C: nothing but the partial blob stays, and at most a piece of it is fetched again."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(5_000_000)})])
    blob, digest = image.layers[0], image.layer_digests[0]
    stalling = Stalling(digest, blob, 4 * PIECE)
    hostile.tricks.append(stalling)
    root = engine.rooms.data_root
    pulling = asyncio.create_task(engine.pull(f"{hostile.host}/app:1"))
    await until(lambda: recorded(root, digest) >= 3 * PIECE)
    pulling.cancel()
    await asyncio.wait([pulling])

    assert pulling.cancelled()
    assert engine.staged() == [] and engine.rooms.leases.held() == set()
    assert [path.name for path in engine.partials()] == [digest[7:], f"{digest[7:]}.map"]
    stalling.go.set()
    assert await engine.pull(f"{hostile.host}/app:1") == Digest.of(image.config)
    assert begin_of(hostile, digest)[1] >= 3 * PIECE
    assert engine.partials() == []


async def test_a_killed_daemon_goes_on_where_it_was(tmp_path: Path, hostile: HostileRegistry) -> None:
    """kill -9 in the middle of a blob: at most the piece under way is fetched again."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(9_000_000)}), tar_of({"a": b"small"})])
    blob, digest = image.layers[0], image.layer_digests[0]
    stalling = Stalling(digest, blob, 8 * PIECE)
    hostile.tricks.append(stalling)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), str(tmp_path), f"{hostile.host}/app:1",
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
    )  # fmt: skip
    try:
        await until(lambda: recorded(tmp_path, digest) >= 7 * PIECE)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    stalling.go.set()

    status, output = await run(tmp_path, f"{hostile.host}/app:1")

    assert status == 0, output
    assert output.splitlines() == [digest_of(image.config), "garbage: []"]
    (_, again) = begin_of(hostile, digest)
    assert again >= 7 * PIECE
    assert (tmp_path / "blobs" / "sha256" / digest[7:]).read_bytes() == blob
    assert list((tmp_path / "partial").iterdir()) == [] and list((tmp_path / "stage").iterdir()) == []


async def test_a_partial_blob_that_was_torn_is_fetched_anew(engine: Engine, hostile: HostileRegistry) -> None:
    """A power cut may keep the record and lose the bytes: the digest tells, and the pull still succeeds."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(3_000_000)})])
    digest = image.layer_digests[0]
    directory = engine.rooms.data_root / "partial"
    directory.mkdir()
    (directory / digest[7:]).write_bytes(bytes(2 * PIECE))
    (directory / f"{digest[7:]}.map").write_text(f"0 {2 * PIECE}\n")

    assert await engine.pull(f"{hostile.host}/app:1") == Digest.of(image.config)
    assert begin_of(hostile, digest) == [2 * PIECE, 0]


@pytest.mark.parametrize("record", ["", "junk\n", "0 99999999\n", "5 3\n", "0 100"])
async def test_a_record_that_makes_no_sense_counts_for_nothing(
    engine: Engine, hostile: HostileRegistry, record: str
) -> None:
    """Then everything is fetched."""
    image = hostile.put_image("app", "1", [tar_of({"a": b"x"})])
    directory = engine.rooms.data_root / "partial"
    directory.mkdir()
    (directory / image.layer_digests[0][7:]).write_bytes(b"leftover")
    (directory / f"{image.layer_digests[0][7:]}.map").write_text(record)

    await engine.pull(f"{hostile.host}/app:1")

    assert begin_of(hostile, image.layer_digests[0]) == [0]


async def test_a_large_blob_comes_in_ranges(
    engine: Engine, hostile: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once, each no larger than it should be; a registry that ignores them sends it in one piece."""
    from ketchd.registry import download

    monkeypatch.setattr(download, "RANGE", 1_000_000)
    monkeypatch.setattr(download, "_WORTH_SPLITTING", 2_000_000)
    image = hostile.put_image("app", "1", [tar_of({"big": noise(4_500_000)})])
    await engine.pull(f"{hostile.host}/app:1")
    assert sorted(begin_of(hostile, image.layer_digests[0])) == [
        0,
        1_000_000,
        2_000_000,
        3_000_000,
        4_000_000,
    ]
    assert engine.rooms.blobs.path(Digest(image.layer_digests[0])).read_bytes() == image.layers[0]

    hostile.ranges = False
    other = hostile.put_image("app", "2", [tar_of({"big": noise(4_500_000)})])
    await engine.pull(f"{hostile.host}/app:2")
    assert engine.rooms.blobs.path(Digest(other.layer_digests[0])).read_bytes() == other.layers[0]


@pytest.mark.parametrize("point", PULL_POINTS)
async def test_killed_at_every_step(tmp_path: Path, hostile: HostileRegistry, point: str) -> None:
    """Whatever had just happened: the next start finds nothing wrong, and the next pull ends as the first one should have."""
    assert ketchd.engine.pull and ketchd.engine.push
    image = hostile.put_image("app", "1", [tar_of({"a": b"base"}), tar_of({"big": noise(200_000)})])
    name = f"{hostile.host}/app:1"

    status, output = await run(tmp_path, name, tracepoints=f"{point}=kill")
    assert status == -signal.SIGKILL or point in ("layer.forgotten", "layer.removed"), output
    status, output = await run(tmp_path, name)

    assert status == 0, output
    assert output.splitlines() == [digest_of(image.config), "garbage: []"]
    assert list((tmp_path / "partial").iterdir()) == [] and list((tmp_path / "stage").iterdir()) == []
    stored = {path.name for path in (tmp_path / "blobs" / "sha256").iterdir()}
    named = {digest_of(part)[7:] for part in (image.manifest, image.config)}
    # A layer's blob may be lost between its renaming and its record: the layer is there, and nothing needs the blob.
    assert named <= stored <= named | {digest[7:] for digest in image.layer_digests}
    assert len(list((tmp_path / "layers" / "sha256").iterdir())) == 2


@pytest.mark.parametrize("point", PUSH_POINTS)
async def test_a_push_killed_at_every_step(tmp_path: Path, hostile: HostileRegistry, point: str) -> None:
    """The next one completes it, and sends no blob that had arrived."""
    name = f"{hostile.host}/app:1"

    status, output = await run(tmp_path, name, "push", tracepoints=f"{point}=kill")
    assert status == -signal.SIGKILL, output
    arrived = set(hostile.blobs.get("app", {}))
    hostile.seen.clear()
    status, output = await run(tmp_path, name, "push")

    assert (status, output) == (0, "garbage: []\n")
    document = json.loads(hostile.manifests["app"]["1"][0])
    assert {part["digest"] for part in (document["config"], *document["layers"])} == set(hostile.blobs["app"])
    sent = {seen.query.partition("digest=")[2] for seen in hostile.asked("PUT", "/uploads/")}
    assert not sent & {digest.replace(":", "%3A") for digest in arrived}
    assert list((tmp_path / "stage").iterdir()) == []
