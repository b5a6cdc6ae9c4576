"""One ketchd a default bridge: two would take each other's links for strays."""

from __future__ import annotations

import socket

from ketch_wire.faults import EngineFailure


class Instance:
    """Held while ketchd lives: an abstract socket that nobody answers on. It belongs to the host's network namespace, as bridges
    do, and goes with the process however that ends."""

    def __init__(self, bridge: str) -> None:
        """Raises EngineFailure when another process holds it."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(f"\0ketch-network-{bridge}")
        except OSError as error:
            self._socket.close()
            raise EngineFailure(
                f"another ketchd on this host uses the bridge {bridge}: give one of them another by --bridge"
            ) from error

    def close(self) -> None:
        """Let another have it. May be called twice."""
        self._socket.close()
