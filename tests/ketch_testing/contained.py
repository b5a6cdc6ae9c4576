"""Contained processes for tests: a busybox layer, plans, a launcher of one's own, and the proof that nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from ketch_wire.launch import LaunchPlan, LayerMount, LogPlan, ProcessPlan, RootPlan
from ketch_wire.shim import ExecPlan
from ketch_wire.stdcopy import StreamReader
from ketchd.containers.record import new_id
from ketchd.containers.shims import ClientStream, ExitRecord, Shims
from ketchd.containers.shims import ShimLink as Link
from ketchd.kernel.cgroups import Cgroups
from ketchd.sandbox import defaults, seccomp
from ketchd.shim.launcher import Launcher, start_launcher

APPLETS = [
    "sh",
    "ash",
    "echo",
    "cat",
    "ls",
    "true",
    "false",
    "sleep",
    "id",
    "env",
    "pwd",
    "touch",
    "mkdir",
    "rm",
    "cp",
    "mv",
    "ln",
    "chmod",
    "chown",
    "head",
    "tail",
    "grep",
    "sed",
    "wc",
    "date",
    "hostname",
    "ip",
    "ps",
    "kill",
    "mount",
    "umount",
    "dd",
    "seq",
    "yes",
    "test",
    "stat",
    "readlink",
    "uname",
    "tty",
    "stty",
    "printf",
    "trap",
    "kill",
    "usleep",
    "mknod",
    "ulimit",
    "ipcs",
    "sysctl",
    "nproc",
    "cut",
    "tr",
    "sort",
    "awk",
    "find",
    "xargs",
    "od",
    "tee",
    "sync",
    "mkfifo",
    "setsid",
    "nohup",
]
PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:a user:/home/user:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
GROUP = "root:x:0:\nuser:x:1000:\nextra:x:2000:user\nmore:x:2001:other,user\nstaff:x:50:\n"
SECONDS = 30.0
ALL_NEW = {kind: "new" for kind in ("mount", "pid", "network", "uts", "ipc", "cgroup")}


class Log:
    """structlog's interface, remembering."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        def note(event: str, **values: Any) -> None:
            self.lines.append((level, event, values))

        return note


