"""A pull in a process of its own, for a test to kill: `python resumable.py ROOT NAME [TRACEPOINT]`. Prints the image's ID."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ketch_testing.rooms import rooms_below
from ketchd.content.recovery import sweep_store
from ketchd.engine.pull import pull
from ketchd.model.reference import Reference
from ketchd.registry.tokens import Credentials


async def main(root: Path, name: str) -> None:
    """Start as the daemon does, then pull."""
    async with rooms_below(root) as rooms:
        report = sweep_store(root, rooms.catalogue)
        for line in (*report.missing, *report.unowned):
            print("finding:", line)

        async def send(*_: object) -> None:
            return None

        try:
            print(await pull(rooms, Reference.parse(name), Credentials(), send))
            print("garbage:", rooms.garbage.find())
        finally:
            await rooms.registry.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
