"""The layer store's suite on every kind of layer that this host can have."""

from __future__ import annotations

import os
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
def looker(disk: Path) -> Iterator[Looker]:
    with Looker() as made:  # begun after the disk was mounted, or it would not see it
        yield made


@pytest.mark.parametrize("kind", ["erofs", "erofs-loop", "directory"])
class TestLayerStore(LayerStoreSuite):
    """See LayerStoreSuite."""

    @pytest.fixture
    async def bench(self, kind: str, disk: Path, workers: WorkerPool, looker: Looker) -> AsyncIterator[Bench]:
        try:
            await probe(workers, disk, kind)
        except EngineFailure as failure:
            pytest.skip(failure.message)
        catalogue = Catalogue(disk / "catalogue.sqlite")
        store = LayerStore(disk, catalogue, workers, kind)
        yield Bench(disk, catalogue, workers, store, looker)
        await store.close()
        catalogue.close()


async def test_the_best_kind_is_found(disk: Path, workers: WorkerPool) -> None:
    """With a reason; nothing stays of the look."""
    kind, reason = await probe(workers, disk)
    assert kind in ("erofs", "erofs-loop", "directory") and reason
    assert os.listdir(disk / "stage") == []