def busybox_layer(root: Path) -> Path:
    """A root directory of one static busybox."""
    for name in ("bin", "etc", "tmp", "root", "home/user", "proc", "sys", "dev", "var"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in dict.fromkeys(APPLETS):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    os.chown(root / "home/user", 1000, 1000)
    return root


class Contained:
    """A launcher, shims and plans below one directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.layer = busybox_layer(base / "layer")
        self.log = Log()
        self.launcher: Launcher = start_launcher(base)
        self.cgroups = Cgroups.detect(self.log)
        self.exec_exits: list[tuple[str, str, int]] = []
        self.detached: list[tuple[str, str]] = []
        self.plans: list[LaunchPlan] = []
        self.pids: list[int] = []
        self.shims = self.new_shims()

    def new_shims(self) -> Shims:
        """As another ketchd would have them."""
        return Shims(
            self.launcher, self.base / "run", self.log,
            lambda *told: self.exec_exits.append(told), lambda *told: self.detached.append(told),
        )  # fmt: skip

    def plan(
        self, *argv: str, layers: tuple[Path, ...] = (), cgroup: bool = True, **given: Any
    ) -> LaunchPlan:
        """A plan with Docker's defaults. Fields of ProcessPlan and of LaunchPlan by name; `host`: a HostConfig for the cgroup."""
        container = new_id()
        state, run = self.base / "state" / container, self.base / "run" / container
        for directory in (state / "upper", state / "work", run):
            directory.mkdir(parents=True)
        process = {key: given.pop(key) for key in list(given) if key in ProcessPlan.__dataclass_fields__}
        process.setdefault("env", ("PATH=/bin:/sbin",))
        process.setdefault("capabilities", defaults.DEFAULT_CAPABILITIES)
        process.setdefault("seccomp", seccomp.default_program(process["capabilities"]))
        host = given.pop("host", {})
        planned = self.cgroups.plan(container, "ketch-tests", host) if cgroup else None
        given.setdefault("namespaces", ALL_NEW)
        given.setdefault("hostname", container[:12])
        given.setdefault("mounts", self.mounts(planned.join if planned else ()))
        given.setdefault("devices", defaults.DEFAULT_DEVICES)
        given.setdefault("masked_paths", defaults.MASKED_PATHS)
        given.setdefault("readonly_paths", defaults.READONLY_PATHS)
        given.setdefault("log", LogPlan(path=str(state / "json.log")))
        if planned:
            given.setdefault("cgroup", planned)
        readonly = given.pop("readonly", False)
        chain = tuple(LayerMount("directory", str(path)) for path in (*layers, self.layer))
        made = LaunchPlan(
            id=container, root=RootPlan(chain, str(state / "upper"), str(state / "work"), readonly),
            process=ProcessPlan(argv=argv, **process), run_dir=str(run), state_dir=str(state), **given,
        )  # fmt: skip
        self.plans.append(made)
        return made

    def mounts(self, join: tuple[str, ...] = ()) -> Any:
        """Docker's default mounts."""
        return defaults.default_mounts(
            privileged=False, shm_size=1 << 20, ipc_mode="private", cgroup_version=self.cgroups.version,
            shm_source="", cgroup_join=join,
        )  # fmt: skip

    async def start(self, plan: LaunchPlan, *streams: ClientStream, **given: Any) -> Link:
        """Start it."""
        given.setdefault("on_pid", _nothing)
        given.setdefault("port_fds", [])
        link = await asyncio.wait_for(self.shims.start(plan, attachments=list(streams), **given), SECONDS)
        self.pids.append(link.pid)
        return link

    async def run(self, *argv: str, **given: Any) -> tuple[int, str]:
        """Run it to its end: (exit code, its output as logged, both streams)."""
        plan = self.plan(*argv, **given)
        link = await self.start(plan)
        ended = await self.end(link)
        assert ended is not None
        return ended.code, self.logged(plan)

    async def end(self, link: Link) -> ExitRecord | None:
        """Its end, and the shim's."""
        ended = await asyncio.wait_for(link.wait(), SECONDS)
        await link.gone()
        return ended

    def entries(self, plan: LaunchPlan) -> list[dict[str, str]]:
        """What lies in its log, oldest first."""
        path = Path(plan.log.path)
        older = sorted(path.parent.glob(path.name + ".*"), key=lambda one: -int(one.suffix[1:]))
        found = [*older, *([path] if path.exists() else [])]
        return [json.loads(line) for one in found for line in one.read_bytes().splitlines()]

    def logged(self, plan: LaunchPlan, stream: str = "") -> str:
        """The text in its log."""
        return "".join(one["log"] for one in self.entries(plan) if not stream or one["stream"] == stream)

    def exec_plan(self, *argv: str, **given: Any) -> ExecPlan:
        """An exec with the same defaults."""
        given.setdefault("env", ("PATH=/bin:/sbin",))
        given.setdefault("capabilities", defaults.DEFAULT_CAPABILITIES)
        given.setdefault("seccomp", seccomp.default_program(given["capabilities"]))
        return ExecPlan(new_id(), ProcessPlan(argv=argv, stdin_once=True, **given))

    async def execute(self, link: Link, *argv: str, **given: Any) -> tuple[int, bytes]:
        """An exec to its end: (exit code, standard output)."""
        plan = self.exec_plan(*argv, **given)
        client, stream = attached(multiplexed=False)
        with client:
            await link.exec_start(plan.id, plan, stream)
            output = await read_all(client)
        codes = [code for _, exec_id, code in self.exec_exits if exec_id == plan.id]
        assert codes, "the stream closed before the exit was told"
        return codes[0], output

    def leftovers(self) -> list[str]:
        """What a clean end must not leave."""
        needle = str(self.base).encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) not in (os.getpid(), self.launcher_pid):
                with contextlib.suppress(OSError):
                    if needle in Path(f"/proc/{entry}/cmdline").read_bytes():
                        found.append(f"process {entry}")
        found += [
            f"process {pid}"
            for pid in self.pids
            if Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) and _state(pid)
        ]
        found += [
            line.split()[1]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if str(self.base) in line
        ]
        found += [str(path) for path in (self.base / "run").glob("*/shim.sock")]
        return found

    @property
    def launcher_pid(self) -> int:
        """The launcher's, 0 when it has ended."""
        try:
            return self.launcher.pid
        except AssertionError:
            return 0

    async def close(self) -> None:
        """End everything and delete the directories."""
        await self.shims.close()
        self.launcher.close()
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    if str(self.base).encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                        os.kill(int(entry), signal.SIGKILL)
        for plan in self.plans:
            self.cgroups.remove(plan.id)
        self.cgroups.close()
        shutil.rmtree(self.base, ignore_errors=True)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


