"""A file that changes in one step: whoever reads it finds all of the old or all of the new. Acting."""

from __future__ import annotations

import os


def replace_file(path: str, content: bytes, mode: int) -> None:
    """Write `path`, whose directory is there. The umask may take from `mode`. Raises OSError, and leaves what was there."""
    temporary = f"{path}.{os.getpid()}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
