"""ContainerRecord: what the catalogue keeps of one container, and how it is stored."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ketchd.containers.lifecycle import State
from ketchd.model.digest import Digest


def new_id() -> str:
    """64 random hex digits: the name of a container, an exec or an endpoint."""
    return secrets.token_hex(32)


@dataclass(slots=True)
class ContainerRecord:
    """One container. `config` and `host_config` are Docker's shapes, complete and normalised (every key present).

    state is the observed one; stopped_by_hand and started_once are what is wanted of it across a restart of ketchd.
    pid and start_time (clock ticks since boot, /proc/PID/stat field 22) name a process only together; 0 when not running.
    exit_code None while running means unknown; the API prints 255 for an end that nobody saw.
    health: State.Health as inspect shows it, None without a health check. layers: diff IDs base first. networking: wanted endpoints (see `endpoints`). endpoint: the lease on the first network while it
    runs, endpoints: those on further ones, as `network.leases` stores them. Times: ns since the epoch.
    links: to other containers on the default bridge, see `links`. ooms: how often memory ran out this run, as far as it was told.
    paused_for_commit: the pause, if it is one, is that of a commit and ends with it, or with the ketchd that made it.
    """

    id: str
    name: str
    image_id: str
    image_name: str
    created_ns: int
    config: dict[str, Any]
    host_config: dict[str, Any]
    networking: dict[str, Any]
    layers: list[str]
    path: str
    args: list[str]
    mounts: list[dict[str, Any]] = field(default_factory=list)
    state: State = State.CREATED
    before_start: State = State.CREATED
    pid: int = 0
    start_time: int = 0
    exit_code: int | None = 0
    error: str = ""
    oom_killed: bool = False
    ooms: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    restart_count: int = 0
    stopped_by_hand: bool = False
    started_once: bool = False
    endpoint: dict[str, Any] | None = None
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    published: list[dict[str, Any]] = field(default_factory=list)
    health: dict[str, Any] | None = None
    links: list[dict[str, str]] = field(default_factory=list)
    paused_for_commit: bool = False

    @property
    def short(self) -> str:
        """The first 12 digits of the id."""
        return self.id[:12]

    @property
    def is_running(self) -> bool:
        """As the API says Running: a paused container counts, and one that is to be started again or is just being so."""
        return self.shown_state in (State.RUNNING, State.PAUSED, State.RESTARTING)

    @property
    def has_process(self) -> bool:
        """Whether there is a PID 1."""
        return self.state in (State.RUNNING, State.PAUSED)

    @property
    def shown_state(self) -> State:
        """The state as a client may see it."""
        return self.before_start if self.state is State.STARTING else self.state

    @property
    def after_failed_start(self) -> State:
        """Where a start that came to nothing leads back to."""
        return State.EXITED if self.before_start is State.RESTARTING else self.before_start

    @property
    def diff_ids(self) -> list[Digest]:
        """The image's layers, base first."""
        return [Digest(text) for text in self.layers]

    @property
    def auto_remove(self) -> bool:
        """`--rm`."""
        return bool(self.host_config["AutoRemove"])

    def to_json(self) -> str:
        """For the catalogue."""
        stored = asdict(self)
        stored["state"], stored["before_start"] = self.state.value, self.before_start.value
        return json.dumps(stored, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> ContainerRecord:
        """The record again; fields that an older ketchd did not write get their defaults."""
        stored = json.loads(text)
        known = {entry.name for entry in fields(ContainerRecord)}
        values = {key: value for key, value in stored.items() if key in known}
        values["state"], values["before_start"] = State(stored["state"]), State(stored["before_start"])
        return ContainerRecord(**values)
