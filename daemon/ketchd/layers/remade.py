"""Tars of directory layers, made again for a moment: into the stage, to be sent, hashed or compressed from there."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from ketchd.layers.placing import remove_staged
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest

SECONDS = 60.0  # from the last use: who opens it within that time keeps what he has


class RemadeTars:
    """By diff ID. Who asks for one holds the layer's lock."""

    def __init__(self, stage: Path, workers: WorkerPool) -> None:
        self._stage = stage
        self._workers = workers
        self._made: dict[Digest, tuple[Path, asyncio.TimerHandle]] = {}

    async def get(self, diff_id: Digest, layer: Path) -> Path:
        """The tar of the directory `layer`, byte for byte. Raises EngineFailure when it no longer gives the layer's bytes.

        Cancelled: nothing stays.
        """
        if diff_id in self._made:
            path, timer = self._made[diff_id]
            timer.cancel()
        else:
            path = self._stage / uuid.uuid4().hex
            try:
                await self._workers.run(
                    "ketchd.layers.directories:remake",
                    {"layer": str(layer), "into": str(path), "diff_id": str(diff_id)},
                )
            except BaseException:
                await asyncio.to_thread(remove_staged, str(path))
                raise
        timer = asyncio.get_running_loop().call_later(SECONDS, self.drop, diff_id)
        self._made[diff_id] = (path, timer)
        return path

    def drop(self, diff_id: Digest) -> None:
        """Remove it, if there is one."""
        if diff_id in self._made:
            path, timer = self._made.pop(diff_id)
            timer.cancel()
            path.unlink(missing_ok=True)

    def drop_all(self) -> None:
        """Remove every one."""
        for diff_id in list(self._made):
            self.drop(diff_id)
