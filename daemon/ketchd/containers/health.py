"""Health checks: what is probed, when, and what a result means. Pure: time and results are passed in.

A health check is Docker's (Config.Healthcheck: a command) or one of ours, which needs no process: a label
`ketch.health.http=http://:8080/path` or `ketch.health.tcp=:8080`, tried from inside the container's network namespace with the
timing of Config.Healthcheck. The label `ketch.health.on-unhealthy=none|restart|stop` says what follows.
Source: moby daemon/health.go; Engine API 1.50, HealthConfig and Health.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.model.times import rfc3339

HTTP_LABEL, TCP_LABEL = "ketch.health.http", "ketch.health.tcp"
ON_UNHEALTHY_LABEL = "ketch.health.on-unhealthy"

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
KEPT_RESULTS, KEPT_OUTPUT = 5, 4096
_SECOND = 1_000_000_000
INTERVAL_NS, TIMEOUT_NS, START_INTERVAL_NS, RETRIES = 30 * _SECOND, 30 * _SECOND, 5 * _SECOND, 3

_HTTP = re.compile(r"http://(\[[0-9a-fA-F:.]+\]|[0-9.]*|localhost):?([0-9]*)(/[!-~]*)?")
_TCP = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9.]*|localhost):([0-9]+)")


@dataclass(frozen=True, slots=True)
class HealthPlan:
    """kind: `exec`, `http` or `tcp`. argv for exec; host (an IP address), port and path for the others. Times in ns."""

    kind: str
    argv: tuple[str, ...] = ()
    host: str = ""
    port: int = 0
    path: str = ""
    interval_ns: int = INTERVAL_NS
    timeout_ns: int = TIMEOUT_NS
    start_period_ns: int = 0
    start_interval_ns: int = START_INTERVAL_NS
    retries: int = RETRIES
    on_unhealthy: str = "none"


@dataclass(frozen=True, slots=True)
class Result:
    """One probe. exit_code: 0 well, -1 it could not be made or took too long. Times in ns since the epoch."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str

    def shown(self) -> dict[str, Any]:
        """As inspect's Log has it."""
        return {
            "Start": rfc3339(self.start_ns), "End": rfc3339(self.end_ns), "ExitCode": self.exit_code,
            "Output": self.output,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a container's health. log: the last results as shown, oldest first."""

    status: str = STARTING
    failing_streak: int = 0
    log: tuple[dict[str, Any], ...] = field(default=())

    def shown(self) -> dict[str, Any]:
        """Inspect's State.Health, and the form in which a record keeps it."""
        return {"Status": self.status, "FailingStreak": self.failing_streak, "Log": list(self.log)}

    @staticmethod
    def from_record(stored: Mapping[str, Any] | None) -> Health | None:
        """What `shown` gave."""
        if stored is None:
            return None
        return Health(stored["Status"], stored["FailingStreak"], tuple(stored["Log"]))


def read_plan(config: Mapping[str, Any]) -> HealthPlan | None:
    """The health check of a container's Config; None for none. Raises InvalidInput for a label that makes no sense."""
    settings: Mapping[str, Any] = config["Healthcheck"] or {}
    labels: Mapping[str, str] = config["Labels"] or {}
    test = settings.get("Test") or []
    if test[:1] == ["NONE"]:
        return None
    timing = HealthPlan(
        "exec",
        interval_ns=settings.get("Interval") or INTERVAL_NS,
        timeout_ns=settings.get("Timeout") or TIMEOUT_NS,
        start_period_ns=settings.get("StartPeriod") or 0,
        start_interval_ns=settings.get("StartInterval") or START_INTERVAL_NS,
        retries=settings.get("Retries") or RETRIES,
        on_unhealthy=_on_unhealthy(labels),
    )
    if HTTP_LABEL in labels and TCP_LABEL in labels:
        raise InvalidInput(f"labels {HTTP_LABEL} and {TCP_LABEL} exclude each other")
    if HTTP_LABEL in labels:
        host, port, path = _target(_HTTP, HTTP_LABEL, labels[HTTP_LABEL], "http://:8080/path", 80)
        return replace(timing, kind="http", host=host, port=port, path=path or "/")
    if TCP_LABEL in labels:
        host, port, _ = _target(_TCP, TCP_LABEL, labels[TCP_LABEL], ":8080", 0)
        return replace(timing, kind="tcp", host=host, port=port)
    if test[:1] == ["CMD"] and len(test) > 1:
        return replace(timing, argv=tuple(test[1:]))
    if test[:1] == ["CMD-SHELL"] and len(test) > 1:
        return replace(timing, argv=(*(config["Shell"] or ("/bin/sh", "-c")), *test[1:]))
    return None


def _on_unhealthy(labels: Mapping[str, str]) -> str:
    wanted = labels.get(ON_UNHEALTHY_LABEL, "none")
    if wanted not in ("none", "restart", "stop"):
        raise InvalidInput(f"label {ON_UNHEALTHY_LABEL}={wanted[:60]}: must be one of none, restart, stop")
    return wanted


def _target(
    pattern: re.Pattern[str], label: str, text: str, example: str, default: int
) -> tuple[str, int, str]:
    refusal = InvalidInput(f"label {label}={text[:100]}: must be like {example}, with an IP address or none")
    match = pattern.fullmatch(text)
    if match is None:
        raise refusal
    host = {"": "127.0.0.1", "localhost": "127.0.0.1"}.get(match[1], match[1].strip("[]"))
    port = int(match[2]) if match[2] else default
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise refusal from None
    if not 0 < port < 65536:
        raise refusal
    return host, port, (match[3] or "") if pattern.groups > 2 else ""


def started(before: Health | None) -> Health:
    """A new run: the old results stay to be read."""
    return Health(log=() if before is None else before.log)


def ended(before: Health | None) -> Health | None:
    """The run, or the watching, is over. Docker shows `unhealthy` then, and tells nobody."""
    return None if before is None else replace(before, status=UNHEALTHY)


def probed(plan: HealthPlan, before: Health, result: Result, started_ns: int) -> Health:
    """After one more result. A failure before the first success does not count during the start period."""
    log = (*before.log[1 - KEPT_RESULTS :], result.shown())
    if result.exit_code == 0:
        return Health(HEALTHY, 0, log)
    if before.status == STARTING and result.start_ns - started_ns < plan.start_period_ns:
        return replace(before, log=log)
    streak = before.failing_streak + 1
    return Health(UNHEALTHY if streak >= plan.retries else before.status, streak, log)


def next_wait_ns(plan: HealthPlan, health: Health, started_ns: int, now_ns: int) -> int:
    """From the end of a probe, or the start, to the next probe."""
    if health.status == STARTING and now_ns - started_ns < plan.start_period_ns:
        return plan.start_interval_ns
    return plan.interval_ns


def status_words(stored: Mapping[str, Any] | None) -> str:
    """As `ps` adds it: ` (healthy)`; "" without a health check."""
    if stored is None:
        return ""
    return " (health: starting)" if stored["Status"] == STARTING else f" ({stored['Status']})"


def timeout_words(timeout_ns: int, output: str) -> str:
    """The output of a probe that took too long."""
    text = f"Health check exceeded timeout ({duration(timeout_ns)})"
    return f"{text}: {output}" if output else text


def duration(ns: int) -> str:
    """As Go prints a time.Duration: `1m30s`, `1.5s`, `500ms`."""
    if ns < 1_000:
        return f"{ns}ns" if ns else "0s"
    if ns < _SECOND:
        unit, size = ("ms", 1_000_000) if ns >= 1_000_000 else ("µs", 1_000)
        return f"{_decimal(ns, size)}{unit}"
    minutes, rest = divmod(ns, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, _SECOND)}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _decimal(ns: int, size: int) -> str:
    whole, fraction = divmod(ns, size)
    digits = f"{fraction:0{len(str(size)) - 1}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


class Output:
    """A probe's output: the first 4096 bytes, then an ellipsis."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        """Take more."""
        room = KEPT_OUTPUT - len(self._kept)
        self._kept += data[:room]
        self._is_cut = self._is_cut or len(data) > room

    def text(self) -> str:
        """What is kept, whatever its encoding."""
        return self._kept.decode("utf-8", "replace") + ("..." if self._is_cut else "")


class StatusLine:
    """The first line of an HTTP answer, fed as it comes. `code` is None until it is complete, 0 when it is no HTTP."""

    LIMIT = 4096

    def __init__(self) -> None:
        self._received = bytearray()
        self.code: int | None = None
        self.text = ""

    def feed(self, data: bytes) -> None:
        """Take more; b"" is the end."""
        if self.code is not None:
            return
        self._received += data[: self.LIMIT]
        line, end, _ = bytes(self._received).partition(b"\n")
        if not end and data and len(self._received) < self.LIMIT:
            return
        self.text = line.rstrip(b"\r").decode("ascii", "replace")[:200]
        match = re.match(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: |$)", self.text)
        self.code = int(match[1]) if match and end else 0
