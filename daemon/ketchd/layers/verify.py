"""Layer worker job: is a layer on the disk still what its name says?"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ketchd.layers import erofs
from ketchd.layers.layerfile import PIECE
from ketchd.layers.worker import JobPort


def verify(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: path, kind, tar_size, diff_id. Returns {sound: bool}. A missing or unreadable layer is not sound."""
    try:
        if arguments["kind"] == "directory":
            from ketchd.layers.directories import is_sound

            return {"sound": is_sound(arguments["path"], arguments["diff_id"])}
        return {"sound": _file_is_sound(arguments["path"], arguments["tar_size"], arguments["diff_id"])}
    except OSError:
        return {"sound": False}


def _file_is_sound(path: str, tar_size: int, diff_id: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = hashlib.sha256()
        at, end = erofs.HEAD, erofs.HEAD + tar_size
        while at < end and (piece := os.pread(fd, min(PIECE, end - at), at)):
            found.update(piece)
            at += len(piece)
        return (
            at == end
            and "sha256:" + found.hexdigest() == diff_id
            and _index_is_sound(fd, os.fstat(fd).st_size)
        )
    finally:
        os.close(fd)


def _index_is_sound(fd: int, size: int) -> bool:
    """The superblock holds a hash of the index: it is checked with no look at the tar, whatever version wrote it."""
    meta, seal = erofs.read_head(os.pread(fd, erofs.HEAD, 0))
    if not erofs.HEAD <= meta <= size:
        return False
    found = hashlib.sha256()
    while meta < size and (piece := os.pread(fd, min(PIECE, size - meta), meta)):
        found.update(piece)
        meta += len(piece)
    return found.digest()[:16] == seal
