"""RUN_DIR/shim.sock: where a restarted ketchd finds this shim. A file of mode 0600; only our own uid is heard."""

from __future__ import annotations

import _socket
import os
import struct

from ketch_wire.shim import SOCKET_NAME
from ketchd.shim.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_UCRED = struct.Struct("3i")


class Listener:
    """Listens until `close`, which also takes the file away. `on_connect(channel)` for each connection."""

    def __init__(self, loop: Loop, run_dir: str, on_connect: Callable[[_socket.socket], None]) -> None:
        self._loop = loop
        self._on_connect = on_connect
        self._directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # By way of the descriptor: sun_path holds 107 bytes, and a container's directory may have a longer name.
        path = f"/proc/self/fd/{self._directory}/{SOCKET_NAME}"
        self._unlink()
        self._channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._channel.bind(path)
        finally:
            os.umask(before)
        self._channel.listen(8)
        self._channel.setblocking(False)
        loop.watch(self._channel.fileno(), READ, self._ready)

    def _unlink(self) -> None:
        try:
            os.unlink(SOCKET_NAME, dir_fd=self._directory)
        except FileNotFoundError:
            pass

    def _ready(self, events: int) -> None:
        try:
            fd, _ = self._channel._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        channel = _socket.socket(fileno=fd)
        peer = channel.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(peer)[1] != os.geteuid():
            channel.close()
            return
        os.set_inheritable(fd, False)
        self._on_connect(channel)

    def close(self) -> None:
        """No more. May be called twice."""
        if self._channel.fileno() >= 0:
            self._loop.forget(self._channel.fileno())
            self._channel.close()
            self._unlink()
            os.close(self._directory)
