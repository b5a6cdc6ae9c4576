"""The exit record: STATE_DIR/exit, written by the shim before it ends, read by a ketchd that was not there. msgpack.

Visible by one rename, then synced, file and directory: a reader finds all of it or nothing.
"""

from __future__ import annotations

import os

import msgpack

from ketch_wire.shim import EXIT_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TEMPORARY = ".exit.new"


_RESERVED = 128


def reserve_exit(directory: int) -> None:
    """Take the room that the record will need, so that a full disk cannot lose it. Raises OSError."""
    fd = os.open(_TEMPORARY, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.write(fd, bytes(_RESERVED))
    finally:
        os.close(fd)


def write_exit(
    directory: int, code: int, ooms: int, finished_ns: int, execs: dict[str, int] | None = None
) -> None:
    """Make the record visible in the directory fd. `sync_exit` makes it last. Raises OSError.

    ooms: how often memory ran out. execs: codes by id, left out when the disk has no room for them.
    """
    record: dict[str, object] = {
        "code": code, "oom": ooms > 0, "ooms": int(ooms), "finished_ns": finished_ns,
    }  # fmt: skip
    fd = os.open(
        _TEMPORARY,
        os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=directory,
    )
    try:
        if not execs or not _put(fd, {**record, "execs": execs}):
            _put(fd, record)
    finally:
        os.close(fd)
    os.rename(_TEMPORARY, EXIT_NAME, src_dir_fd=directory, dst_dir_fd=directory)


def _put(fd: int, record: dict[str, object]) -> bool:
    """Make it the file's content; False when it is more than was reserved and there is no more room. Raises OSError."""
    content: bytes = msgpack.packb(record)
    try:
        if os.pwrite(fd, content, 0) < len(content):
            return False
    except OSError:
        if len(content) > _RESERVED:
            return False
        raise
    os.ftruncate(fd, len(content))
    return True


def sync_exit(directory: int) -> None:
    """Bring record and directory to the disk. Nothing is done when somebody removed it meanwhile."""
    try:
        fd = os.open(EXIT_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return
    try:
        os.fsync(fd)
        os.fsync(directory)
    except OSError:
        pass  # a disk that fails now: the record stays as visible as it is
    finally:
        os.close(fd)


def read_exit_file(directory: str) -> tuple[int, int, int, dict[str, int]] | None:
    """(code, ooms, finished_ns, codes of execs by id) as recorded in `directory`; None when there is no whole record."""
    try:
        with open(os.path.join(directory, EXIT_NAME), "rb") as record:
            stored = msgpack.unpackb(record.read())
        execs = {str(key): int(code) for key, code in stored.get("execs", {}).items()}
        return int(stored["code"]), ooms_of(stored), int(stored["finished_ns"]), execs
    except (OSError, ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException):
        return None


def ooms_of(ended: dict[str, Any]) -> int:
    """How often memory ran out in a run that `ended`, a record or an `exit` event; an older shim says only whether. Raises KeyError."""
    return int(ended.get("ooms", bool(ended["oom"])))
