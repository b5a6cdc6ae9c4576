"""What one command works with: the engine, the configuration file, and where it writes. Acting."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ketch.engine import Engine

if TYPE_CHECKING:
    from ketch.credentials import ConfigFile


class Session:
    """One run of the client. Made from the global options; everything dear is made when first asked for."""

    def __init__(self, host: str = "", config: str = "") -> None:
        self._host = host
        self.config_directory = config or os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
        self._engine: Engine | None = None
        self._config: ConfigFile | None = None

    @property
    def config(self) -> ConfigFile:
        """config.json, read once."""
        if self._config is None:
            from ketch.credentials import ConfigFile

            self._config = ConfigFile.read(os.path.join(self.config_directory, "config.json"))
        return self._config

    @property
    def engine(self) -> Engine:
        """The engine that the options, KETCH_HOST or DOCKER_HOST name, else the one at the default socket."""
        if self._engine is None:
            host = self._host or os.environ.get("KETCH_HOST", "") or os.environ.get("DOCKER_HOST", "")
            headers: dict[str, str] = {}
            if os.path.exists(os.path.join(self.config_directory, "config.json")):
                headers = self.config.http_headers
            self._engine = Engine(host, headers)
        return self._engine

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


def each(session: Session, names: list[str], act: object) -> int:
    """Do `act` for every name, print the name where it went well, every fault where not; 1 if any failed."""
    from collections.abc import Callable
    from typing import cast

    from ketch.faults import CommandFailed, EngineAway

    failures = 0
    for name in names:
        try:
            said = cast("Callable[[str], str | None]", act)(name)
        except EngineAway:
            raise
        except CommandFailed as error:
            session.warn(error.message)
            failures += 1
        else:
            session.say(name if said is None else said)
    return 1 if failures else 0
