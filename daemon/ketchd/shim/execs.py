"""The execs of one container: more processes beside its first, each with streams of its own."""

from __future__ import annotations

from ketchd.sandbox import enter
from ketchd.sandbox.failures import LaunchError
from ketchd.shim.contained import Contained
from ketchd.shim.loop import Loop, Timer
from ketchd.shim.plans import process_plan, version_two_cgroup
from ketchd.shim.spawn import spawn
from ketchd.shim.streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from ketchd.sandbox.report import Report
    from ketchd.shim.spawn import Stdio

# How long a client's stream may stay open for ketchd to say that it knows the exec's end.
SEEN_SECONDS = 2.0


class Exec:
    """One exec."""

    def __init__(self, streams: Streams, transient: bool) -> None:
        self.streams = streams
        self.transient = transient
        self.process: Contained | None = None
        self.unseen: Timer | None = None
        self.told = False  # its end
        self.seen = False


class Execs:
    """By id. `say` sends a message to ketchd and tells whether there is one."""

    def __init__(
        self,
        loop: Loop,
        cgroups: tuple[str, ...],
        spill_directory: int,
        say: Callable[[dict[str, Any]], bool],
        owner: tuple[int, int] | None = None,
    ) -> None:
        self._loop = loop
        self._cgroups = cgroups
        self._spill_directory = spill_directory
        self._say = say
        self._owner = owner  # the container's root outside of its user namespace
        self._execs: dict[str, Exec] = {}
        self.ended: dict[str, int] = {}  # codes by id, until ketchd has recorded them
        self.on_over: Callable[[], None] = lambda: None

    def running(self) -> dict[str, int]:
        """Pids by exec id, of those that are not executed yet too: their ends will be told."""
        return {
            key: one.process.pid
            for key, one in self._execs.items()
            if one.process is not None and not one.told
        }

    @property
    def are_over(self) -> bool:
        """Whether nothing of any exec is left to do."""
        return not self._execs

    def start(
        self,
        container: int,
        wire: dict[str, Any],
        stream: dict[str, Any] | None,
        fd: int,
        answer: Callable[[dict[str, Any]], bool],
    ) -> None:
        """Begin one beside the process that the pidfd `container` names; `answer` is called when it runs or cannot.

        answer: False when whoever asked is gone. fd: the client's socket, ours from now on, or -1.
        Raises LaunchError, OSError (no descriptors).
        """
        exec_id, process = wire["id"], process_plan(wire["process"])
        streams = Streams(
            self._loop, terminal=process.tty, stdin_once=True, log=None, spill_directory=self._spill_directory
        )
        one = Exec(streams, bool(wire.get("transient")))
        wants = stream or {}

        def become(stdio: Stdio | None, report: Report) -> NoReturn:
            enter.become_exec(process, self._cgroups, container, stdio, report, user=self._owner is not None)

        try:
            spawned = spawn(
                become, terminal=process.tty, stdin=process.open_stdin and stream is not None,
                stdout=bool(wants.get("stdout")), stderr=bool(wants.get("stderr")),
                cgroup=version_two_cgroup(self._cgroups), owner=self._owner,
            )  # fmt: skip
        except (LaunchError, OSError):
            if fd >= 0:
                streams.attach(fd, wants)
                streams.abandon()
            raise
        self._execs[exec_id] = one
        contained = one.process = Contained(self._loop, streams, spawned)
        if stream is not None and fd >= 0:
            streams.attach(fd, stream)
        contained.on_warning = lambda text: self._warn(text)
        contained.on_started = lambda: self._started(contained, answer)
        contained.on_failed = lambda error: self._failed(exec_id, one, answer, error)
        contained.on_ended = lambda code: self._ended(exec_id, one, code)
        streams.on_detach = lambda: self._detached(exec_id)
        contained.connect()

    def _warn(self, text: str) -> None:
        self._say({"event": "warning", "message": text})

    def _detached(self, exec_id: str) -> None:
        self._say({"event": "detached", "exec": exec_id})

    @staticmethod
    def _started(contained: Contained, answer: Callable[[dict[str, Any]], bool]) -> None:
        answer({"pid": contained.pid})

    def _failed(
        self, exec_id: str, one: Exec, answer: Callable[[dict[str, Any]], bool], error: LaunchError
    ) -> None:
        one.streams.abandon()
        one.streams.give_up_output()
        one.streams.finish()
        if not answer({"failed": error.to_wire()}):
            self._tell_end(exec_id, one, error.code)
        self._over(exec_id)

    def _tell_end(self, exec_id: str, one: Exec, code: int) -> bool:
        """False when nobody hears it: then the next ketchd does."""
        one.told = True
        self.ended[exec_id] = code
        return self._say({"event": "exec_exit", "id": exec_id, "code": code})

    def recorded(self, exec_id: str) -> None:
        """ketchd has recorded the end of `exec_id`."""
        self.ended.pop(exec_id, None)
        self.seen(exec_id)

    def _ended(self, exec_id: str, one: Exec, code: int) -> None:
        """Its end is told first, and its clients' streams close when ketchd knows it."""
        if self._tell_end(exec_id, one, code):
            one.unseen = self._loop.later(SEEN_SECONDS, lambda: self.seen(exec_id))
        else:
            self.seen(exec_id)

    def seen(self, exec_id: str) -> None:
        """Nobody waits for it to be known that `exec_id` has ended."""
        one = self._execs.get(exec_id)
        if one is None or one.seen:
            return
        one.seen = True
        if one.unseen is not None:
            one.unseen.cancel()
        one.streams.on_clients_gone = lambda: self._over(exec_id)
        one.streams.finish()
        if not one.streams.has_clients:
            self._over(exec_id)

    def _over(self, exec_id: str) -> None:
        if self._execs.pop(exec_id, None) is not None and not self._execs:
            self.on_over()

    def kill_all(self) -> None:
        """The container has ended; its pid namespace saw to most of them already."""
        for one in self._execs.values():
            if one.process is not None:
                one.process.kill()

    def ketchd_is_gone(self) -> None:
        """Nobody waits for its own execs any more, and nobody will say that an end was seen."""
        for one in self._execs.values():
            if one.transient and one.process is not None:
                one.process.kill()
        for exec_id in [key for key, one in self._execs.items() if one.unseen is not None]:
            self.seen(exec_id)

    def find(self, exec_id: str) -> Contained:
        """The process of `exec_id`. Raises LaunchError when there is none."""
        one = self._execs.get(exec_id)
        if one is None or one.process is None or not one.process.is_running:
            raise LaunchError(f"exec {exec_id} is not running", status=409)
        return one.process
