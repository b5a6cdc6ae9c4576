"""One connection to a shim, on the event loop: frames both ways, descriptors going out, answers matched to requests."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from ketch_wire.faults import Conflict, EngineFailure, Fault
from ketch_wire.frames import FrameReader, pack
from ketch_wire.shim import FDS_PER_MESSAGE
from ketchd.kernel import rights

_CHUNK = 262144
_START = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: {}: unknown"
)
_EXEC = "OCI runtime exec failed: exec failed: unable to start container process: {}: unknown"
# What dockerd puts behind a cause; the first is what makes clients end with 126. Source: moby daemon/errors.go, setExitCodeFromError.
_HINTS = {
    "is a directory": ": permission denied",
    "not a directory": ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists "
    "and is the expected type",
}  # fmt: skip
_REFUSED_EXEC = 126  # an exec that failed without a code of its own: moby daemon/exec.go


class LaunchFailed(Fault):
    """A process could not be started. exit_code: what dockerd records (126, 127, 128). The message is dockerd's."""

    def __init__(self, message: str, exit_code: int = 128, status: int = 500) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.status = status

    @staticmethod
    def from_wire(told: dict[str, Any], *, exec: bool = False) -> LaunchFailed:
        """A FAILED map of ketch_wire.shim."""
        text, code = str(told["message"]), int(told["code"])
        if told.get("kind") == "plain":  # dockerd's own refusal, ahead of the runtime
            return LaunchFailed(text, _REFUSED_EXEC if exec else code, int(told["status"]))
        text = (_EXEC if exec else _START).format(text)
        hint = next((hint for cause, hint in _HINTS.items() if cause in text.lower()), "")
        return LaunchFailed(text + hint, code, int(told["status"]))


class Channel:
    """A connected stream socket. `on_event(message)` gets what no request asked for; `on_lost()` is called once."""

    def __init__(
        self, channel: socket.socket, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._on_event = on_event
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._sequence = 0
        channel.setblocking(False)
        # In a context of its own: the request that started the container must not sign what its shim says later on.
        Context().run(self._loop.add_reader, channel.fileno(), self._readable)

    @property
    def is_open(self) -> bool:
        """Whether the peer was there a moment ago."""
        return self._channel.fileno() >= 0

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """Send soon, in order. `fds` become ours: they are closed when they are with the peer, or it is gone."""
        fds = list(fds or [])
        if fds:
            message = {**message, "fds": len(fds)}
        if not self.is_open:
            _close_all(fds)
            return
        while len(fds) > FDS_PER_MESSAGE:
            self._unsent.append((memoryview(pack({"op": "fds"})), fds[:FDS_PER_MESSAGE]))
            fds = fds[FDS_PER_MESSAGE:]
        self._unsent.append((memoryview(pack(message)), fds))
        self._flush()

    async def ask(self, message: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
        """Send a request and take its answer. Raises Conflict when the peer is or goes away. Cancelled: it was sent all the same."""
        self._sequence += 1
        sequence = self._sequence
        if not self.is_open:
            _close_all(fds or [])
            raise Conflict("the container is not running")
        answer = self._answers[sequence] = self._loop.create_future()
        try:
            self.send({**message, "seq": sequence}, fds)
            told: dict[str, Any] = await answer
            return told
        finally:
            self._answers.pop(sequence, None)

    def close(self) -> None:
        """End the connection. May be called twice; on_lost is not called."""
        if not self.is_open:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._drop_unsent()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Conflict("the container is not running"))

    def _drop_unsent(self) -> None:
        for _, fds in self._unsent:
            _close_all(fds)
        self._unsent.clear()

    def _flush(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                sent = self._channel.sendmsg([data], rights.packed(fds), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._loop.add_writer(self._channel.fileno(), self._flush)
                return
            except (
                OSError
            ):  # the peer has ended: what it said before is read first, and its end comes after that
                self._drop_unsent()
                break
            _close_all(fds)
            if sent < len(data):
                self._unsent[0] = (data[sent:], [])
            else:
                self._unsent.popleft()
        self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            data = self._channel.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        messages = self._reader.take(data)
        if messages is None:
            self._lost()
            return
        for message in messages:
            if "event" in message:
                self._on_event(message)
            else:
                answer = self._answers.get(message.get("seq", 0))
                if answer is not None and not answer.done():
                    answer.set_result(message)

    def _lost(self) -> None:
        if self.is_open:
            self.close()
            self._on_lost()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def plain_failure(answer: dict[str, Any]) -> Fault:
    """The failure of a request that starts nothing."""
    told = answer["failed"]
    fault = Conflict if told.get("status") == 409 else EngineFailure
    return fault(str(told["message"]))
