"""ketchd as a process: its directories, its lock and pidfile, its sockets, its signals, and the order of start and end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import grp
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ketch_wire.faults import EngineFailure, Fault
from ketchd import journal
from ketchd.config import Config
from ketchd.ignored import ignored_because
from ketchd.kernel import memory
from ketchd.kernel.cgrouphost import own_path, read_mountinfo
from ketchd.kernel.cgrouptree import read
from ketchd.listening import open_doors
from ketchd.reloading import compare
from ketchd.shim.launcher import Launcher, start_launcher
from ketchd.shim.scope import scope_beside

if TYPE_CHECKING:
    from ketchd.assembly import Engine

# Memory is given back at a pause: so many seconds in which less than this share of a core was used, after so much work.
_PAUSE, _RESTING, _WORTH_IT = 5.0, 0.05, 0.2

# What a data root of ours has, and what a file system puts there.
_DIRECTORIES = {
    "blobs", "cachemounts", "containers", "init", "layers", "partial", "running", "stage", "trash", "volumes", "lost+found",
}  # fmt: skip


class Process:
    """One run of ketchd. `run` returns when it was told to end; containers run on unless `live-restore` is false.

    read_again: the settings as flags and configuration file say them now; raises InvalidInput.
    """

    def __init__(self, config: Config, read_again: Callable[[], Config]) -> None:
        self._config = config
        self._read_again = read_again
        self._data_root = Path(os.path.abspath(config.data_root))
        self._exec_root = Path(os.path.abspath(config.exec_root))
        self._locks: list[int] = []
        self._socket_files: list[str] = []

    def run(self) -> int:
        """The whole life. Raises EngineFailure when something needed is taken."""
        os.umask(0o022)
        self._take_roots()
        self._write_pidfile()
        self._use_proxies()
        try:
            launcher = start_launcher(self._exec_root, house)
            try:
                return asyncio.run(self._serve(launcher))
            finally:
                launcher.close()
        finally:
            Path(self._config.pidfile).unlink(missing_ok=True)
            for lock in self._locks:
                os.close(lock)

    def _use_proxies(self) -> None:
        """What is set goes before the environment, for registries, `ADD` of URLs and imports alike. As dockerd does."""
        config = self._config
        for name, value in (
            ("HTTP_PROXY", config.http_proxy),
            ("HTTPS_PROXY", config.https_proxy),
            ("NO_PROXY", config.no_proxy),
        ):
            if value:
                os.environ.pop(name.lower(), None)
                os.environ[name] = value

    def _take_roots(self) -> None:
        """Make the directories and hold both against a second daemon: the exec root has the launcher's and the shims' sockets."""
        _refuse_anothers(self._data_root, (self._exec_root, Path(os.path.abspath(self._config.pidfile))))
        roots = {self._data_root: 0o710}
        roots.setdefault(self._exec_root, 0o711)
        for directory, mode in roots.items():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                directory.chmod(mode)
            except OSError as error:
                raise EngineFailure(f"cannot use {error.filename or directory}: {_reason(error)}") from error
            self._hold(directory / "ketchd.lock", 0o600, f"is using {directory}")

    def _write_pidfile(self) -> None:
        """Its own file: a second daemon must not take away, at its end, the one that tells of the first."""
        path = Path(self._config.pidfile)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineFailure(f"cannot write pidfile {path}: {_reason(error)}") from error
        self._hold(path, 0o644, f"has the pidfile {path}")

    def _hold(self, path: Path, mode: int, how: str) -> None:
        """Lock a file for this process's life and write our pid into it. Raises EngineFailure. Nothing is held by a dead one."""
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        except OSError as error:
            raise EngineFailure(f"cannot use {path}: {_reason(error)}") from error
        self._locks.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise EngineFailure(f"another ketchd (pid {holder or 'unknown'}) {how}") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    async def _serve(self, launcher: Launcher) -> int:
        from ketchd.assembly import Engine  # imported when the launcher is running: it is most of the start

        log = journal.configure(self._config.effective_log_level, self._config.log_format)
        _tell_ignored(log, self._config.ignored)
        for warning in open_doors(self._config.hosts, tls=self._config.tls, verified=self._config.tlsverify):
            log.warning(warning.partition("\n")[0].removeprefix("WARNING: "))
        ending, hangup = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
        engine = Engine(self._config, self._data_root, self._exec_root, launcher, log)
        sockets: list[socket.socket] = []
        try:
            await engine.start()
            sockets = self._listen()
            await engine.open(sockets, self._tls())
            reloads = asyncio.ensure_future(self._reload_at(hangup, engine, log))
            notify("READY=1")
            log.info("ready", hosts=self._config.hosts, pid=os.getpid())
            await engine.start_by_policy()
            gc.collect()
            gc.freeze()  # what the start has made stays to the end: no collection need look at it again
            thrift = asyncio.ensure_future(_give_memory_back())
            await ending.wait()
            thrift.cancel()
            reloads.cancel()
            notify("STOPPING=1")
            log.info("ending", containers="run on" if self._config.live_restore else "are stopped")
        finally:
            await engine.close(stop_containers=ending.is_set() and not self._config.live_restore)
            for path in self._socket_files:
                Path(path).unlink(missing_ok=True)
            for listener in sockets:
                listener.close()
        return 0

    async def _reload_at(self, hangup: asyncio.Event, engine: Engine, log: Any) -> None:
        """Each SIGHUP, and one that came before the door was open: the settings are read again. Without an end."""
        while True:
            await hangup.wait()
            hangup.clear()
            self._reload(engine, log)

    def _reload(self, engine: Engine, log: Any) -> None:
        """All or nothing: what is wrong is one line in the log."""
        log.info("got signal to reload configuration")
        try:
            reload = compare(self._config, self._read_again())
            engine.reload(reload.config)
        except Fault as fault:
            log.error("configuration is not reloaded, nothing has changed", reason=fault.message)
            return
        self._config = reload.config
        journal.set_level(reload.config.effective_log_level)
        _tell_ignored(log, reload.ignored)
        if reload.waiting:
            log.warning("settings have changed that need a restart", settings=", ".join(reload.waiting))
        log.info("reloaded configuration", changed=", ".join(reload.changed) or "nothing")

    def _listen(self) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        try:
            for host in self._config.hosts:
                scheme, _, place = host.partition("://")
                if scheme == "unix":
                    sockets.append(self._listen_unix(place))
                elif scheme == "tcp":
                    sockets.append(_listen_tcp(place))
                else:
                    sockets += _inherited(place)
        except BaseException:
            for one in sockets:
                one.close()
            raise
        return sockets

    def _listen_unix(self, path: str) -> socket.socket:
        """A socket file of mode 0660 and the configured group; a dead daemon's file is replaced, a live one's refused."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise EngineFailure(f"cannot listen on unix://{path}: another daemon answers there")
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).unlink(missing_ok=True)
            before = os.umask(0o777)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            with contextlib.suppress(KeyError):  # without the group only root may connect, as in dockerd
                os.chown(path, 0, grp.getgrnam(self._config.group).gr_gid)
            os.chmod(path, 0o660)
            listener.listen(1024)
            self._socket_files.append(path)
        except OSError as error:
            listener.close()
            raise EngineFailure(f"cannot listen on unix://{path}: {_reason(error)}") from error
        except BaseException:
            listener.close()
            raise
        return listener

    def _tls(self) -> ssl.SSLContext | None:
        """TLS of the TCP sockets. Raises EngineFailure."""
        config = self._config
        if not config.tls:
            return None
        if config.tlsverify and not config.tlscacert:
            raise EngineFailure(
                "cannot set up TLS: clients cannot be verified without tlscacert (tlsverify=false lets everybody in)"
            )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(config.tlscert, config.tlskey)
            if config.tlsverify:
                context.load_verify_locations(config.tlscacert)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise EngineFailure(f"cannot set up TLS: {error}") from error
        return context


def _refuse_anothers(data_root: Path, ours: Iterable[Path]) -> None:
    """Raises EngineFailure for a data root that another engine uses: a start removes what our catalogue does not own in `containers`,
    and dockerd has a directory of that name too. Directories that we never make, and no catalogue, tell.

    ours: what may lie in it because the settings say so.
    """
    expected = _DIRECTORIES.union(
        *(path.relative_to(data_root).parts[:1] for path in ours if path.is_relative_to(data_root))
    )
    try:
        found = sorted(path.name for path in data_root.iterdir() if path.is_dir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise EngineFailure(f"cannot use {data_root}: {_reason(error)}") from error
    others = [name for name in found if name not in expected]
    if others and not (data_root / "catalogue.sqlite").exists():
        raise EngineFailure(
            f"{data_root} is not ketch's: it has {', '.join(others[:4])} and no catalogue; give ketchd a data root of its own"
        )


def _tell_ignored(log: Any, names: Iterable[str]) -> None:
    for name in names:
        log.warning("setting is known and ignored", setting=name, reason=ignored_because(name))


def _listen_tcp(place: str) -> socket.socket:
    address, _, port = place.rpartition(":")
    try:
        return socket.create_server(
            (address.strip("[]"), int(port)),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            backlog=1024,
        )
    except OSError as error:
        raise EngineFailure(f"cannot listen on tcp://{place}: {_reason(error)}") from error


def _inherited(number: str) -> list[socket.socket]:
    """systemd's sockets, or only the one of that number. Raises EngineFailure. Source: sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not os.environ.get("LISTEN_FDS", "").isdigit():
        raise EngineFailure(
            "no sockets found via socket activation: make sure the service was started by systemd"
        )
    numbers = range(3, 3 + int(os.environ["LISTEN_FDS"]))
    if number and int(number) not in numbers:
        raise EngineFailure("too few socket activated files passed in by systemd")
    for each in numbers:
        os.set_inheritable(each, False)
    return [socket.socket(fileno=each) for each in numbers if not number or each == int(number)]


