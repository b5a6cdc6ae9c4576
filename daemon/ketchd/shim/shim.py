"""The shim: one small process for one container, its parent and the owner of its streams, log and exit record.

Born from the launcher with a socket to ketchd; it outlives ketchd, and a later one finds it at RUN_DIR/shim.sock. Life:
starting (half-born child), running, ended (exit recorded, slow clients still served), gone. See `ketch_wire.shim`.
"""

from __future__ import annotations

import _socket
import os
import time

from ketch_wire.shim import PROTOCOL_VERSION
from ketchd.kernel import memory, signals
from ketchd.kernel.namespaces import CLONE_NEWPID, CLONE_NEWUSER, unshare
from ketchd.kernel.process import start_time
from ketchd.sandbox import enter
from ketchd.sandbox.failures import LaunchError, as_launch_error, reason
from ketchd.sandbox.heldlayers import Layers
from ketchd.shim import cgroups, exits
from ketchd.shim.contained import Contained
from ketchd.shim.execs import Execs
from ketchd.shim.link import Link
from ketchd.shim.listening import Listener
from ketchd.shim.logs import open_log
from ketchd.shim.loop import Loop
from ketchd.shim.oomwatch import OomWatch
from ketchd.shim.plans import outline, version_two_cgroup, whole_plan
from ketchd.shim.spawn import spawn
from ketchd.shim.streams import Streams
from ketchd.shim.usernamespace import Beside, leave_chroot, owner_of, set_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from ketch_wire.launch import LaunchPlan
    from ketchd.sandbox.report import Report
    from ketchd.shim.logs import Log
    from ketchd.shim.spawn import Stdio

    Become = Callable[[bytes, dict[str, int], Layers, Stdio | None, Report], NoReturn]

Message = dict[str, object]


def become_container(
    whole: bytes, donors: dict[str, int], layers: Layers, stdio: Stdio | None, report: Report
) -> NoReturn:
    """Be the container whose plan lies in the frame `whole`."""
    enter.become_container(whole_plan(whole), donors, layers, stdio, report)


