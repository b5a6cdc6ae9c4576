"""A build's context: received into one staged file as it comes, hashed meanwhile, looked into without unpacking anything."""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import threading
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd import tracepoint
from ketchd.build import contenthash, keys
from ketchd.build.lexer import SIZE_LIMIT
from ketchd.layers.endings import in_thread
from ketchd.layers.inflate import inflate, is_compressed
from ketchd.layers.tarheaders import BLOCK, REGULAR, Entry, header
from ketchd.layers.workers import WorkerPool

tracepoint.declare("build.context-read")

_CHUNK = 1 << 20
_INLINE_LIMIT = 2 << 20  # bytes of a tar that a thread of ketchd looks into itself: a job would cost more
_MEMO_LIMIT = 512
Result = TypeVar("Result")


class Memo:
    """What is known of contexts by the digest of their bytes: a context that arrives again is not looked into again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def get(self, context: str, what: str) -> Any:
        """None when it is not known."""
        if (context, what) not in self._known:
            return None
        self._known.move_to_end((context, what))
        return self._known[context, what]

    def put(self, context: str, what: str, value: Any) -> None:
        """Remember, and forget what was not asked for longest."""
        self._known[context, what] = value
        if len(self._known) > _MEMO_LIMIT:
            self._known.popitem(last=False)


class Context:
    """One received context. path: the plain tar; digest: of the bytes as they came, in hex. ignore: the ignore file's text."""

    def __init__(self, path: Path, digest: str, size: int, workers: WorkerPool, memo: Memo) -> None:
        self.path = path
        self.digest = digest
        self.size = size
        self.ignore = ""
        self._workers = workers
        self._memo = memo

    async def dockerfile(self, name: str) -> tuple[str, str]:
        """(the Dockerfile's text, its name); the ignore file that counts for it is read too.

        Raises EngineFailure in dockerd's words when it is not there, InvalidInput (no tar).
        """
        wanted = posixpath.normpath("/" + (name or "Dockerfile")).lstrip("/")
        candidates = [wanted, *(["dockerfile"] if not name else [])]
        ignores = [f"{wanted}.dockerignore", ".dockerignore"]
        found = self._memo.get(self.digest, f"files:{wanted}")
        if found is None:
            arguments = {"tar": str(self.path), "names": [*candidates, *ignores], "limit": SIZE_LIMIT}
            found = (
                await self._look("ketchd.build.contenthash:read_files", contenthash.read_files, arguments)
            )["files"]
            if sum(len(content or b"") for content in found.values()) < 1 << 17:
                self._memo.put(self.digest, f"files:{wanted}", found)
        ignore = next((found[each] for each in ignores if found[each] is not None), None)
        self.ignore = (ignore or b"").decode("utf-8", "replace")
        for candidate in candidates:
            if found[candidate] is not None:
                return found[candidate].decode("utf-8", "replace"), candidate
        raise EngineFailure(f"Cannot locate specified Dockerfile: {wanted}")

    async def measure(
        self, sources: list[str], exclude: list[str], keyword: str, *, files: bool
    ) -> dict[str, Any]:
        """Digest and label of what a COPY selects, see contenthash.measure; with `files` the per-file digests too.

        Raises NotFound, InvalidInput.
        """
        what = keys.digest([sources, exclude, self.ignore])
        known = self._memo.get(self.digest, what)
        if known is not None and not files:
            return dict(known)
        arguments = {
            "source": self.source(),
            "sources": sources,
            "exclude": exclude,
            "keyword": keyword,
            "owners": False,
        }
        found = await self._look("ketchd.build.contenthash:measure", contenthash.measure, arguments)
        self._memo.put(self.digest, what, {key: value for key, value in found.items() if key != "files"})
        return found

    def source(self) -> dict[str, Any]:
        """As jobs take it, see contenthash.opened_source."""
        return {"tar": str(self.path), "ignore": self.ignore}

    async def _look(
        self, job: str, function: Callable[[dict[str, Any], None], dict[str, Any]], arguments: dict[str, Any]
    ) -> dict[str, Any]:
        if self.size > _INLINE_LIMIT:
            return await self._workers.run(job, arguments)
        return await in_thread(function, arguments, None)


@asynccontextmanager
async def receive(
    stage: Path, chunks: AsyncIterable[bytes], workers: WorkerPool, memo: Memo
) -> AsyncIterator[Context]:
    """The context for the body's time. Every byte is read, also behind the tar's end: a client that is not heard out fails.

    Raises EngineFailure (disk full), InvalidInput (damaged compression).
    """
    path = stage / uuid.uuid4().hex
    plain = stage / f"{path.name}.tar"
    hasher = hashlib.sha256()
    size = 0
    try:
        with path.open("xb", buffering=0) as file:
            waiting = bytearray()
            head = b""
            async for chunk in chunks:
                waiting += chunk
                if len(waiting) >= _CHUNK:
                    head = head or bytes(waiting[:16])
                    size += len(waiting)
                    await in_thread(_keep, file.fileno(), waiting, hasher)
                    waiting = bytearray()
            head = head or bytes(waiting[:16])
            size += len(waiting)
            if len(waiting) > 1 << 16:
                await in_thread(_keep, file.fileno(), waiting, hasher)
            else:
                _keep(file.fileno(), waiting, hasher)
        compressed = is_compressed(head)
        if compressed:
            await _inflate_file(path, plain)
            path.unlink()
            path = plain
            size = path.stat().st_size
        tracepoint.reach("build.context-read")
        yield Context(path, hasher.hexdigest(), size, workers, memo)
    finally:
        path.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)


def _keep(file: int, content: bytearray, hasher: Any) -> None:
    hasher.update(content)
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError as error:
        raise EngineFailure(
            f"cannot receive the build context: {(error.strerror or str(error)).lower()}"
        ) from error


async def _inflate_file(source: Path, target: Path) -> None:
    stop = threading.Event()
    job = asyncio.ensure_future(asyncio.to_thread(_inflate, source, target, stop))
    try:
        await asyncio.shield(job)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([job])
        raise


def _inflate(source: Path, target: Path, stop: threading.Event) -> None:
    try:
        with source.open("rb", buffering=0) as file, target.open("xb") as plain:
            for piece in inflate(file.read):
                if stop.is_set():
                    return
                plain.write(piece)
    except OSError as error:
        raise EngineFailure(
            f"cannot receive the build context: {(error.strerror or str(error)).lower()}"
        ) from error


def tar_of(name: str, content: bytes) -> bytes:
    """A context of one file. Raises InvalidInput when it is too long for a Dockerfile."""
    if len(content) > SIZE_LIMIT:
        raise InvalidInput(f"{name} is larger than {SIZE_LIMIT} bytes")
    head = header(Entry(name.encode(), REGULAR, 0o644, size=len(content), stored=len(content)))
    return head + content + bytes(-len(content) % BLOCK) + bytes(2 * BLOCK)
