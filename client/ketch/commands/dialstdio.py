"""`ketch system dial-stdio`: standard input and output as a connection to the engine, for `ssh://` of ketch and docker. Acting.

Source: docker/cli cli/command/system/dial_stdio.go.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from ketch.engine import connect
from ketch.http import Link, half_close
from ketch.options import Command, Given
from ketch.session import Session

CHUNK = 256 * 1024


def dial_stdio(session: Session, given: Given) -> int:
    """Until the engine ends the connection, or nobody reads what it sends.

    The end of standard input is passed on as a half-close. Raises EngineAway when no engine listens.
    """
    engine = session.engine
    with contextlib.closing(connect(engine.host, engine.tls)) as link, _unblocked(0), _unblocked(1):
        link.setblocking(False)
        Pump(link).run()
    return 0


class Pump:
    """What comes from either side and is not yet with the other; nothing is read before it is gone."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._in = b""
        self._out = b""
        self._is_input_open = True
        self._is_link_open = True
        self._is_end_owed = False  # that of the input, to the engine

    def run(self) -> None:
        while self._is_link_open or self._out:
            ready = self._wait()
            # Only errors are asked for when nothing is to be written: a reader that went away must not leave us behind.
            if ready.get(1, 0) & (select.POLLERR | select.POLLHUP):
                return
            if self._out:
                self._write()
            elif self._link.fileno() in ready or self._has_decrypted():
                self._receive()
            if self._in:
                self._send()
            elif self._is_end_owed:
                self._is_end_owed = not half_close(self._link)
            elif 0 in ready:
                self._read()

    def _wait(self) -> dict[int, int]:
        poll = select.poll()
        poll.register(1, select.POLLOUT if self._out else 0)
        if self._is_input_open and not self._in:
            poll.register(0, select.POLLIN)
        wanted = (select.POLLIN if not self._out else 0) | (
            select.POLLOUT if self._in or self._is_end_owed else 0
        )
        if self._is_link_open and wanted:
            poll.register(self._link, wanted)
        return dict(poll.poll(0 if not self._out and self._has_decrypted() else None))

    def _has_decrypted(self) -> bool:
        """What TLS has read ahead wakes no poll."""
        pending = getattr(self._link, "pending", None)
        return self._is_link_open and pending is not None and pending() > 0

    def _receive(self) -> None:
        try:
            self._out = self._link.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._out = b""
        if self._out:
            self._write()
        else:
            self._is_link_open = False

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._out = self._out[os.write(1, self._out) :]

    def _read(self) -> None:
        try:
            self._in = os.read(0, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._in = b""
        if self._in:
            self._send()
            return
        self._is_input_open = False
        self._is_end_owed = not half_close(self._link)

    def _send(self) -> None:
        try:
            self._in = self._in[self._link.send(self._in) :]
        except BlockingIOError:
            return
        except OSError:
            self._in, self._is_input_open = b"", False


@contextlib.contextmanager
def _unblocked(handle: int) -> Iterator[None]:
    """A standard stream may be shared with programs that expect to be waited for."""
    before = os.get_blocking(handle)
    os.set_blocking(handle, False)
    try:
        yield
    finally:
        os.set_blocking(handle, before)


COMMANDS = {"system dial-stdio": (Command(""), dial_stdio)}
