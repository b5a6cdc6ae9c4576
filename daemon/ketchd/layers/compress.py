"""Layer worker job: a layer's tar as gzip, the same bytes for the same tar on any machine with the same ISA-L."""

from __future__ import annotations

import os
import struct
from typing import Any

from isal import isal_zlib

from ketchd.layers.layerfile import PIECE, Hasher, write_all
from ketchd.layers.worker import JobPort

LEVEL = 2
_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, time 0, system unknown: nothing that differs. RFC 1952


def compress(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: path, offset, size of the tar; into (a free path). Returns {digest, size} of the gzip, which is not synced."""
    source = os.open(arguments["path"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        into = os.open(arguments["into"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return _compress(source, arguments["offset"], arguments["size"], into)
        except BaseException:
            os.unlink(arguments["into"])
            raise
        finally:
            os.close(into)
    finally:
        os.close(source)


def _compress(source: int, offset: int, size: int, into: int) -> dict[str, Any]:
    deflate = isal_zlib.compressobj(level=LEVEL, wbits=-15)
    hasher = Hasher()
    written, checksum = 0, 0

    def put(piece: bytes) -> None:
        nonlocal written
        if piece:
            hasher.feed(piece)
            write_all(into, piece, written)
            written += len(piece)

    try:
        put(_HEAD)
        for at in range(offset, offset + size, PIECE):
            piece = os.pread(source, min(PIECE, offset + size - at), at)
            checksum = isal_zlib.crc32(piece, checksum)
            put(deflate.compress(piece))
        put(deflate.flush() + struct.pack("<II", checksum, size & 0xFFFFFFFF))
        return {"digest": hasher.digest(), "size": written}
    finally:
        hasher.close()
