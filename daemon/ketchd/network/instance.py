"""One ketchd a default bridge: two would take each other's links for strays. Without a default bridge it has a name of its own.

The lock is one byte of one file that only root may open, LOCK_FILE: which byte, the network namespace and the bridge's name say.
So nobody without rights can keep ketchd from starting (a socket's abstract name could be taken by any user, and by a container on
the host's network), there is no file a bridge to clean up, and the kernel lets go of it however the process ends. Daemons that
share a network namespace must share /run as well.
Source: fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from pathlib import Path

from ketch_wire.faults import EngineFailure

LOCK_FILE = Path("/run/ketch-bridges.lock")
NO_BRIDGE = "none"
_FLOCK = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


def name_of(bridge: str, catalogue_id: str) -> str:
    """What an instance is called in its rules and the aliases of its bridges: as its default bridge.

    Without one, which any number of ketchd on a host may be, after something random that its catalogue keeps.
    """
    return f"{NO_BRIDGE}-{catalogue_id[:9]}" if bridge == NO_BRIDGE else bridge


class Instance:
    """Held while ketchd lives. A fork of it without exec would hold it too: there is none after the launcher's."""

    def __init__(self, bridge: str, lock_file: Path = LOCK_FILE) -> None:
        """Raises EngineFailure when another process holds it."""
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EngineFailure(f"cannot use {lock_file}: {(error.strerror or '').lower()}") from error
        namespace = os.stat("/proc/self/ns/net").st_ino
        try:
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _place(namespace, bridge), 1, 0)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            self.close()
            raise EngineFailure(
                f"another ketchd on this host uses the bridge {bridge}: give one of them another by --bridge"
            ) from error

    def close(self) -> None:
        """Let another have it. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _place(namespace: int, bridge: str) -> int:
    """Which byte: the same for the same namespace and name, another for another."""
    digest = hashlib.sha256(f"{namespace}/{bridge}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2  # what fits off_t with its length