async def _nothing(pid: int, network_pid: int) -> None:
    """No network to configure."""


def attached(
    *, stdin: bool = False, stdout: bool = True, stderr: bool = True, multiplexed: bool = True,
    detach_keys: bytes = b"", initial: bytes = b"",
) -> tuple[socket.socket, ClientStream]:  # fmt: skip
    """(a client's socket, the stream to hand over)."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, ClientStream(theirs.detach(), stdin, stdout, stderr, multiplexed, detach_keys, initial)


async def read_all(client: socket.socket) -> bytes:
    """Until the shim closes."""
    loop, parts = asyncio.get_running_loop(), []
    while part := await asyncio.wait_for(loop.sock_recv(client, 1 << 18), SECONDS):
        parts.append(part)
    return b"".join(parts)


async def read_until(client: socket.socket, text: bytes) -> bytes:
    """Until `text` has come."""
    loop, got = asyncio.get_running_loop(), b""
    while text not in got:
        part = await asyncio.wait_for(loop.sock_recv(client, 1 << 18), SECONDS)
        assert part, f"ended before {text!r}: {got!r}"
        got += part
    return got


def split_frames(data: bytes) -> dict[int, bytes]:
    """A multiplexed stream by stream number."""
    parts: dict[int, bytes] = {}
    for frame in StreamReader().feed(data):
        parts[frame.stream] = parts.get(frame.stream, b"") + frame.payload
    return parts


def layer(box: Contained, make: Callable[[Path], object]) -> Path:
    """One more layer on top, made by `make`."""
    top = box.base / f"top{len(box.plans)}"
    top.mkdir()
    make(top)
    return top


def replaced_by_link(name: str, target: str) -> Callable[[Path], object]:
    """`name` is a symbolic link in this layer."""
    return lambda top: (top / name).symlink_to(target)


def has_ended(pid: int) -> bool:
    """Whether it runs no more; one that nobody has waited for yet (where PID 1 is no init) has ended too."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


async def until(condition: Any) -> None:
    """Until `condition()` holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  (the kernel raises no asyncio.Event)
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory for one Contained."""
    made = Path(tempfile.mkdtemp(prefix="ketch-shim-", dir=os.environ.get("KETCH_TEST_DIR")))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


async def contained_here() -> AsyncIterator[Contained]:
    """The fixture's body: fails when something stays."""
    with directory() as base:
        made = Contained(base)
        try:
            yield made
            for plan in made.plans:
                made.cgroups.remove(plan.id)
            left: list[str] = []
            with contextlib.suppress(TimeoutError):
                await until(lambda: not made.leftovers())
            left = made.leftovers()
        finally:
            await made.close()
        assert left == []
