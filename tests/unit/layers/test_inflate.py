"""Decompressing whatever layers are packed with: cut anywhere, many members, padding, damage, bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable

import pytest
import zstandard

from ketch_wire.faults import InvalidInput
from ketchd.layers import inflate as module
from ketchd.layers.inflate import inflate

CONTENT = os.urandom(50_000) + bytes(400_000) + b"text " * 30_000
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "zstd without size": zstandard.ZstdCompressor(write_content_size=False).compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
SKIPPABLE = b"\x53\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"skip me"


def trickle(data: bytes, size: int) -> Callable[[int], bytes]:
    """A reader that gives `size` bytes a time."""
    buffer = io.BytesIO(data)
    return lambda most: buffer.read(min(size, most))


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("size", [1000, 65536, 1 << 20])
def test_every_packing_in_any_cut(packer: str, size: int) -> None:
    """One member, and two after each other where the format has members."""
    pack = PACKERS[packer]
    assert b"".join(inflate(trickle(pack(CONTENT), size))) == CONTENT
    assert b"".join(inflate(trickle(pack(CONTENT) + pack(b"more"), size))) == CONTENT + b"more"


@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_tiny_cuts(size: int) -> None:
    """Byte by byte too."""
    for pack in PACKERS.values():
        assert b"".join(inflate(trickle(pack(b"abc") + pack(b""), size))) == b"abc"


def test_padding_and_skippable_frames() -> None:
    """eStargz and zstd:chunked hide things there; gzip(1) ignores what follows the last member."""
    assert b"".join(inflate(trickle(gzip.compress(CONTENT) + bytes(3000), 700))) == CONTENT
    frame = PACKERS["zstd"](CONTENT)
    assert b"".join(inflate(trickle(SKIPPABLE + frame + SKIPPABLE + frame + SKIPPABLE, 700))) == CONTENT * 2


def test_everything_is_read_to_the_end() -> None:
    """Else the blob's digest would be of a part of it."""
    source = io.BytesIO(gzip.compress(b"x") + os.urandom(5_000_000))
    assert list(inflate(source.read)) == [b"x"]
    assert source.read() == b""


def test_packed_bytes_can_be_taken_as_they_are() -> None:
    """`none` never looks."""
    packed = gzip.compress(CONTENT)
    assert b"".join(inflate(trickle(packed, 999), "none")) == packed


@pytest.mark.parametrize("packer", [name for name in PACKERS if name != "none"])
def test_damage_is_named(packer: str) -> None:
    """Cut at any place, or changed in the middle."""
    packed = PACKERS[packer](CONTENT)
    for length in (6, 20, len(packed) // 2, len(packed) - 1):
        with pytest.raises(InvalidInput, match=packer.split()[0]):
            list(inflate(trickle(packed[:length], 4096)))
    broken = bytearray(packed)
    for at in range(len(packed) // 3, len(packed) // 3 + 60):
        broken[at] ^= 0xFF
    if (
        packer != "zstd without size"
    ):  # without a checksum such damage may go unseen here; the diff ID sees it
        with pytest.raises(InvalidInput):
            list(inflate(trickle(bytes(broken), 4096)))


def test_bombs_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what deflate can do, once there is enough of it to hurt; no piece is ever large."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))
    monkeypatch.setattr(module, "RATIO_FREE", 64 << 20)
    with pytest.raises(InvalidInput, match="inflates to more than"):
        for piece in inflate(trickle(bomb, 1 << 20)):
            assert len(piece) <= 160 << 20
    for piece in inflate(trickle(gzip.compress(bytes(80 << 20)), 1 << 20)):
        assert len(piece) <= module.PIECE


def test_a_window_may_not_ask_for_all_memory() -> None:
    """A frame that wants 2 GiB of window is refused."""
    hostile = b"\x28\xb5\x2f\xfd" + bytes([0x00, (21 << 3)]) + b"\x01\x00\x00"
    with pytest.raises(InvalidInput, match="zstd"):
        list(inflate(trickle(hostile, 100)))
