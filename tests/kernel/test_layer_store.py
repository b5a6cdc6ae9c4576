"""The layer store's suite on every kind of layer that this host can have."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from suites.layers import Bench, LayerStoreSuite

from ketch_testing.mounted import Looker
from ketch_wire.faults import EngineFailure
from ketchd.catalogue.database import Catalogue
from ketchd.layers.probe import probe
from ketchd.layers.store import LayerStore
from ketchd.layers.workers import WorkerPool

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for mounts")]


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


@pytest.fixture
def looker(disk: Path) -> Iterator[Looker]:
    with Looker() as made:  # begun after the disk was mounted, or it would not see it
        yield made


@pytest.mark.parametrize("kind", ["erofs", "erofs-loop", "directory"])
class TestLayerStore(LayerStoreSuite):
    """See LayerStoreSuite."""

    @pytest.fixture
    async def bench(self, kind: str, disk: Path, workers: WorkerPool, looker: Looker) -> AsyncIterator[Bench]:
        try:
            await probe(workers, disk / "stage", kind)
        except EngineFailure as failure:
            pytest.skip(failure.message)
        catalogue = Catalogue(disk / "catalogue.sqlite")
        store = LayerStore(disk, catalogue, workers, kind)
        yield Bench(disk, catalogue, workers, store, looker)
        await store.close()
        catalogue.close()


async def test_the_best_kind_is_found(disk: Path, workers: WorkerPool) -> None:
    """With a reason; nothing stays of the look."""
    kind, reason = await probe(workers, disk / "stage")
    assert kind in ("erofs", "erofs-loop", "directory") and reason
    assert os.listdir(disk / "stage") == []
