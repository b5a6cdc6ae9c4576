"""Whatever a layer is compressed with, as the tar's bytes: pulled from a reader, in pieces of bounded size. Sans-IO.

Told apart by their first bytes, as dockerd does, since media types lie: gzip (many members), zstd (many frames, skippable
ones too), bzip2, xz, or none. Every byte is read to the end, also behind the tar's own end: the diff ID covers them.
Source: image-spec layer.md; RFC 1952; RFC 8878.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from ketch_wire.faults import InvalidInput

PIECE = 1 << 18
RATIO_LIMIT, RATIO_FREE = 1100, 1 << 30  # deflate cannot do more than 1032:1; zstd can, and nobody needs it
_WINDOW_LIMIT = 128 << 20  # what `zstd --long=27` writes; a hostile frame may not ask for more
_MAGIC_LENGTH = 6
Read = Callable[[int], bytes]


def _is_gzip(head: bytes) -> bool:
    return head[:2] == b"\x1f\x8b"


def _is_zstd(head: bytes) -> bool:
    skippable = head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    return head[:4] == b"\x28\xb5\x2f\xfd" or skippable


def _is_bzip2(head: bytes) -> bool:
    return head[:3] == b"BZh"


def _is_xz(head: bytes) -> bool:
    return head[:6] == b"\xfd7zXZ\x00"


class _Peeked:
    """A reader with its first bytes looked at, and its bytes counted."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._head = b""
        self.total = 0

    def peek(self, length: int) -> bytes:
        while len(self._head) < length and (more := self._read(PIECE)):
            self._head += more
        return self._head[:length]

    def read(self, length: int = PIECE) -> bytes:
        if self._head:
            piece, self._head = self._head[:length], self._head[length:]
        else:
            piece = self._read(length)
        self.total += len(piece)
        return piece


def inflate(read: Read, compression: str | None = None) -> Iterator[bytes]:
    """The decompressed bytes of what `read(n)` gives, at most n bytes a time and b"" at the end.

    compression: "none" to take the bytes as they are; anything else is told by the bytes themselves.
    Raises InvalidInput when the data is damaged, cut short, or a decompression bomb.
    """
    source = _Peeked(read)
    head = b"" if compression == "none" else source.peek(_MAGIC_LENGTH)
    for is_mine, decompress in _FORMATS:
        if is_mine(head):
            pieces = decompress(source)
            break
    else:
        while piece := source.read():
            yield piece
        return
    written = 0
    for piece in pieces:
        written += len(piece)
        if written > RATIO_FREE and written > RATIO_LIMIT * source.total:
            raise InvalidInput(
                f"a layer of {source.total} bytes inflates to more than {RATIO_LIMIT} times as much"
            )
        if piece:
            yield piece


def _damaged(what: str, error: Exception) -> InvalidInput:
    return InvalidInput(f"{what}: invalid data: {error}")


def _gzip(source: _Peeked) -> Iterator[bytes]:
    from isal import igzip_lib

    fault: type[Exception] = cast(Any, igzip_lib).IsalError  # the stubs take the class for an instance

    def begin() -> Any:
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    yield from _members("gzip", source, begin, _is_gzip, fault)


def _bzip2(source: _Peeked) -> Iterator[bytes]:
    import bz2

    yield from _members("bzip2", source, bz2.BZ2Decompressor, _is_bzip2, OSError)


def _xz(source: _Peeked) -> Iterator[bytes]:
    import lzma

    def begin() -> Any:
        return lzma.LZMADecompressor(memlimit=_WINDOW_LIMIT)

    yield from _members("xz", source, begin, _is_xz, lzma.LZMAError)


def _members(
    what: str,
    source: _Peeked,
    begin: Callable[[], Any],
    is_mine: Callable[[bytes], bool],
    fault: type[Exception],
) -> Iterator[bytes]:
    """One stream after another. What follows the last and does not begin like another is padding, as gzip(1) has it."""
    rest = source.read()
    while True:
        member = begin()
        while not member.eof:
            if member.needs_input and not rest:
                rest = source.read()
                if not rest:
                    raise InvalidInput(f"{what}: unexpected EOF")
            try:
                piece, rest = member.decompress(rest, PIECE), b""
            except fault as error:
                raise _damaged(what, error) from error
            yield piece
        rest = member.unused_data
        while len(rest) < _MAGIC_LENGTH and (more := source.read()):
            rest += more
        if not is_mine(rest):
            while source.read():
                pass
            return


def _zstd(source: _Peeked) -> Iterator[bytes]:
    import zstandard

    yield from _members("zstd", source, _ZstdFrame, _is_zstd, zstandard.ZstdError)


class _ZstdFrame:
    """One frame in the manner of bz2's decompressor. Fed in small slices: the library inflates all it gets at once, and 4 KiB
    of a hostile frame are 128 MiB."""

    _SLICE = 4096

    def __init__(self) -> None:
        import zstandard

        self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT).decompressobj()
        self._waiting = memoryview(b"")
        self.eof = False
        self.unused_data = b""

    @property
    def needs_input(self) -> bool:
        return not self._waiting

    def decompress(self, data: bytes, most: int) -> bytes:
        """About `most` bytes more. `data` only when `needs_input`."""
        if data:
            self._waiting = memoryview(data)
        pieces: list[bytes] = []
        length = 0
        while self._waiting and length < most:
            piece = self._frame.decompress(self._waiting[: self._SLICE])
            self._waiting = self._waiting[self._SLICE :]
            pieces.append(piece)
            length += len(piece)
            if self._frame.eof:
                self.eof = True
                self.unused_data = self._frame.unused_data + bytes(self._waiting)
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[_Peeked], Iterator[bytes]]], ...] = (
    (_is_gzip, _gzip),
    (_is_zstd, _zstd),
    (_is_bzip2, _bzip2),
    (_is_xz, _xz),
)


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins with `head` (6 bytes or more) is of a kind that `inflate` decompresses."""
    return any(is_mine(head) for is_mine, _ in _FORMATS)
