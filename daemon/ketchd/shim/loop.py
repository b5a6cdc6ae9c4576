"""The shim's event loop: epoll, timers, nothing else. Handlers must bear being called when nothing is ready."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE, GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
_BATCH = 32


class Timer:
    """A call to come. `cancel` may be called twice."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not come."""
        self.call = None


class Loop:
    """Runs until `stop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._new: set[int] = set()  # watched since the kernel was last asked
        self._running = True

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler(events)` when `fd` is ready. Hang-ups are told even with events 0."""
        self._handlers[fd] = handler
        self._new.add(fd)
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Other events of a watched `fd`."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch `fd` no more; before it is closed. May be called twice."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call `call` in `seconds`."""
        timer = Timer(time.monotonic() + seconds, call)
        self._timers.append(timer)
        return timer

    def stop(self) -> None:
        """Let `run` return."""
        self._running = False

    def close(self) -> None:
        """Give the epoll instance back."""
        self._epoll.close()

    def run(self) -> None:
        """Handle what happens until `stop`."""
        while self._running:
            self._new.clear()
            for fd, events in self._epoll.poll(self._next(), _BATCH):
                # What happened to a number that has been closed and given out again since belongs to another: a hang-up of the old
                # one would end the new one. If something happened to the new one, the kernel says so the next time.
                handler = self._handlers.get(fd) if fd not in self._new else None
                if handler is not None:
                    handler(events)
            if self._timers:
                self._fire()

    def _next(self) -> float:
        self._timers = [timer for timer in self._timers if timer.call is not None]
        if not self._timers:
            return -1
        return max(0.0, min(timer.due for timer in self._timers) - time.monotonic())

    def _fire(self) -> None:
        now = time.monotonic()
        for timer in [one for one in self._timers if one.due <= now]:
            call, timer.call = timer.call, None
            if call is not None:
                call()
