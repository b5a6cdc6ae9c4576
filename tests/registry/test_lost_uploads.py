"""Uploads of which the registry thinks otherwise than we do: lost, spoilt, at another byte; and what is sent again for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from registry.conftest import QUICK, Engine, engine_below, noise

from ketch_testing.hostile import HostileRegistry, Trick, on, refuse, times
from ketch_testing.proxies import listening
from ketch_testing.rooms import image_of, layer_of
from ketch_wire.faults import EngineFailure
from ketchd.model.digest import Digest
from ketchd.registry import uploads

CHUNK = 400_000


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob of a megabyte goes in two PATCHes and a PUT."""
    monkeypatch.setattr(uploads.Upload.__init__, "__kwdefaults__", {"source": "", "chunk": CHUNK})


@dataclass(slots=True)
class Pushed:
    """An image of one layer, to be pushed to `registry` as `app:1`. size: of the layer's blob."""

    engine: Engine
    registry: HostileRegistry
    layer: Digest
    size: int = 0

    async def push(self) -> None:
        """Push it, and look that every byte of the layer is there and no upload is left."""
        await self.engine.push(f"{self.registry.host}/app:1")
        (form,) = self.engine.rooms.blobs.of_layer(self.layer)
        self.size = form.size
        assert Digest.of(self.registry.blobs["app"][str(form.digest)]) == form.digest
        assert self.registry.uploads == {}

    def sent(self) -> list[str]:
        """Ranges of the layer's bytes, in the order in which they were sent; the closing one as `N-`."""
        last = f"-{self.size - 1}"
        return [
            seen.headers["Content-Range"].replace(last, "-")
            for seen in self.registry.seen
            if seen.method in ("PATCH", "PUT") and "Content-Range" in seen.headers
        ]


@pytest.fixture
async def pushed(engine: Engine, hostile: HostileRegistry) -> Pushed:
    """Nothing is at the registry yet."""
    layer = await layer_of(engine.rooms, {"big": noise(1_000_000)})
    await image_of(engine.rooms, [layer], f"{hostile.host}/app:1")
    return Pushed(engine, hostile, layer)


def held(registry: HostileRegistry, request: web.BaseRequest) -> bytearray:
    """What the registry has of the upload that `request` belongs to."""
    return registry.uploads[request.path.rpartition("/")[2]]


def hang_up(request: web.BaseRequest) -> web.StreamResponse:
    """No answer: the connection is cut."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


WHOLE = ["0-399999", "400000-799999", "800000-"]


@pytest.mark.parametrize("status", [404, 400])
@pytest.mark.parametrize("code", ["BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN"])
@pytest.mark.parametrize(("method", "at", "again"), [("PATCH", 400_000, WHOLE[:2]), ("PUT", 800_000, WHOLE)])
async def test_an_upload_that_is_lost_begins_anew(
    pushed: Pushed, status: int, code: str, method: str, at: int, again: list[str]
) -> None:
    """At a chunk and at the closing PUT: what had been sent is sent again, once, and nothing else."""

    async def lose(request: web.BaseRequest) -> web.StreamResponse | None:
        is_it = request.method == method and request.headers.get("Content-Range", "").startswith(f"{at}-")
        return refuse(status, code) if is_it else None

    pushed.registry.tricks.append(times(1, lose))
    await pushed.push()

    assert pushed.sent() == again + WHOLE
    assert len(pushed.registry.asked("POST", "/uploads/")) == 3  # the layer's, twice, and the config's
    assert [status for status in pushed.engine.statuses() if status.startswith("Retrying in")]


@pytest.mark.parametrize("answer", ["lost", "another byte"])
async def test_an_upload_that_is_always_lost_ends(pushed: Pushed, answer: str) -> None:
    """In the registry's words, after as many attempts as anything gets; what is begun is given up there."""
    trick = (
        on("PATCH", "/uploads/", lambda _: refuse(404, "BLOB_UPLOAD_INVALID"))
        if answer == "lost"
        else on("PATCH", "/uploads/", lambda _: web.Response(status=416, headers={"Range": "0-99"}))
    )
    pushed.registry.tricks.append(trick)

    with pytest.raises(EngineFailure, match="blob upload invalid" if answer == "lost" else "416"):
        await pushed.push()
    assert len(pushed.registry.asked("PATCH", "/uploads/")) == QUICK.attempts
    assert pushed.registry.uploads == {}


