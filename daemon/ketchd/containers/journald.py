"""Whether the host's journal takes messages."""

from __future__ import annotations

import socket

from ketch_wire.launch import JOURNAL_SOCKET


def has_journal(path: str = JOURNAL_SOCKET) -> bool:
    """Whether somebody listens at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