def house(launcher: int) -> None:
    """Give the launcher process, and with it all shims, a unit of their own where ketchd is a service of systemd.

    Where that fails they stay with ketchd, and are ended by what ends every process of its service.
    """
    mounted = read_mountinfo(read("/proc/self/mountinfo"))
    scope = scope_beside(os.environ, os.getpid(), mounted, own_path(read("/proc/self/cgroup")))
    if scope is None:
        return
    try:
        scope.house(launcher)
    except OSError as error:
        print(f"ketchd: containers stay in the cgroup of {scope.service}: {error}", file=sys.stderr)


def notify(state: str) -> None:
    """Tell the service manager, if there is one. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        try:
            link.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            print(f"ketchd: sd_notify: {error}", file=sys.stderr)


async def _give_memory_back() -> None:
    """After the start, and whenever the daemon rests after work: the C library keeps megabytes of what was freed.

    So do the instructions of libraries that were run once: they come back from the page cache as they are needed.
    """
    worked_at_last, given_back_at = 0.0, -1.0
    while True:
        worked = time.process_time()
        rests = worked - worked_at_last < _RESTING * _PAUSE
        if given_back_at < 0 or (rests and worked - given_back_at > _WORTH_IT):
            gc.collect()
            memory.give_back()
            memory.note_instructions()
            memory.let_go_of_instructions()
            given_back_at = worked
        worked_at_last = worked
        await asyncio.sleep(_PAUSE)


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "address already in use"
    return (error.strerror or str(error)).lower()