class Shim:
    """`run` returns when nothing is left to do. held: the namespace of `heldlayers`, ours to close.

    become: what its child does, `become_container` but for a rehearsal.
    """

    def __init__(self, channel: _socket.socket, held: int, become: Become = become_container) -> None:
        self._layers = Layers(held)
        self._become = become
        self._loop = Loop()
        self._link: Link | None = Link(self._loop, channel, self._asked, self._link_lost)
        self._plan: LaunchPlan | None = None
        self._listener: Listener | None = None
        self._main: Contained | None = None
        self._streams: Streams | None = None
        self._execs: Execs | None = None
        self._log: Log | None = None
        self._state_fd = -1
        self._state = "starting"
        self._gone = False
        self._ooms: OomWatch | None = None
        self._start_time = 0
        self._ports: list[int] = []
        self._exit: dict[str, Any] = {}

    def run(self) -> None:
        """Until the container and everybody attached to it are done."""
        self._loop.run()

    def close(self) -> None:
        """Give back what is open when `run` has returned."""
        if self._link is not None:
            self._link.close()
        if self._state_fd >= 0:
            os.close(self._state_fd)
            self._state_fd = -1
        if self._ooms is not None:
            self._ooms.close()
        self._layers.close()
        self._loop.close()

    # ketchd

    def _say(self, message: dict[str, Any]) -> bool:
        if self._link is not None:
            self._link.send(message)
        return self._link is not None

    def _link_lost(self, link: Link) -> None:
        if link is not self._link:
            return
        self._link = None
        plan = self._plan
        if plan is None:
            self._loop.stop()
            return
        if self._execs is not None:
            self._execs.ketchd_is_gone()
        if self._main is not None and (plan.transient or (self._state == "starting" and not self._gone)):
            self._main.kill()

    def _connected(self, channel: _socket.socket) -> None:
        """Another ketchd: it takes the place of the last."""
        if self._link is not None:
            self._link.close()
            if self._execs is not None:
                self._execs.ketchd_is_gone()
        self._link = Link(self._loop, channel, self._asked, self._link_lost)
        self._say(self._hello())

    def _hello(self) -> dict[str, Any]:
        assert self._plan is not None
        return {
            "event": "hello", "version": PROTOCOL_VERSION, "id": self._plan.id, "state_dir": self._plan.state_dir,
            "state": self._state, "pid": self._main.pid if self._main is not None else 0,
            "start_time": self._start_time, "execs": self._execs.running() if self._execs is not None else {},
            "execs_ended": self._execs.ended if self._execs is not None else {}, "exit": self._exit,
            "ooms": self._ooms.count if self._ooms is not None else 0,
        }  # fmt: skip

    def _asked(self, message: dict[str, Any], fds: list[int]) -> None:
        operation, sequence = message.get("op"), message.get("seq", 0)
        try:
            answer = getattr(self, f"_do_{operation}", self._do_unknown)(message, fds)
        except LaunchError as error:
            self._say({"seq": sequence, "failed": error.to_wire()})
        except OSError as error:
            self._say({"seq": sequence, "failed": LaunchError(reason(error)).to_wire()})
        else:
            if answer is not None:
                self._say({"seq": sequence, **answer})

    def _do_unknown(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        raise LaunchError(
            f"this shim (protocol {PROTOCOL_VERSION}) does not know {message.get('op')!r}", status=501
        )

    def _do_start(self, message: dict[str, Any], fds: list[int]) -> None:
        streams = message["streams"]
        self._ports = fds[len(streams) :]
        try:
            self._start(outline(message["outline"]), message["whole"], list(zip(fds, streams, strict=False)))
        except (LaunchError, OSError) as error:
            self._fail(as_launch_error(error, "error preparing the container"))

    def _do_go(self, message: dict[str, Any], fds: list[int]) -> None:
        self._gone = True
        if self._main is not None:
            self._main.go()

    def _do_abort(self, message: dict[str, Any], fds: list[int]) -> None:
        if self._main is not None:
            self._main.kill()

    def _do_signal(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        try:
            self._running().signal(message["number"])
        except ProcessLookupError:
            pass  # its end is on its way to ketchd
        return {}

    def _do_attach(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self._streams is not None
        self._streams.attach(fds[0], message["stream"])
        return {}

    def _do_ports(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._let_go_of_ports()
        self._ports = fds
        if self._state == "ended":
            self._let_go_of_ports()
        return {}

    def _let_go_of_ports(self) -> None:
        for fd in self._ports:
            os.close(fd)
        self._ports = []

    def _do_resize(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._running().streams.resize(message["height"], message["width"])
        return {}

    def _do_exec(self, message: dict[str, Any], fds: list[int]) -> None:
        main = self._running()
        if self._execs is None or self._state != "running" or not main.is_running:
            for fd in fds:
                os.close(fd)
            raise LaunchError("the container is not running", status=409, kind="plain")
        asking, sequence = self._link, message["seq"]

        def answer(words: dict[str, Any]) -> bool:
            """To whom asked: another ketchd counts its requests anew."""
            return self._link is asking and self._say({"seq": sequence, **words})

        self._execs.start(main.pidfd, message["exec"], message["stream"], fds[0] if fds else -1, answer)

    def _do_exec_resize(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self._execs is not None
        self._execs.find(message["id"]).streams.resize(message["height"], message["width"])
        return {}

    def _do_exec_signal(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self._execs is not None
        self._execs.find(message["id"]).signal(message["number"])
        return {}

    def _do_exec_seen(self, message: dict[str, Any], fds: list[int]) -> None:
        if self._execs is not None:
            self._execs.recorded(message["id"])

    def _running(self) -> Contained:
        if self._main is None:
            raise LaunchError("the container has no process")
        return self._main

    # the container

    def _start(self, plan: LaunchPlan, whole: bytes, clients: list[tuple[int, dict[str, Any]]]) -> None:
        """plan: its outline. whole: a frame with all of it, for the child."""
        self._plan = plan
        process = plan.process
        self._state_fd = os.open(plan.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        exits.reserve_exit(self._state_fd)
        self._log = open_log(plan.log, self._loop)
        streams = self._streams = Streams(
            self._loop, terminal=process.tty, stdin_once=process.stdin_once, log=self._log,
            spill_directory=self._state_fd,
        )  # fmt: skip
        for fd, spec in clients:
            streams.attach(fd, spec)
        self._listener = Listener(self._loop, plan.run_dir, self._connected)
        cgroups.make(plan.cgroup)
        self._ooms = OomWatch(self._loop, plan.cgroup, lambda: self._ran_out_of_memory())
        self._execs = Execs(self._loop, plan.cgroup.join, self._state_fd, self._say, owner_of(plan))
        self._execs.on_over = self._maybe_over
        donors = enter.open_donors(plan)
        if any(layer.kind == "erofs-loop" for layer in plan.root.layers):
            # not the child: its device policy, in force from its birth, would keep it from the loop devices
            try:
                self._layers.open(plan.root.layers)
            except OSError as error:
                raise as_launch_error(error, "error preparing rootfs") from error
        owner = owner_of(plan)
        if owner is not None:
            leave_chroot()
        else:
            self._choose_pid_namespace(plan.namespaces.get("pid", "host"), donors)

        beside = Beside(donors) if "user" in donors else None

        def become(stdio: Stdio | None, report: Report) -> NoReturn:
            if beside is not None:
                beside.pass_through()
            self._become(whole, donors, self._layers, stdio, report)

        spawned = spawn(
            become, terminal=process.tty, stdin=process.open_stdin, stdout=True, stderr=True,
            cgroup=version_two_cgroup(plan.cgroup.join), owner=owner,
            flags=CLONE_NEWUSER | CLONE_NEWPID if owner is not None and beside is None else 0,
        )  # fmt: skip
        if beside is not None:
            beside.follow(spawned)
        if owner is not None:
            try:
                set_up(whole_plan(whole), spawned, self._layers)
            except LaunchError:
                os.kill(spawned.pid, signals.SIGKILL)
                raise
        self._layers.close()
        for fd in donors.values():
            os.close(fd)
        main = self._main = Contained(self._loop, streams, spawned)
        main.on_namespaces = lambda: self._announce_child()
        main.on_started = self._started
        main.on_failed = self._fail
        main.on_warning = lambda text: self._warn(text)
        main.on_exit = self._main_exited
        main.on_ended = self._ended
        streams.on_detach = lambda: self._detached()
        streams.on_clients_gone = self._maybe_over
        main.connect()

    def _warn(self, text: str) -> None:
        self._say({"event": "warning", "message": text})

    def _ran_out_of_memory(self) -> None:
        assert self._ooms is not None
        self._say({"event": "oom", "ooms": self._ooms.count})

    def _detached(self) -> None:
        self._say({"event": "detached", "exec": ""})

    def _announce_child(self) -> None:
        assert self._main is not None
        self._say({"event": "child", "pid": self._main.pid})

    @staticmethod
    def _choose_pid_namespace(kind: str, donors: dict[str, int]) -> None:
        """What follows from this is for our children only: the container's first process and its execs."""
        try:
            if kind == "new":
                unshare(CLONE_NEWPID)
        except OSError as error:
            raise as_launch_error(error, "error creating namespaces") from error
        if "pid" in donors:
            enter.join_namespace(donors["pid"], CLONE_NEWPID, "pid", kind)

    def _started(self) -> None:
        assert self._main is not None
        self._state = "running"
        try:
            self._start_time = start_time(self._main.pid)
        except OSError:
            self._start_time = 0  # it has ended already, and its end follows
        self._say({"event": "started", "pid": self._main.pid, "start_time": self._start_time})
        memory.give_back()
        memory.let_go_of_instructions()

    def _fail(self, error: LaunchError) -> None:
        """Nothing of it may stay; ketchd sees by our end that this is so."""
        if self._streams is not None:
            self._streams.abandon()
        if self._listener is not None:
            self._listener.close()
        self._say({"event": "failed", "failed": error.to_wire()})
        self._loop.stop()

    def _main_exited(self) -> None:
        assert self._plan is not None
        if self._plan.namespaces.get("pid") != "new":
            cgroups.kill_all(self._plan.cgroup)
        if self._execs is not None:
            self._execs.kill_all()

    def _ended(self, code: int) -> None:
        """Recorded, told, then made durable: the disk is not waited for by whoever waits for the container.

        Nothing changes in the directory after ketchd was told, since ketchd may remove it at once.
        """
        assert self._ooms is not None and self._streams is not None and self._listener is not None
        self._state = "ended"
        finished = time.time_ns()
        ooms = self._ooms.end()
        if self._log is not None:
            self._log.close()
        try:
            exits.write_exit(
                self._state_fd, code, ooms, finished, self._execs.ended if self._execs is not None else {}
            )
        except OSError as error:
            self._warn(f"the exit record could not be written: {reason(error)}")
        self._exit = {"code": code, "oom": ooms > 0, "ooms": ooms, "finished_ns": finished}
        self._listener.close()
        self._let_go_of_ports()
        self._say({"event": "exit", **self._exit})
        self._streams.finish()
        exits.sync_exit(self._state_fd)
        self._maybe_over()

    def _maybe_over(self) -> None:
        """Nothing is left when the container has ended, its execs were seen, and every client has taken what is its."""
        if self._state != "ended" or self._streams is None or self._execs is None:
            return
        if not self._streams.has_clients and self._execs.are_over:
            self._loop.stop()
