"""What one command works with: the engine, the configuration file, and where it writes. Acting."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ketch import dockercontexts
from ketch.engine import Engine, Tls, tls_of_environment
from ketch.faults import CommandFailed, EngineAway
from ketch.hosts import parse_host

if TYPE_CHECKING:
    from ketch.contextstore import ContextStore, Stored
    from ketch.credentials import Auth, ConfigFile
    from ketch.options import Given

Act = Callable[[str], "str | None"]


class Session:
    """One run of the client. Made from the global options; everything dear is made when first asked for."""

    def __init__(
        self,
        host: str = "",
        config: str = "",
        context: str = "",
        *,
        tls: Callable[[str], Tls | None] = tls_of_environment,
        is_debugging: bool = False,
    ) -> None:
        self._host = host
        self._asked_context = context
        self.is_debugging = is_debugging
        self.config_directory = config or os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
        self._tls = tls
        self._engine: Engine | None = None
        self._config: ConfigFile | None = None

    @property
    def config(self) -> ConfigFile:
        """config.json, read once; one that cannot be read is said so, once."""
        if self._config is None:
            from ketch.credentials import ConfigFile

            self._config = ConfigFile.read(os.path.join(self.config_directory, "config.json"))
            if self._config.problem:
                self.warn(f"WARNING: {self._config.problem}")
        return self._config

    def auth_for(self, domain: str) -> Auth:
        """The credentials for a registry; none, and a warning, when they cannot be had: the registry may ask for none."""
        try:
            return self.config.auth_for(domain)
        except CommandFailed as error:
            self.warn(f"WARNING: {error.message}")
            return {}

    def all_auths(self) -> dict[str, Auth]:
        """The credentials of every registry; none, and a warning, when they cannot be had."""
        try:
            return self.config.all_auths()
        except CommandFailed as error:
            self.warn(f"WARNING: {error.message}")
            return {}

    @property
    def engine(self) -> Engine:
        """The engine that the context names; the default one is at KETCH_HOST, DOCKER_HOST or the default socket."""
        if self._engine is None:
            headers: dict[str, str] = {}
            if self._has_config():
                headers = self.config.http_headers
            name = self.context
            if name == dockercontexts.DEFAULT:
                host, tls = self._default_endpoint()
            else:
                host, tls = dockercontexts.endpoint(self.config_directory, name)
            self._engine = Engine(host, headers, tls)
        return self._engine

    @property
    def context(self) -> str:
        """The context's name. Raises CommandFailed for a context and a host together."""
        current = self.config.setting("currentContext") if self._has_config() else ""
        return dockercontexts.choose(self._asked_context, self._host, os.environ, current)

    @property
    def contexts(self) -> ContextStore:
        """The stored contexts; `default` is none of them."""
        from ketch.contextstore import ContextStore

        return ContextStore(self.config_directory)

    def read_context(self, name: str) -> Stored:
        """A stored context, or `default` as the options and the environment make it. Raises CommandFailed."""
        if name != dockercontexts.DEFAULT:
            return self.contexts.read(name)
        from ketch.contextstore import DOCKER, Stored

        host, tls = self._default_endpoint()
        files = {} if tls is None else tls.files()
        endpoint = {"Host": host, "SkipTLSVerify": tls is not None and not tls.verify}
        meta = {"Name": name, "Metadata": {}, "Endpoints": {DOCKER: endpoint}}
        return Stored(meta, {DOCKER: files} if files else {})

    def _default_endpoint(self) -> tuple[str, Tls | None]:
        tls = self._tls(self.config_directory)
        given = self._host or dockercontexts.host_of(os.environ)
        return parse_host(given, secure=tls is not None), tls

    def platform(self, given: Given) -> str:
        """`--platform`, or what DOCKER_DEFAULT_PLATFORM says."""
        return given.text("platform") or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")

    def _has_config(self) -> bool:
        return os.path.exists(os.path.join(self.config_directory, "config.json"))

    def say(self, text: str) -> None:
        """A line on standard output, at once."""
        self.write((text + "\n").encode("utf-8", "surrogateescape"))

    def write(self, content: bytes) -> None:
        """Bytes on standard output, at once."""
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()

    def warn(self, text: str) -> None:
        """A line on standard error."""
        sys.stderr.buffer.write((text + "\n").encode("utf-8", "surrogateescape"))
        sys.stderr.buffer.flush()


def each(session: Session, names: list[str], act: Act, *, together: bool = False) -> int:
    """Do `act` for every name, print the name, or what `act` returns, where it went well, every fault where not.

    `together`: at once, as many as the engine takes; what is printed keeps the order of the names. Returns 1 if any failed.
    """
    outcomes: Iterable[str | BaseException | None]
    if together and len(names) > 1:
        outcomes = _all_at_once(names, act, session.engine.most_at_once)
    else:
        outcomes = (_one(name, act) for name in names)
    failures = 0
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, EngineAway):
            raise outcome
        if isinstance(outcome, CommandFailed):
            session.warn(outcome.message)
            failures += 1
        elif isinstance(outcome, BaseException):
            raise outcome
        elif outcome != "":
            session.say(name if outcome is None else outcome)
    return 1 if failures else 0


def _one(name: str, act: Act) -> str | BaseException | None:
    try:
        return act(name)
    except BaseException as error:
        return error


def _all_at_once(names: list[str], act: Act, most: int) -> Iterator[str | BaseException | None]:
    """The outcomes in the order of the names, as soon as each is there."""
    import threading

    outcomes: dict[int, str | BaseException | None] = {}
    todo = list(enumerate(names))
    todo.reverse()
    done = threading.Condition()

    def work() -> None:
        while True:
            with done:
                if not todo:
                    return
                at, name = todo.pop()
            outcome = _one(name, act)
            with done:
                outcomes[at] = outcome
                done.notify()

    for _ in range(min(len(names), most)):
        threading.Thread(target=work, daemon=True).start()
    for at in range(len(names)):
        with done:
            while at not in outcomes:
                done.wait()
        yield outcomes[at]
