"""Layer worker job: a layer file again from the tar in it, which is sound, with an index as it is made today."""

from __future__ import annotations

import os
from typing import Any

from ketchd.layers.layerfile import LayerFile
from ketchd.layers.worker import JobPort


def reindex(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: place (see LayerFile), path, offset and size of the tar. Returns what LayerFile.seal does."""
    tar = os.open(arguments["path"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        with LayerFile(arguments["place"]) as layer:
            layer.copy(tar, arguments["offset"], arguments["size"])
            return layer.seal()
    finally:
        os.close(tar)
