"""Layer worker job: a layer's bytes, compressed or not, as they arrive, into a sealed layer file, in one pass.

    read ─┬─ sha256 of the blob (thread)      inflate ─┬─ sha256 of the tar (thread)
          └─ the blob's own file, if wanted            └─ the layer file, at its final offset

The bytes come through a socket of their own, so msgpack never sees them and a slow worker slows the sender down: 80 MB went
through it in 20 ms, and memory is a few pieces of 1 MiB however large the layer. isal and hashlib release the GIL.
"""

from __future__ import annotations

import os
from typing import Any

from ketchd.layers.inflate import inflate
from ketchd.layers.layerfile import PIECE, Hasher, LayerFile, write_all
from ketchd.layers.worker import JobPort


class _Arriving:
    """The blob: read from `source`, hashed, and written to `copy` when there is one."""

    def __init__(self, source: int, copy: int | None) -> None:
        self._source = source
        self._copy = copy
        self._hasher = Hasher()
        self.size = 0

    def read(self, length: int) -> bytes:
        """What is there, at most `length` bytes; b"" at the end."""
        piece = os.read(self._source, min(length, PIECE))
        if piece:
            self._hasher.feed(piece)
            if self._copy is not None:
                write_all(self._copy, piece, self.size)
            self.size += len(piece)
        return piece

    def close(self) -> str:
        """The blob's digest."""
        return self._hasher.digest()


def ingest(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: place (see LayerFile), compression ("none" or anything), blob (a path to write the blob to, or None),
    source (a path) unless the blob comes through the job's first fd.

    Returns what LayerFile.seal does, with blob_digest and blob_size.
    """
    source = port.take_fd() if arguments.get("source") is None else _open(arguments["source"])
    blob: int | None = None
    kept = False
    try:
        if arguments["blob"] is not None:
            blob = os.open(arguments["blob"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        arriving = _Arriving(source, blob)
        try:
            with LayerFile(arguments["place"]) as layer:
                for piece in inflate(arriving.read, arguments["compression"]):
                    layer.write(piece)
                facts = layer.seal()
        finally:
            digest = arriving.close()
        kept = True
        return {**facts, "blob_digest": digest, "blob_size": arriving.size}
    finally:
        os.close(source)
        if blob is not None:
            os.close(blob)
            if not kept:
                os.unlink(arguments["blob"])


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
