"""Ingestion: a layer that arrives piece by piece, as the journey that brings it sees it; the work is `ingest`'s, in a worker."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import IO, Any

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.layers.placing import remove_staged
from ketchd.layers.workers import JobHandle, WorkerPool
from ketchd.model.digest import Digest

_SEND_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What came in. blob_digest, blob_size: of the bytes as they came; equal to diff_id and tar_size for a plain tar."""

    diff_id: Digest
    blob_digest: Digest
    blob_size: int
    tar_size: int


class LayerMismatch(InvalidInput):
    """The layer that arrived is not the one that was announced; it was not stored. what: `diff ID` or `digest`."""

    def __init__(self, what: str, expected: Digest, found: Digest) -> None:
        super().__init__(f"layer has another {what}: expected {expected}, got {found}")
        self.what = what
        self.expected = expected
        self.found = found


Publish = Callable[[dict[str, Any], Digest | None, Digest | None], Awaitable[IngestResult]]


class Ingestion:
    """One layer on its way in: `feed` what arrives, then `finish`. Leaving the context without it undoes everything.

    Memory is a socket buffer here and a few MiB in the worker, and `feed` waits when the worker is slower than the network.
    """

    def __init__(self, publish: Publish, workers: WorkerPool, arguments: dict[str, Any]) -> None:
        self._publish = publish
        self._workers = workers
        self._arguments = arguments
        self._channel: socket.socket | None = None
        self._job: JobHandle | None = None

    async def __aenter__(self) -> Ingestion:
        ours, theirs = socket.socketpair()
        self._channel = ours
        try:
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._job = await self._workers.begin(
                "ketchd.layers.ingest:ingest", self._arguments, [theirs.fileno()]
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._job is not None:
            job, self._job = self._job, None
            await job.cancel()
            await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        remove_staged(self._arguments["place"]["path"])
        if self._arguments["blob"] is not None:
            remove_staged(self._arguments["blob"])

    async def feed(self, chunk: bytes | memoryview) -> None:
        """The blob's next bytes. Raises InvalidInput (no layer), EngineFailure (no space) as soon as it shows."""
        assert self._channel is not None
        try:
            await asyncio.get_running_loop().sock_sendall(self._channel, chunk)
        except (BrokenPipeError, ConnectionResetError):
            await self._outcome()
            raise EngineFailure("a layer worker ended its job too early") from None

    async def feed_file(self, file: IO[bytes], offset: int, count: int) -> None:
        """The blob's next bytes, from a file: sendfile(2), so they are not copied through this process. Raises as `feed`.

        Nothing may change in that range until `finish` is over.
        """
        assert self._channel is not None
        try:
            sent = await asyncio.get_running_loop().sock_sendfile(
                self._channel, file, offset, count, fallback=False
            )
        except asyncio.SendfileNotAvailableError:
            sent = 0  # what a worker that is gone looks like, too: feeding tells which
            while sent < count and (
                piece := os.pread(file.fileno(), min(_SEND_BUFFER, count - sent), offset + sent)
            ):
                await self.feed(piece)
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            await self._outcome()
            raise EngineFailure("a layer worker ended its job too early") from None
        if sent != count:
            raise EngineFailure(f"a staged blob ended {count - sent} bytes early")

    async def finish(
        self, expected_diff_id: Digest | None = None, *, expected_blob: Digest | None = None
    ) -> IngestResult:
        """Everything was fed: publish the layer. The blob, if it was to be kept, lies where the caller wanted it, not yet synced.

        Raises LayerMismatch, InvalidInput, EngineFailure; then nothing stays. Cancelled: nothing stays, or the whole layer.
        """
        assert self._channel is not None
        self._channel.close()
        facts = await self._outcome()
        try:
            return await self._publish(facts, expected_diff_id, expected_blob)
        except BaseException:
            await asyncio.to_thread(self._remove)
            raise

    async def _outcome(self) -> dict[str, Any]:
        assert self._job is not None
        job, self._job = self._job, None
        try:
            return await job.result()
        except BaseException:
            await asyncio.to_thread(self._remove)
            raise
