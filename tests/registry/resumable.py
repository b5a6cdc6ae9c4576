"""A pull or push in a process of its own, for a test to kill: `python resumable.py ROOT NAME [push]`. Prints what it found.

A push makes its image first, if it is not there yet.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ketch_testing.rooms import image_of, layer_of, rooms_below
from ketchd.content.recovery import sweep_store
from ketchd.engine.pull import pull
from ketchd.engine.push import push
from ketchd.model.reference import Reference
from ketchd.registry.tokens import Credentials


async def main(root: Path, name: str, is_push: bool) -> None:
    """Start as the daemon does, then do it."""
    async with rooms_below(root) as rooms:
        report = sweep_store(root, rooms.catalogue)
        for line in (*report.missing, *report.unowned):
            print("finding:", line)

        async def send(*_: object) -> None:
            return None

        try:
            reference = Reference.parse(name)
            if not is_push:
                print(await pull(rooms, reference, Credentials(), send))
            else:
                if rooms.images.find_name(reference) is None:
                    layers = [await layer_of(rooms, {part: part.encode() * 9999}) for part in ("a", "b")]
                    await image_of(rooms, layers, name)
                await push(rooms, reference, Credentials(), send)
            print("garbage:", rooms.garbage.find())
        finally:
            await rooms.registry.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["push"]))
