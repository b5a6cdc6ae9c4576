"""Pseudo-terminals of a given devpts instance. Source: ioctl_tty(2)."""

from __future__ import annotations

import fcntl
import os
import struct

from ketchd.kernel.syscalls import check, libc

_TIOCSPTLCK, _TIOCGPTPEER, _TIOCSWINSZ, _TIOCSCTTY = 0x40045431, 0x5441, 0x5414, 0x540E


def open_pair(ptmx: int) -> tuple[int, int]:
    """(master, slave) of the multiplexer fd `ptmx`, which becomes the master.

    The slave is opened through the master (TIOCGPTPEER), so that no path inside a container is trusted.
    """
    fcntl.ioctl(ptmx, _TIOCSPTLCK, struct.pack("i", 0))
    slave = check(libc.ioctl(ptmx, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC), "ioctl TIOCGPTPEER")
    return ptmx, slave


def set_size(master: int, height: int, width: int) -> None:
    """TIOCSWINSZ: characters, not pixels."""
    fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def make_controlling(slave: int) -> None:
    """TIOCSCTTY: the caller is a session leader without a terminal."""
    fcntl.ioctl(slave, _TIOCSCTTY, 0)
