"""Layer worker job: is a layer on the disk still what its name says?"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Literal

from ketchd.layers import erofs
from ketchd.layers.layerfile import PIECE
from ketchd.layers.worker import JobPort

State = Literal["sound", "old index", "bad index", "damaged"]
SOUND: State = "sound"
# Of a ketchd that gave the root the inode number 0, which hides ".." of what is just below.
OLD_INDEX: State = "old index"
BAD_INDEX: State = "bad index"  # and the tar, of which it can be made again, is as it should be
DAMAGED: State = "damaged"


def verify(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: path, kind, tar_size, diff_id. Returns {state: a `State`}. A missing or unreadable layer is damaged."""
    try:
        if arguments["kind"] == "directory":
            from ketchd.layers.directories import is_sound

            return {"state": SOUND if is_sound(arguments["path"], arguments["diff_id"]) else DAMAGED}
        return {"state": _file_state(arguments["path"], arguments["tar_size"], arguments["diff_id"])}
    except OSError:
        return {"state": DAMAGED}


def _file_state(path: str, tar_size: int, diff_id: str) -> State:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = hashlib.sha256()
        at, end = erofs.HEAD, erofs.HEAD + tar_size
        while at < end and (piece := os.pread(fd, min(PIECE, end - at), at)):
            found.update(piece)
            at += len(piece)
        if at != end or "sha256:" + found.hexdigest() != diff_id:
            return DAMAGED
        if not _index_is_sound(fd, os.fstat(fd).st_size):
            return BAD_INDEX
        return SOUND if erofs.read_root(os.pread(fd, erofs.HEAD, 0)) else OLD_INDEX
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
