"""What tests of layers share: a pool of workers, and a disk of their own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ketchd.layers.workers import WorkerPool


@pytest.fixture
async def workers() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    await pool.close()


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small filesystem of its own, so that it can be full: ext4 in a file, since upper directories want xattrs."""
    with tempfile.TemporaryDirectory(prefix="ketch-disk-") as directory:
        image, root = Path(directory, "image"), Path(directory, "root")
        with image.open("wb") as file:
            file.truncate(128 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        root.mkdir()
        done = subprocess.run(
            ["mount", "-o", "loop", str(image), str(root)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no loop devices: {done.stderr.decode()}")
        try:
            yield root
        finally:
            subprocess.run(["umount", str(root)], check=True)
