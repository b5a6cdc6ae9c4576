"""The kernel's word that a container ran out of memory, heard and counted by its shim as it comes.

Version 1: an eventfd, which is told before anything is killed, again and again while the victim dies, and with the killer switched
off too. Version 2: memory.events, which changes for other reasons as well. Either is a reason to look whether `oom_kill` has grown.
Source: admin-guide/cgroup-v1/memory.rst, 9. and 10.; cgroup-v2.rst, memory.events; mm/memcontrol-v1.c, mem_cgroup_oom_notify.
"""

from __future__ import annotations

import os

from ketchd.kernel.process import read_small
from ketchd.shim.cgroups import oom_kills
from ketchd.shim.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ketch_wire.launch import CgroupPlan
    from ketchd.shim.loop import Loop, Timer

_LOOK_AGAIN_SECONDS = 0.05
_LOOKS = 40  # the kernel may write its report to a slow console between notification and kill


class OomWatch:
    """Of one run, whose cgroups are made. `count`: how often the killer was at work, or the container stood still without it;
    what is killed between two looks counts as one.

    on_oom is called whenever `count` has grown. Where the kernel tells nothing while it runs, `end` still sees what it killed.
    """

    def __init__(self, loop: Loop, plan: CgroupPlan, on_oom: Callable[[], None]) -> None:
        self.count = 0
        self._loop = loop
        self._plan = plan
        self._on_oom = on_oom
        self._kills = oom_kills(plan)
        self._control = ""
        self._eventfd = self._events = -1
        self._looks = 0
        self._timer: Timer | None = None
        try:
            self._listen()
        except OSError:
            pass  # `end` looks

    def _listen(self) -> None:
        for directory in self._plan.join:
            if os.path.exists(f"{directory}/memory.oom_control"):
                self._control = f"{directory}/memory.oom_control"
                self._eventfd = _registered(directory)
                self._loop.watch(self._eventfd, READ, self._spoken)
                return
            if os.path.exists(f"{directory}/memory.events"):
                # A change since it was last read is an error condition to poll(2), which is always told.
                self._events = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
                os.pread(self._events, 4096, 0)
                self._loop.watch(self._events, 0, self._spoken)
                return

    def _spoken(self, _: int) -> None:
        try:
            if self._eventfd >= 0:
                os.eventfd_read(self._eventfd)
            else:
                os.pread(self._events, 4096, 0)  # or it stays ready
        except BlockingIOError:
            return
        except OSError:
            self.close()  # the cgroup is gone
            return
        if self._has_killed() or self._eventfd < 0 or self._stands_still():
            return
        self._looks = _LOOKS
        if self._timer is None:
            self._timer = self._loop.later(_LOOK_AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._looks -= 1
        if not self._has_killed() and not self._stands_still() and self._looks > 0:
            self._timer = self._loop.later(_LOOK_AGAIN_SECONDS, self._look_again)

    def _has_killed(self) -> bool:
        """Whether it has since the last look; then that is counted and told."""
        before, self._kills = self._kills, max(self._kills, oom_kills(self._plan))
        if self._kills > before:
            self._tell()
        return self._kills > before

    def _stands_still(self) -> bool:
        """Whether the container has no memory and nothing will be killed for it (`--oom-kill-disable`); then that is counted and told.

        The kernel takes the mark away for the moment in which the container tries again, so one look may miss it.
        """
        try:
            lines = read_small(self._control).splitlines()
        except OSError:
            return False
        stands_still = b"oom_kill_disable 1" in lines and b"under_oom 1" in lines
        if stands_still:
            self._tell()
        return stands_still

    def _tell(self) -> None:
        self.count += 1
        self._on_oom()

    def end(self) -> int:
        """Look once more and listen no longer; the count of the whole run. The cgroups must still be there."""
        self._has_killed()
        self.close()
        return self.count

    def close(self) -> None:
        """Listen no more. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for fd in (self._eventfd, self._events):
            if fd >= 0:
                self._loop.forget(fd)
                os.close(fd)
        self._eventfd = self._events = -1


def _registered(directory: str) -> int:
    """An eventfd that counts the notifications of the version 1 cgroup. Raises OSError."""
    told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            registry = os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(registry, b"%d %d" % (told, control))
            finally:
                os.close(registry)
        finally:
            os.close(control)
    except BaseException:
        os.close(told)
        raise
    return told
