"""Why a shim's memory stays the launcher's: what it allocates must not lie in gaps between what all shims share.

Imports leave free blocks all over the heap. A fork that allocates takes those first, and each costs it a copy of the page
around it. So before the first fork the launcher takes them itself, and keeps them; a shim then allocates from what is
empty, page after page. Sources: CPython's Objects/obmalloc.c (blocks of up to 512 bytes, by size), malloc(3) (what is larger).
"""

from __future__ import annotations

import sys

from ketchd.kernel import memory

_PAGE = 4096
_STEP, _SMALL = 16, 512  # bytes: what sizes of blocks are multiples of; obmalloc's largest
_LIMIT = (
    256 * 1024
)  # bytes of one size: whatever the interpreter does, the launcher does not grow without end

_kept: list[object] = []


def close() -> None:
    """Take every gap of less than a page. For a process that forks often and allocates little afterwards."""
    size = _PAGE // 2
    while size > _SMALL:
        _take(size)
        size = size * 7 // 8 // _STEP * _STEP
    for size in range(_STEP, _SMALL + 1, _STEP):
        _take(size)
    memory.give_back()


def _take(size: int) -> None:
    """Until a page full of blocks comes in a row: that was no gap, and is given back."""
    before = row = 0
    for _ in range(_LIMIT // size):
        one = _block(size)
        _kept.append(one)
        row = row + 1 if 0 < id(one) - before <= size + _STEP else 1
        before = id(one)
        if row * size >= _PAGE:
            del _kept[-row:]
            return


def _block(size: int) -> object:
    """Something that takes `size` bytes and refers to nothing."""
    if size == _STEP:
        return object()
    if size == 2 * _STEP:
        return (1 << 40) + len(_kept)
    return bytes(size - sys.getsizeof(b""))
