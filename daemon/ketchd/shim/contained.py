"""One contained process as its shim sees it: half born, running, ended, its output drained."""

from __future__ import annotations

import os

from ketchd.kernel import signals
from ketchd.sandbox.failures import LaunchError
from ketchd.sandbox.report import read_packet
from ketchd.shim.loop import READ, Loop, Timer
from ketchd.shim.spawn import Spawned
from ketchd.shim.streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DRAIN_SECONDS = 2.0


class Contained:
    """Calls, each at most once and in this order: on_namespaces, then on_started or on_failed, then (started) on_ended.

    on_ended(code): 128 and the signal's number for a signal; the output has been read to its end, or for DRAIN_SECONDS
    when somebody else still holds it.
    """

    def __init__(self, loop: Loop, streams: Streams, spawned: Spawned) -> None:
        self._loop = loop
        self.streams = streams
        self.pid = spawned.pid
        self.pidfd = spawned.pidfd
        self._channel = spawned.channel
        self._spawned = spawned
        self._has_terminal = self._ready_to_execute = self.started = False
        self._failure: LaunchError | None = None
        self._code: int | None = None
        self._timer: Timer | None = None
        self.on_namespaces: Callable[[], None] = lambda: None
        self.on_started: Callable[[], None] = lambda: None
        self.on_failed: Callable[[LaunchError], None] = lambda error: None
        self.on_warning: Callable[[str], None] = lambda text: None
        self.on_exit: Callable[[], None] = lambda: None
        self.on_ended: Callable[[int], None] = lambda code: None
        loop.watch(self._channel.fileno(), READ, self._told)
        loop.watch(self.pidfd, READ, self._exited)

    @property
    def is_running(self) -> bool:
        """Whether it has not been reaped."""
        return self._code is None

    def connect(self) -> None:
        """Take its pipes; a terminal's master comes by itself."""
        if self._spawned.outputs or self._spawned.sink >= 0:
            self.streams.connect_pipes(self._spawned.sink, self._spawned.outputs)

    def go(self) -> None:
        """Its network stands."""
        try:
            self._channel.send(b"go")
        except OSError:
            pass  # it failed meanwhile, and has said why

    def signal(self, number: int) -> None:
        """Send a signal. Raises ProcessLookupError when it has ended. The pid is ours until it is reaped here."""
        if self._code is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def _told(self, events: int) -> None:
        while self._channel.fileno() >= 0:
            try:
                messages, fd = read_packet(self._channel)
            except ConnectionResetError:
                continue  # told once, before what lies there: the child ended without having read our "go"
            except OSError:
                messages, fd = [], -1
            if not messages:
                self._channel_closed()
                return
            for message in messages:
                self._take(message, fd)
            if not self._draining:
                return

    _draining = False

    def _take(self, message: dict[str, Any], fd: int) -> None:
        if "warning" in message:
            self.on_warning(message["warning"])
        elif "namespaces" in message:
            self.on_namespaces()
        elif "terminal" in message:
            self._has_terminal = True
            self.streams.connect_terminal(fd)
        elif "ready" in message:
            self._ready_to_execute = True
        elif "failed" in message:
            told = message["failed"]
            self._failure = LaunchError(
                told["message"], code=told["code"], status=told["status"], kind=told["kind"]
            )

    def _channel_closed(self) -> None:
        self._loop.forget(self._channel.fileno())
        self._channel.close()
        if self._ready_to_execute and self._failure is None:
            self.started = True
            self.on_started()

    def _exited(self, events: int) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return
        self._loop.forget(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        if self._channel.fileno() >= 0:  # what it said before it ended
            self._draining = True
            self._told(READ)
        code = os.waitstatus_to_exitcode(status)
        self._code = code if code >= 0 else 128 - code
        if not self.started:
            self._never_started(code)
            return
        self.on_exit()
        if self.streams.has_output:
            self._timer = self._loop.later(DRAIN_SECONDS, self._give_up)
            self.streams.on_drained = self._drained
        else:
            self._drained()

    def _never_started(self, code: int) -> None:
        failure = self._failure
        if failure is None:
            how = f"signal {-code}" if code < 0 else f"exit {code}"
            failure = LaunchError(f"container init died before it could execute anything ({how})")
        self.on_failed(failure)

    def _give_up(self) -> None:
        """Whoever holds the output still is not waited for; a client that has not taken it yet is (and for its own time only)."""
        if not self.streams.give_up_output():
            self._timer = self._loop.later(DRAIN_SECONDS, self._give_up)

    def _drained(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._code is not None
        self.on_ended(self._code)

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        try:
            self.signal(signals.SIGKILL)
        except ProcessLookupError:
            pass
