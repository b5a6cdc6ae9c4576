"""A half-closed TLS connection whose socket has no room for its last record."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ketch.attach import Relay
from ketch.commands.dialstdio import Pump
from ketch.tlslink import TlsLink
from ketch_testing.certificates import Authority
from ketch_wire.stdcopy import STDOUT, frame

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


class Narrow(socket.socket):
    """A socket that refuses its next `refusals` sends, as one whose buffer is full."""

    refusals = 0

    def send(self, content: bytes, flags: int = 0, /) -> int:  # type: ignore[override]
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError
        return super().send(content, flags)


class Peer:
    """An engine that answers `after` when its input has ended, and nothing to who does not tell the end within ten seconds."""

    def __init__(self, base: Path) -> None:
        authority = Authority(base / "ca")
        certificate, key = authority.issue("localhost")
        self.trusting = ssl.create_default_context(cafile=str(authority.certificate))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self.received = b""
        self.ours, self._theirs = socket.socketpair()
        self._theirs.settimeout(10)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._theirs, self._context.wrap_socket(self._theirs, server_side=True) as link:
            try:
                while part := link.recv(65536):
                    self.received += part
            except TimeoutError:
                return
            link.sendall(frame(STDOUT, b"after"))

    def close(self) -> None:
        self.ours.close()
        self._thread.join()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    with closing(Peer(tmp_path)) as made:
        yield made


def relayed(link: TlsLink) -> None:
    with Relay(link, b"", stdin=True, framed=True) as relay:
        relay.run()


def dialled(link: TlsLink) -> None:
    with closing(link):
        link.setblocking(False)
        Pump(link).run()


@pytest.mark.parametrize("carried", [relayed, dialled])
def test_the_end_of_input_waits_for_room(
    peer: Peer, capfdbinary: pytest.CaptureFixture[bytes], carried: Callable[[TlsLink], None]
) -> None:
    """It is told as soon as there is some: the engine may have nothing to say before."""
    narrow = Narrow(fileno=os.dup(peer.ours.fileno()))
    kept = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        link = TlsLink(narrow, peer.trusting, "localhost")
        narrow.refusals = 3
        carried(link)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        narrow.close()
    assert narrow.refusals == 0
    assert capfdbinary.readouterr().out.endswith(b"after")
