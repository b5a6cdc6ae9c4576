"""An engine behind ssh: `ssh://[USER@]HOST[:PORT][/SOCKET]` becomes a process of ssh whose standard streams are the connection. Acting.

On the other side runs `ketch system dial-stdio`, or docker's where there is no ketch. ssh has the user's configuration, agent,
known hosts and prompts. Source: docker/cli cli/connhelper, cli/connhelper/commandconn.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ketch.faults import CommandFailed, EngineAway

# What a connection's Host header says, as with docker: ssh knows where it goes.
HOST_HEADER = "docker.example.com"
MISSING = "neither ketch nor docker is installed there"
# After the stream has ended, ssh has this long to say why.
LAST_WORDS_SECONDS = 10.0
KEPT_BYTES = 64 * 1024

# The keys that stop or end a program are meant for us: ssh, which shares our terminal for its prompts, goes on without them.
_DEAF = 'trap "" INT QUIT TSTP; exec ssh "$@"'


class Target(NamedTuple):
    """Where ssh goes. port: empty for ssh's own choice. path: the engine's socket there, empty for its default."""

    user: str
    host: str
    port: str
    path: str

    def arguments(self) -> list[str]:
        """What stands behind `ssh`. The whole search is one command, so that it costs one connection."""
        options = ["-o", "ConnectTimeout=30", "-T"]
        if self.user:
            options += ["-l", self.user]
        if self.port:
            options += ["-p", self.port]
        words = ["system", "dial-stdio"]
        if self.path:
            words = ["--host", f"unix://{self.path}", *words]
        typed = shlex.join(words)
        script = (
            f"for c in ketch docker; do command -v $c >/dev/null 2>&1 && exec $c {typed}; done; "
            f"echo {shlex.quote(MISSING)} >&2; exit 127"
        )
        # The user's shell there may be any; `sh` is everywhere.
        return [*options, "--", self.host, f"exec sh -c {shlex.quote(script)}"]


def parse(address: str) -> Target:
    """The target that an `ssh://` address names. Raises CommandFailed in docker's words. Pure."""
    try:
        found = urlsplit(address)
        port = str(found.port) if found.port is not None else ""
    except ValueError as error:
        typed = address.partition("://")[2].partition("/")[0].rpartition(":")[2]
        wrong = "missing ']' in host" if "IPv6" in str(error) else f'invalid port ":{typed}" after host'
        raise CommandFailed(f'parse "{address}": {wrong}') from error
    if found.password is not None:
        raise _invalid("plain-text password is not supported")
    if not found.hostname:
        raise _invalid("hostname is empty")
    if found.query:
        raise _invalid(f'query parameters are not allowed: "{found.query}"')
    if found.fragment:
        raise _invalid(f'fragments are not allowed: "{found.fragment}"')
    # urlsplit makes small letters of a host; ssh's configuration may know a name in large ones.
    place = found.netloc.rpartition("@")[2]
    host = place[1 : place.index("]")] if place.startswith("[") else place.partition(":")[0]
    return Target(unquote(found.username or ""), unquote(host), port, unquote(found.path).rstrip("/"))


def _invalid(reason: str) -> CommandFailed:
    return CommandFailed(f"ssh host connection is not valid: invalid SSH URL: {reason}")


class SshLink(socket.socket):
    """One connection: a socket whose other end is ssh's standard input and output. Closing it ends ssh.

    Half-closing it is the end of ssh's input, which goes through to the engine.
    """

    __slots__ = ("_process", "_said")

    def start(self, arguments: list[str], theirs: socket.socket) -> None:
        """Run ssh on the other end of this socket. What it says on standard error is kept until somebody asks."""
        self._said = os.memfd_create("ssh", os.MFD_CLOEXEC)
        self._process = subprocess.Popen(
            ["sh", "-c", _DEAF, "ssh", *arguments],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=self._said,
        )
        _alive.add(self._process)

    def close(self) -> None:
        """May be called twice."""
        super().close()
        process = getattr(self, "_process", None)
        if process is None or process not in _alive:
            return
        _end(process)
        os.close(self._said)

    def last_words(self) -> tuple[int, str]:
        """ssh's exit code and what it said, after the stream has ended; it is ended if it goes on."""
        try:
            code = self._process.wait(LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        length = os.fstat(self._said).st_size
        said = os.pread(self._said, KEPT_BYTES, max(0, length - KEPT_BYTES))
        return code, said.decode("utf-8", "replace")


_alive: set[subprocess.Popen[bytes]] = set()


def dial(address: str) -> SshLink:
    """A connection to the engine that `address` names; what is wrong shows when it is used. Raises CommandFailed, EngineAway."""
    try:
        target = parse(address)
    except CommandFailed as error:
        raise CommandFailed(f"Failed to initialize: {error.message}") from error
    if shutil.which("ssh") is None:
        raise EngineAway(f"error during connect: {address}: ssh is not installed (openssh-client)")
    _end_ssh_with_us()
    ours, theirs = socket.socketpair()
    link = SshLink(fileno=ours.detach())
    with theirs:
        try:
            link.start(target.arguments(), theirs)
        except BaseException:
            link.close()
            raise
    return link


def explain(address: str, code: int, said: str, otherwise: str) -> str:
    """One line for a connection that ended before an answer came; `otherwise`: what is known without ssh's words. Pure."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1].rstrip(".") if lines else ""
    if reason == "Host key verification failed":
        known = parse(address)
        name = f"[{known.host}]:{known.port}" if known.port not in ("", "22") else known.host
        if any("IDENTIFICATION HAS CHANGED" in line for line in lines):
            reason += f": the key of {name} has changed; if that is right, ssh-keygen -R '{name}'"
        elif any("key is known for" in line for line in lines):
            reason += f": the key of {name} is not known; log in once with ssh"
    elif not reason:
        reason = otherwise if code in (0, 255) else f"{otherwise} (exit status {code})"
    return f"error during connect: {address}: {re.sub('^ssh: ', '', reason)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    _alive.discard(process)
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_all() -> None:
    for process in list(_alive):
        _end(process)


def _end_ssh_with_us() -> None:
    """However we end but by SIGKILL, ssh ends: nobody else would tell it, while the engine has nothing to send."""
    atexit.unregister(_end_all)
    atexit.register(_end_all)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda number, _: sys.exit(128 + number))