async def test_a_chunk_at_another_byte_is_asked_for(pushed: Pushed) -> None:
    """416 with a Range: the registry's word is taken after it was asked, and only the missing bytes go again."""

    async def forget(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.headers.get("Content-Range", "").startswith("400000-"):
            del held(pushed.registry, request)[300_000:]
            return web.Response(status=416, headers={"Range": "0-299999", "Location": str(request.rel_url)})
        return None

    pushed.registry.tricks.append(times(1, forget))
    await pushed.push()

    assert pushed.sent() == [*WHOLE[:2], "300000-699999", "700000-"]
    assert len(pushed.registry.asked("GET", "/uploads/")) == 1


async def test_the_last_chunk_at_another_byte_is_asked_for(pushed: Pushed) -> None:
    """The closing PUT too; a registry that refuses what it has just said is given a new upload."""

    async def stuck(request: web.BaseRequest) -> web.StreamResponse | None:
        is_last = request.method == "PUT" and request.headers.get("Content-Range", "").startswith("800000-")
        return web.Response(status=416, headers={"Range": "0-799999"}) if is_last else None

    pushed.registry.tricks.append(times(2, stuck))
    await pushed.push()

    assert pushed.sent() == [*WHOLE, "800000-", *WHOLE]
    assert len(pushed.registry.asked("GET", "/uploads/")) == 1
    assert len(pushed.registry.asked("DELETE", "/uploads/")) == 1


def late(pushed: Pushed, spoil: Callable[[bytearray, bytes], None]) -> list[Trick]:
    """The second chunk breaks off; `spoil` has its bytes when the question what has arrived is already answered."""
    arrived = b""

    async def breaking(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal arrived
        if not request.headers.get("Content-Range", "").startswith("400000-"):
            return None
        arrived = await request.content.readexactly(100_000)
        return hang_up(request)

    async def spoiling(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal arrived
        if arrived and pushed.registry.asked("GET", "/uploads/") and request.method == "PATCH":
            spoil(held(pushed.registry, request), arrived)
            arrived = b""
        return None

    return [times(1, breaking), spoiling]


async def test_bytes_that_come_late_and_twice(pushed: Pushed) -> None:
    """A registry that keeps them in front of the same bytes of the next request finds another digest: it begins anew."""

    async def append(request: web.BaseRequest) -> web.StreamResponse | None:
        """Whatever the range."""
        if request.method != "PATCH" or not request.headers["Content-Range"].startswith("400000-"):
            return None
        kept = held(pushed.registry, request)
        kept += await request.content.read()
        return web.Response(status=202, headers={"Location": str(request.rel_url), "Range": "0-799999"})

    def double(kept: bytearray, arrived: bytes) -> None:
        kept += arrived

    async def close(request: web.BaseRequest) -> web.StreamResponse | None:
        is_long = request.method == "PUT" and len(held(pushed.registry, request)) == 900_000
        return refuse(400, "DIGEST_INVALID") if is_long else None

    pushed.registry.tricks += [*late(pushed, double), times(1, append), times(1, close)]
    await pushed.push()

    assert pushed.sent() == [*WHOLE[:2], *WHOLE[1:], *WHOLE]


async def test_a_lost_answer_is_not_a_lost_blob(pushed: Pushed) -> None:
    """The registry has stored the blob and the connection breaks before it says so: nothing is sent twice."""

    async def silent(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "PUT" or not request.headers.get("Content-Range", "").startswith("800000-"):
            return None
        content = bytes(held(pushed.registry, request)) + await request.content.read()
        assert pushed.registry.put_blob("app", content) == request.query["digest"]
        del pushed.registry.uploads[request.path.rpartition("/")[2]]
        return hang_up(request)

    pushed.registry.tricks.append(times(1, silent))
    await pushed.push()

    assert pushed.sent() == WHOLE
    assert len(pushed.registry.asked("POST", "/uploads/")) == 2


@dataclass(slots=True)
class LateLine:
    """A line to `target` on which one chunk breaks off: the client is cut after its head. Its bytes arrive at the target behind
    the answer to the client's question what has arrived, which goes on to the client when they are dealt with."""

    target: str
    waiting: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    happened: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request by request."""
        host, _, port = self.target.rpartition(":")
        upstream, onwards = await asyncio.open_connection(host, int(port))
        try:
            while await self._carry(reader, writer, upstream, onwards):
                pass
        finally:
            if self.waiting is None or self.waiting[1] is not onwards:
                onwards.close()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: asyncio.StreamReader,
        onwards: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; False when the connection broke."""
        head = await reader.readexactly(1)
        if not head.isalpha():
            return False  # TLS is tried first
        head += await reader.readuntil(b"\r\n\r\n")
        onwards.write(head)
        if re.match(rb"PATCH .*Content-Range: 400000-", head, re.S) and not self.happened:
            self.happened.append("broken")
            self.waiting = (upstream, onwards)
            writer.transport.abort()
            return False
        onwards.write(await reader.readexactly(length(head)))
        answer = await upstream.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HEAD "):
            answer += await upstream.readexactly(length(answer))
        if self.waiting is not None:
            self.happened.append(f"{head.split()[0].decode()}: {answer.split()[1].decode()}")
            reading, writing = self.waiting
            self.waiting = None
            writing.write(b"x" * 100_000)
            writing.write_eof()
            await reading.readline()  # it has given the request up, and what it kept is on its disk
            writing.close()
        writer.write(answer)
        return True


def length(head: bytes) -> int:
    """Of the body behind the head of a request or an answer."""
    found = re.search(rb"\r\nContent-Length: (\d+)", head)
    return int(found[1]) if found else 0


async def test_docker_registry_hears_late_of_a_broken_chunk(
    engine: Engine, real: str, tmp_path: Path
) -> None:
    """It says first where to go on, and calls the upload invalid when we do. The image is pushed and whole."""
    line = LateLine(real)
    async with listening(line.serve) as address:
        layer = await layer_of(engine.rooms, {"big": noise(1_000_000)})
        image_id = await image_of(engine.rooms, [layer], f"{address}/app:1")
        await engine.push(f"{address}/app:1")
    assert line.happened == ["broken", "GET: 204"]
    async with engine_below(tmp_path / "other") as other:
        assert await other.pull(f"{real}/app:1") == image_id
