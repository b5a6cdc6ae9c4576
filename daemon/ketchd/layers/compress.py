"""Layer worker job: a layer's tar as gzip, zstd or as it is; the same bytes for the same tar with the same library.

gzip without a level is ISA-L's, three times faster than zlib at the size of zlib's lowest levels; the levels are zlib's.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable
from typing import Any

from isal import isal_zlib

from ketchd.layers.layerfile import PIECE, Hasher, write_all
from ketchd.layers.worker import JobPort
from ketchd.model.compression import GZIP, UNCOMPRESSED, ZSTD

LEVEL = 2
_ZSTD_LEVEL = 3
_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, time 0, system unknown: nothing that differs. RFC 1952


def compress(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: path, offset, size of the tar; into (a free path); format (`gzip`, `zstd`, `uncompressed`), level (or None).

    Returns {digest, size} of what was made, which is not synced.
    """
    source = os.open(arguments["path"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        into = os.open(arguments["into"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            extent = (source, arguments["offset"], arguments["size"])
            return _FORMATS[arguments["format"]](*extent, arguments["level"], into)
        except BaseException:
            os.unlink(arguments["into"])
            raise
        finally:
            os.close(into)
    finally:
        os.close(source)


class _Output:
    """Writes pieces to a file one behind the other, and hashes them."""

    def __init__(self, into: int) -> None:
        self._into = into
        self._hasher = Hasher()
        self._written = 0

    def put(self, piece: bytes) -> None:
        if piece:
            self._hasher.feed(piece)
            write_all(self._into, piece, self._written)
            self._written += len(piece)

    def result(self) -> dict[str, Any]:
        return {"digest": self._hasher.digest(), "size": self._written}

    def close(self) -> None:
        self._hasher.close()


def _gzip(source: int, offset: int, size: int, level: int | None, into: int) -> dict[str, Any]:
    deflate = (
        isal_zlib.compressobj(level=LEVEL, wbits=-15)
        if level is None
        else zlib.compressobj(level, wbits=-15, memLevel=9)
    )
    checksum = 0

    def each(piece: bytes) -> bytes:
        nonlocal checksum
        checksum = isal_zlib.crc32(piece, checksum)
        return deflate.compress(piece)

    with contextlib.closing(_Output(into)) as output:
        output.put(_HEAD)
        _through(source, offset, size, each, output)
        output.put(deflate.flush() + struct.pack("<II", checksum, size & 0xFFFFFFFF))
        return output.result()


def _zstd(source: int, offset: int, size: int, level: int | None, into: int) -> dict[str, Any]:
    import zstandard

    made = zstandard.ZstdCompressor(level=level or _ZSTD_LEVEL, write_checksum=True)
    frame = made.compressobj(size=size)
    with contextlib.closing(_Output(into)) as output:
        _through(source, offset, size, frame.compress, output)
        output.put(frame.flush())
        return output.result()


def _as_it_is(source: int, offset: int, size: int, level: int | None, into: int) -> dict[str, Any]:
    with contextlib.closing(_Output(into)) as output:
        _through(source, offset, size, lambda piece: piece, output)
        return output.result()


def _through(source: int, offset: int, size: int, each: Callable[[bytes], bytes], output: _Output) -> None:
    for at in range(offset, offset + size, PIECE):
        output.put(each(os.pread(source, min(PIECE, offset + size - at), at)))


_FORMATS = {GZIP: _gzip, ZSTD: _zstd, UNCOMPRESSED: _as_it_is}
