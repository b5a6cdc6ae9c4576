"""Layer worker job: a layer again, in which nothing is younger than a given time (SOURCE_DATE_EPOCH).

Source: reproducible-builds.org, SOURCE_DATE_EPOCH; BuildKit's docs/build-repro.md, rewrite-timestamp.
"""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Any

from ketchd.layers.layerfile import LayerFile
from ketchd.layers.tarheaders import entries
from ketchd.layers.tarwrite import TarWriter
from ketchd.layers.worker import JobPort


def clamp(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: place (see LayerFile), path, offset and size of the tar, seconds since the epoch.

    Returns what LayerFile.seal does, or {"same": True} when nothing is younger, and for a tar of others with sparse files in it.
    """
    offset, size, latest_ns = arguments["offset"], arguments["size"], arguments["seconds"] * 10**9
    with open(arguments["path"], "rb") as tar:
        mapped = memoryview(mmap.mmap(tar.fileno(), offset + size, prot=mmap.PROT_READ))
        members = list(entries(mapped[offset:], size))
        is_sparse = any(entry.sparse is not None for entry in members)
        if is_sparse or not any(entry.mtime_ns > latest_ns for entry in members):
            return {"same": True}
        with LayerFile(arguments["place"]) as layer:
            writer = TarWriter(layer)
            for entry in members:
                older = replace(entry, mtime_ns=min(entry.mtime_ns, latest_ns))
                writer.add(older, source=tar.fileno(), offset=offset + entry.offset)
            writer.finish()
            return layer.seal()
