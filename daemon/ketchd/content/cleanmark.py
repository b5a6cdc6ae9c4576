"""CleanMark: did the last daemon end in peace? A file that is there while one runs."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from ketchd.content.blobs import sync_directory


@dataclass(frozen=True, slots=True)
class Unclean:
    """The last daemon did not come to its end. seen_seconds: when it was last known to run, seconds since the epoch."""

    seen_seconds: float


class CleanMark:
    """`running` in the data root: made at the start, touched now and then, removed at a clean end.

    Who finds it at the start knows that the daemon before was killed, or the machine lost its power, and roughly when. What
    came of that is not checked before `checked` says so: until then the file holds the time, for a daemon that is killed again.
    """

    def __init__(self, data_root: Path) -> None:
        self._path = data_root / "running"
        self._is_kept = False  # the file is another daemon's: there was no room to write it

    def begin(self) -> Unclean | None:
        """Say that a daemon runs from now on; tells whether there is an unclean end to look into. Raises OSError.

        On a full disk the file of an unclean end stays as it is, its time with it: that is told again to the next daemon.
        """
        found: Unclean | None = None
        try:
            found = Unclean(min(self._path.stat().st_mtime, _number(self._path.read_text(errors="replace"))))
        except FileNotFoundError:
            pass
        try:
            self._write("" if found is None else repr(found.seen_seconds))
        except OSError as error:
            if found is None or error.errno != errno.ENOSPC:
                raise
            self._is_kept = True
        return found

    def checked(self) -> None:
        """What the unclean end may have damaged has been looked at. Raises OSError."""
        self._write("")
        self._is_kept = False

    def beat(self) -> None:
        """It still runs. Raises OSError."""
        if not self._is_kept:
            os.utime(self._path)

    def end(self) -> None:
        """A clean end; with an unclean one still to be looked into, the file stays. May be called twice. Raises OSError."""
        try:
            if self._is_kept or self._path.stat().st_size:
                return
        except FileNotFoundError:
            return
        self._path.unlink()
        sync_directory(self._path.parent)

    def _write(self, text: str) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text.encode())
            os.ftruncate(descriptor, len(text))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(self._path.parent)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")
