"""Pulls through a real ketchd that end early: Ctrl-C of the client, kill -9 of the daemon. Bytes are counted at the registry."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from conftest import needs_root
from registry.conftest import noise, until
from registry.test_resume import PIECE, recorded

from ketch_testing.hostile import HostileRegistry, digest_of
from ketch_testing.machine import Machine
from ketch_testing.rooms import tar_of

pytestmark = [pytest.mark.root, needs_root]


class Halting:
    """A trick: each answer for the blob, ranged as asked, halts at the next of `halts` until `go` is set. served: bytes sent."""

    def __init__(self, digest: str, content: bytes, halts: list[int]) -> None:
        self._digest, self._content, self._halts = digest, content, halts
        self.starts: list[int] = []
        self.served = 0
        self.go = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "GET" or self._digest not in request.path:
            return None
        size, start = len(self._content), request.http_range.start or 0
        self.starts.append(start)
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        response.content_length = size - start
        await response.prepare(request)
        stop = self._halts.pop(0) if self._halts else size
        await response.write(self._content[start:stop])
        self.served += stop - start
        if stop < size:
            await self.go.wait()
        return response


@pytest.fixture
async def own() -> AsyncIterator[Machine]:
    """A ketchd of the test's own, to kill."""
    made = Machine(Path(tempfile.mkdtemp(prefix="ketch-test-")))
    try:
        await asyncio.to_thread(made.start)
        yield made
    finally:
        await asyncio.to_thread(made.close)
    assert made.leftovers() == []


async def client(machine: Machine, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *words, env=machine.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


async def test_at_most_one_piece_is_fetched_twice(own: Machine, hostile: HostileRegistry) -> None:
    """One download for two clients; after Ctrl-C and after kill -9 the next pull asks for the rest alone."""
    image = hostile.put_image("app", "1", [tar_of({"big": noise(12 * PIECE)})])
    blob, digest = image.layers[0], image.layer_digests[0]
    halting = Halting(digest, blob, [4 * PIECE, 8 * PIECE])
    hostile.tricks.append(halting)
    name = f"{hostile.host}/app:1"

    pulling = await client(own, "ketch", "pull", name)
    await until(lambda: recorded(own.data_root, digest) >= 3 * PIECE)
    pulling.send_signal(signal.SIGINT)
    assert await pulling.wait() != 0

    waiting = [await client(own, "ketch", "pull", name) for _ in range(2)]
    await until(lambda: recorded(own.data_root, digest) >= 7 * PIECE)
    assert len(halting.starts) == 2
    await asyncio.to_thread(own.kill)
    for one in waiting:
        assert await one.wait() != 0
    halting.go.set()
    await asyncio.to_thread(own.start)

    last = await client(own, "ketch", "pull", name)
    output, _ = await last.communicate()
    assert last.returncode == 0, output.decode()
    assert halting.starts[0] == 0 and halting.starts[1] >= 3 * PIECE and halting.starts[2] >= 7 * PIECE
    assert len(halting.starts) == 3 and halting.served <= len(blob) + 2 * PIECE
    shown = await asyncio.to_thread(own.json, "GET", f"/images/{name}/json")
    assert shown["Id"] == digest_of(image.config)
    assert list((own.data_root / "partial").iterdir()) == []
