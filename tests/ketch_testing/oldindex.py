"""Layer files as ketchd made them until it numbered inodes from 2: their root is inode 0, whose names readdir(3) skips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ketchd.layers import erofs
from ketchd.layers.layerfile import LayerFile


def index_as_before(path: Path, tar_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index the tar in the layer file `path` in the old way."""
    old = path.with_name("old")
    with monkeypatch.context() as patch, path.open("rb") as file:
        patch.setattr(erofs, "_FIRST_SLOT", 0)
        with LayerFile({"path": str(old), "kind": "erofs"}) as layer:
            layer.copy(file.fileno(), erofs.HEAD, tar_size)
            layer.seal()
    os.replace(old, path)
