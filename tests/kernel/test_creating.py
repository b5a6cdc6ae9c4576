"""create against a removal of its image at the worst moment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ketch_testing.rooms import image_of, layer_of, rooms_below
from ketchd.engine.create import create
from ketchd.engine.images import delete_image
from ketchd.model.digest import Digest

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for mounts")]


async def test_an_image_removed_meanwhile_leaves_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While create composes, rmi takes the image: the layers stay, for the container has them afterwards; then they are free."""
    async with rooms_below(tmp_path / "data", "directory") as rooms:
        nothing: Any = SimpleNamespace(version=1, check=lambda host: None, discard=lambda host: [])
        rooms.cgroups = nothing
        layers = [await layer_of(rooms, {"etc": None, "a": b"1"}), await layer_of(rooms, {"b": b"2"})]
        image_id = await image_of(rooms, layers, "x:1")
        compose = rooms.layers.compose

        async def removed_meanwhile(diff_ids: Sequence[Digest]) -> Path:
            await delete_image(rooms, "x:1", force=True)
            await rooms.garbage.sweep()
            return await compose(diff_ids)

        monkeypatch.setattr(rooms.layers, "compose", removed_meanwhile)
        box, _ = await create(rooms, {"Image": "x:1", "Cmd": ["true"]}, name="made")

        assert not rooms.images.has(image_id)
        assert box.record.layers == [str(layer) for layer in layers]
        assert all(rooms.layers.has(layer) for layer in layers)
        assert rooms.leases.held() == set()
        await rooms.garbage.sweep()
        assert all(rooms.layers.has(layer) for layer in layers)
