"""Reading maybe compressed files: gzip, zstd, bzip2, xz by their magic."""

from __future__ import annotations

import bz2
import lzma
from pathlib import Path
from typing import IO, cast

import zstandard
from isal import igzip

_WINDOW_LIMIT = 128 * 1024 * 1024  # what `zstd --long=27` writes; a hostile frame may not ask for more


def open_decompressed(path: Path) -> IO[bytes]:
    """The decompressed bytes of the file, sequentially. Damage shows while reading: see READ_FAULTS."""
    with path.open("rb") as probe:
        head = probe.read(6)
    if head[:2] == b"\x1f\x8b":
        return cast(IO[bytes], igzip.open(path, "rb"))
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT)
        return cast(
            IO[bytes], decompressor.stream_reader(path.open("rb"), read_size=1 << 20, read_across_frames=True)
        )
    if head[:3] == b"BZh":
        return bz2.open(path, "rb")
    if head == b"\xfd7zXZ\x00":
        return lzma.open(path, "rb")
    return path.open("rb")


READ_FAULTS = (EOFError, lzma.LZMAError, zstandard.ZstdError, igzip.BadGzipFile)
