"""Renaming a synced file or directory into place, durably; removing what was staged; what a disk's failure is called."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from ketch_wire.faults import EngineFailure


def disk_fault(error: OSError, what: str) -> EngineFailure:
    """`error` as the fault of `what`, which comes second when the disk is full: that is all a user can do something about."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineFailure(f"no space left on device: {what}")
    return EngineFailure(f"{what}: {(error.strerror or str(error)).lower()}")


def place(staged: str, final: Path, what: str, *, durable: bool = True) -> None:
    """Rename `staged` to `final`; durable: and sync the directory. What lies there already belongs to nobody: it goes.

    Raises EngineFailure, naming `what`.
    """
    try:
        if final.is_dir():
            remove_staged(str(final))
        os.rename(staged, final)
        if not durable:
            return
        descriptor = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_fault(error, f"cannot store {what}") from error


def remove_staged(path: str) -> None:
    """Remove a staged file or directory, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
