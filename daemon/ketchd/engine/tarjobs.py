"""A tar that a layer worker makes while somebody reads it: the bytes come through a socket of their own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from ketchd.layers.workers import WorkerPool

_PIECE = 1 << 20


class TarJob:
    """One job that writes into the fd it is given. Use as an async context: left early, the worker is ended with the job.

    speaks_first: the job sends one message before the tar, which is `head` then. What fails at once fails on entering.
    """

    def __init__(
        self, workers: WorkerPool, name: str, arguments: dict[str, Any], *, speaks_first: bool = False
    ) -> None:
        self._workers = workers
        self._name = name
        self._arguments = arguments
        self._speaks_first = speaks_first
        self._is_over = False
        self.head: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        """Begin. Raises the job's fault."""
        self._socket, theirs = socket.socketpair()
        try:
            self._socket.setblocking(False)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
            self._job = await self._workers.begin(
                self._name, self._arguments, [theirs.fileno()], feeds_client=True
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        try:
            if self._speaks_first:
                self.head = await self._job.receive()
                if "fault" in self.head:
                    await self._finish()
        except BaseException:
            await self._end()
            raise
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        """The tar, in pieces of at most 1 MiB. Raises the job's fault."""
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(self._socket, _PIECE):
            yield piece
        await self._finish()

    async def _finish(self) -> None:
        self._is_over = True
        await self._job.result()

    async def _end(self) -> None:
        self._socket.close()
        if not self._is_over:
            self._is_over = True
            await asyncio.shield(asyncio.ensure_future(self._job.cancel()))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()
