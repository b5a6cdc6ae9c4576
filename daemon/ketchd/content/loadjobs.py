"""Layer worker job: one layer out of an archive that was received, read where it lies."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ketchd.layers.inflate import inflate
from ketchd.layers.layerfile import LayerFile
from ketchd.layers.worker import JobPort

_REPORT_EVERY = 4 << 20


class _Reader:
    """A range of a file, hashed, copied to `copy` if wanted, and told of as it is read."""

    def __init__(self, file: int, offset: int, size: int, copy: int | None, port: JobPort) -> None:
        self._file = file
        self._at, self._end = offset, offset + size
        self._size = size
        self._copy = copy
        self._port = port
        self._told = offset
        self.hash = hashlib.sha256() if copy is not None else None

    def read(self, length: int) -> bytes:
        """At most `length` bytes; b"" at the end."""
        piece = os.pread(self._file, min(length, self._end - self._at), self._at)
        self._at += len(piece)
        if self._copy is not None and self.hash is not None:
            self.hash.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(self._copy, view) :]
        if self._at - self._told >= _REPORT_EVERY:
            self._told = self._at
            self._port.send({"done": self._size - (self._end - self._at)})
        return piece


def take_layer(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: place (see LayerFile), archive, offset, size, blob (a path to write the bytes to as they are, or None).

    Sends {done: bytes read} now and then. Returns what LayerFile.seal does, with blob_digest and blob_size when there is
    a blob.
    """
    blob: int | None = None
    archive = os.open(arguments["archive"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        if arguments["blob"] is not None:
            blob = os.open(arguments["blob"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        reader = _Reader(archive, arguments["offset"], arguments["size"], blob, port)
        with LayerFile(arguments["place"]) as layer:
            for piece in inflate(reader.read):
                layer.write(piece)
            facts = layer.seal()
        if reader.hash is not None:
            facts |= {"blob_digest": f"sha256:{reader.hash.hexdigest()}", "blob_size": arguments["size"]}
        return facts
    finally:
        os.close(archive)
        if blob is not None:
            os.close(blob)
