"""Layer worker jobs: a layer's tar as gzip, zstd or as it is; the same bytes for the same tar with the same library.

gzip without a level is ISA-L's, three times faster than zlib at the size of zlib's lowest levels; the levels are zlib's.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from isal import isal_zlib

from ketch_wire.faults import EngineFailure
from ketchd.layers.inflate import inflate
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
    with open(arguments["path"], "rb", buffering=0) as source:
        tar = _extent(source.fileno(), arguments["offset"], arguments["size"])
        return _make(tar, arguments["size"], arguments)


def recompress(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """The same of a layer that is here in another form only. arguments: blob, its path; diff_id; the others as `compress` has
    them, and what is made is what `compress` would make.

    The blob is inflated twice: what is made depends on the tar's size, and nothing is made of what is not the layer.
    Raises EngineFailure when it is not, InvalidInput when it is damaged.
    """
    with open(arguments["blob"], "rb", buffering=0) as blob:
        size = 0
        with contextlib.closing(Hasher()) as hasher:
            for piece in inflate(blob.read):
                hasher.feed(piece)
                size += len(piece)
            if hasher.digest() != arguments["diff_id"]:
                raise EngineFailure(
                    f"blob {os.path.basename(arguments['blob'])[:12]} is not layer {arguments['diff_id']}"
                )
        blob.seek(0)
        return _make(_cut(inflate(blob.read)), size, arguments)


def _make(tar: Iterator[bytes], size: int, arguments: dict[str, Any]) -> dict[str, Any]:
    into = os.open(arguments["into"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.closing(_Output(into)) as output:
            _FORMATS[arguments["format"]](tar, size, arguments["level"], output)
            return output.result()
    except BaseException:
        os.unlink(arguments["into"])
        raise
    finally:
        os.close(into)


def _extent(source: int, offset: int, size: int) -> Iterator[bytes]:
    for at in range(offset, offset + size, PIECE):
        yield os.pread(source, min(PIECE, offset + size - at), at)


def _cut(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces as `_extent` has them: where they are cut may show in what a library makes of them."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    if waiting:
        yield bytes(waiting)


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


def _gzip(tar: Iterator[bytes], size: int, level: int | None, output: _Output) -> None:
    deflate = (
        isal_zlib.compressobj(level=LEVEL, wbits=-15)
        if level is None
        else zlib.compressobj(level, wbits=-15, memLevel=9)
    )
    checksum = 0
    output.put(_HEAD)
    for piece in tar:
        checksum = isal_zlib.crc32(piece, checksum)
        output.put(deflate.compress(piece))
    output.put(deflate.flush() + struct.pack("<II", checksum, size & 0xFFFFFFFF))


def _zstd(tar: Iterator[bytes], size: int, level: int | None, output: _Output) -> None:
    import zstandard

    made = zstandard.ZstdCompressor(level=level or _ZSTD_LEVEL, write_checksum=True)
    frame = made.compressobj(size=size)
    for piece in tar:
        output.put(frame.compress(piece))
    output.put(frame.flush())


def _as_it_is(tar: Iterator[bytes], size: int, level: int | None, output: _Output) -> None:
    for piece in tar:
        output.put(piece)


_FORMATS: dict[str, Callable[[Iterator[bytes], int, int | None, _Output], None]] = {
    GZIP: _gzip,
    ZSTD: _zstd,
    UNCOMPRESSED: _as_it_is,
}
