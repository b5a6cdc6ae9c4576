"""Chains: the init layer of every chain of layers in use, made once, remembered, and forgotten with a layer of the chain."""

from __future__ import annotations

import asyncio
import os
import uuid
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd import tracepoint
from ketchd.layers.placing import place, remove_staged
from ketchd.layers.trash import Trash
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest, chain_id

tracepoint.declare("compose.staged", "compose.placed")
_NO_LAYERS = Digest.of(b"")  # an image without layers has no chain ID


@lru_cache(maxsize=1024)
def chain_name(diff_ids: tuple[Digest, ...]) -> str:
    """The directory's name: the chain ID's hex digits."""
    return (chain_id(diff_ids) if diff_ids else _NO_LAYERS).hex


class Chains:
    """`init/CHAIN/{layers,root}`: `root` is the lower directory, `layers` the chain's diff IDs, base first, a line each.

    Not synced: `layers` must hash to the directory's name, and what does not is made again.
    """

    def __init__(self, directory: Path, stage: Path, workers: WorkerPool, trash: Trash) -> None:
        self._directory = directory
        self._stage = stage
        self._workers = workers
        self._trash = trash
        self._ready: dict[str, frozenset[Digest]] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        directory.mkdir(exist_ok=True, mode=0o710)
        for entry in directory.iterdir():
            found = _read(entry)
            if found is not None:
                self._ready[entry.name] = found

    def find(self, diff_ids: Sequence[Digest]) -> Path | None:
        """The init layer, if it is there. One dict look-up: every start of a container asks."""
        name = chain_name(tuple(diff_ids))
        return self._root(name) if name in self._ready else None

    async def make(
        self, diff_ids: Sequence[Digest], mounts: list[dict[str, str]], implied: list[list[bytes]]
    ) -> Path:
        """Make it. mounts, implied: of the layers, top first. Of several callers one makes it."""
        name = chain_name(tuple(diff_ids))
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        async with lock:
            if name in self._ready:
                return self._root(name)
            staged = self._stage / uuid.uuid4().hex
            arguments: dict[str, Any] = {
                "staged": str(staged), "layers": mounts, "implied": implied,
                "chain": "".join(f"{diff_id}\n" for diff_id in diff_ids),
            }  # fmt: skip
            try:
                await self._workers.run("ketchd.layers.snapshots:compose", arguments)
                tracepoint.reach("compose.staged")
                place(str(staged), self._directory / name, f"init layer {name}", durable=False)
                tracepoint.reach("compose.placed")
            except BaseException:
                await asyncio.to_thread(remove_staged, str(staged))
                raise
            self._ready[name] = frozenset(diff_ids)
        return self._root(name)

    def forget(self, diff_id: Digest) -> None:
        """Remove every init layer whose chain holds the layer."""
        for name in [name for name, chain in self._ready.items() if diff_id in chain]:
            self._ready.pop(name, None)
            self._trash.take(self._directory / name)

    def _root(self, name: str) -> Path:
        return self._directory / name / "root"


def _read(entry: Path) -> frozenset[Digest] | None:
    try:
        diff_ids = tuple(Digest(line) for line in (entry / "layers").read_text().splitlines())
    except (OSError, UnicodeDecodeError, InvalidInput):
        return None
    return (
        frozenset(diff_ids) if chain_name(diff_ids) == entry.name and os.path.isdir(entry / "root") else None
    )
