"""`info` and `events`: the engine as a whole."""

from __future__ import annotations

import time
from typing import Any

from ketch import __version__
from ketch.faults import CommandFailed, EngineAnswer, EngineAway
from ketch.filters import build_filters
from ketch.options import Command, Given
from ketch.quantities import binary_size, local_time, parse_moment
from ketch.session import Session
from ketch.views import check_template, render_one

FORMAT = """
  |'json':             Print in JSON format
  |'TEMPLATE':         Print output using the given Go template.
"""

INFO = Command("[OPTIONS]", f"-f, --format string  Format output using a custom template:{FORMAT}")
EVENTS = Command(
    "[OPTIONS]",
    f"""
-f, --filter filter  Show only events that fulfil the conditions
--format string  Format output using a custom template:{FORMAT}
--since string  Show what happened since a time
--until string  Stop at a time
""",
)


def info(session: Session, given: Given) -> int:
    """Show the engine and its host."""
    form = given.text("format")
    client = {
        "Version": __version__,
        "Context": session.context,
        "Debug": session.is_debugging,
        "Plugins": [],
        "Warnings": None,
    }
    try:
        found = session.engine.get("/info")
    except (EngineAway, EngineAnswer) as error:
        if form:
            raise
        session.say("\n".join([*client_lines(client), "", "Server:"]))
        raise CommandFailed(error.message) from error
    if form:
        session.say(render_one(form, {**found, "ClientInfo": client}))
        return 0
    session.say("\n".join([*client_lines(client), "", *info_lines(found)]))
    for warning in found.get("Warnings") or ():
        session.warn(warning)
    return 0


def client_lines(client: dict[str, Any]) -> list[str]:
    """What the client says of itself."""
    return [
        "Client:",
        f" Version:    {client['Version']}",
        f" Context:    {client['Context']}",
        f" Debug Mode: {str(client['Debug']).lower()}",
    ]


def info_lines(found: dict[str, Any]) -> list[str]:
    """The page for people. Source: docker/cli cli/command/system/info.go."""
    lines = [
        "Server:",
        f" Containers: {found.get('Containers', 0)}",
        f"  Running: {found.get('ContainersRunning', 0)}",
        f"  Paused: {found.get('ContainersPaused', 0)}",
        f"  Stopped: {found.get('ContainersStopped', 0)}",
        f" Images: {found.get('Images', 0)}",
    ]
    lines += _text(found, (("ServerVersion", "Server Version"), ("Driver", "Storage Driver")))
    lines += [f"  {key}: {value}" for key, value in found.get("DriverStatus") or ()]
    lines += _text(
        found,
        (
            ("LoggingDriver", "Logging Driver"),
            ("CgroupDriver", "Cgroup Driver"),
            ("CgroupVersion", "Cgroup Version"),
        ),
    )
    plugins = found.get("Plugins") or {}
    lines.append(" Plugins:")
    lines += [
        f"  {kind}: {' '.join(plugins[kind])}"
        for kind in ("Volume", "Network", "Authorization", "Log")
        if plugins.get(kind)
    ]
    devices = found.get("CDISpecDirs") or ()
    if devices:
        lines += [" CDI spec directories:", *(f"  {path}" for path in devices)]
    lines.append(f" Swarm: {(found.get('Swarm') or {}).get('LocalNodeState', 'inactive')}")
    runtimes = found.get("Runtimes") or {}
    if runtimes:
        lines.append(f" Runtimes: {' '.join(sorted(runtimes))}")
        lines.append(f" Default Runtime: {found.get('DefaultRuntime', '')}")
    lines += _text(found, (("InitBinary", "Init Binary"),))
    for key, label in (
        ("ContainerdCommit", "containerd"),
        ("RuncCommit", "runc"),
        ("InitCommit", "init"),
    ):
        commit = (found.get(key) or {}).get("ID")
        if commit:
            lines.append(f" {label} version: {commit}")
    lines += security_lines(found.get("SecurityOptions") or ())
    lines += _text(
        found,
        (
            ("KernelVersion", "Kernel Version"),
            ("OperatingSystem", "Operating System"),
            ("OSType", "OSType"),
            ("Architecture", "Architecture"),
        ),
    )
    lines += [
        f" CPUs: {found.get('NCPU', 0)}",
        f" Total Memory: {binary_size(float(found.get('MemTotal') or 0))}",
    ]
    lines += _text(found, (("Name", "Name"), ("ID", "ID"), ("DockerRootDir", "Docker Root Dir")))
    debug = bool(found.get("Debug"))
    lines.append(f" Debug Mode: {str(debug).lower()}")
    if debug:
        lines += [
            f"  File Descriptors: {found.get('NFd', 0)}",
            f"  Goroutines: {found.get('NGoroutines', 0)}",
            f"  System Time: {found.get('SystemTime', '')}",
            f"  EventsListeners: {found.get('NEventsListener', 0)}",
        ]
    lines += _text(
        found, (("HttpProxy", "HTTP Proxy"), ("HttpsProxy", "HTTPS Proxy"), ("NoProxy", "No Proxy"))
    )
    if found.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in found["Labels"])]
    lines.append(f" Experimental: {str(bool(found.get('ExperimentalBuild'))).lower()}")
    lines += registry_lines(found.get("RegistryConfig") or {})
    lines.append(f" Live Restore Enabled: {str(bool(found.get('LiveRestoreEnabled'))).lower()}")
    firewall = (found.get("FirewallBackend") or {}).get("Driver")
    if firewall:
        lines.append(f" Firewall Backend: {firewall}")
    return [*lines, ""]


def _text(found: dict[str, Any], fields: tuple[tuple[str, str], ...]) -> list[str]:
    return [f" {label}: {found[key]}" for key, label in fields if found.get(key)]


def security_lines(options: list[str] | tuple[()]) -> list[str]:
    """`name=seccomp,profile=builtin` as a name and what it is set to."""
    if not options:
        return []
    lines = [" Security Options:"]
    for option in options:
        fields = dict(part.partition("=")[::2] for part in option.split(","))
        lines.append(f"  {fields.pop('name', option)}")
        lines += [f"   {'Profile' if key == 'profile' else key}: {value}" for key, value in fields.items()]
    return lines


def registry_lines(config: dict[str, Any]) -> list[str]:
    """Registries that may be spoken to without TLS, and mirrors."""
    lines: list[str] = []
    hosts = [name for name, one in (config.get("IndexConfigs") or {}).items() if not one.get("Secure", True)]
    ranges = config.get("InsecureRegistryCIDRs") or []
    if hosts or ranges:
        lines += [" Insecure Registries:", *(f"  {name}" for name in [*sorted(hosts), *ranges])]
    mirrors = config.get("Mirrors") or ()
    if mirrors:
        lines += [" Registry Mirrors:", *(f"  {mirror}" for mirror in mirrors)]
    return lines


def events(session: Session, given: Given) -> int:
    """Show what happens, as it happens."""
    form = given.text("format")
    if form and form != "json":
        check_template(form, "Error parsing format", 64)
    now = time.time()
    query: dict[str, Any] = {}
    for bound in ("since", "until"):
        if given.text(bound):
            try:
                query[bound] = parse_moment(given.text(bound), now)
            except ValueError as error:
                raise CommandFailed(str(error)) from error
    if given.many("filter"):
        query["filters"] = build_filters(given.many("filter"))
    answer = session.engine.request("GET", "/events", query)
    for message in session.engine.messages(answer):
        session.say(render_one(form, _aliased(message, form)) if form else event_line(message))
    return 0


def _aliased(message: dict[str, Any], form: str) -> dict[str, Any]:
    """The names that templates use for what the stream writes in small letters."""
    actor = message.get("Actor") or {}
    attributes = dict(sorted((actor.get("Attributes") or {}).items()))  # as the table shows them
    message = {**message, "Actor": {**actor, "Attributes": attributes}}
    if form == "json" or "json ." in form:
        return message
    names = (("Status", "status"), ("ID", "id"), ("From", "from"), ("Scope", "scope"))
    numbers = {"Time": message.get("time", 0), "TimeNano": message.get("timeNano", 0)}
    return {**message, **{name: message.get(key, "") for name, key in names}, **numbers}


def event_line(message: dict[str, Any]) -> str:
    """`TIME TYPE ACTION ID (attributes)`. Source: docker/cli cli/command/system/events.go."""
    nanoseconds = int(message.get("timeNano") or 0)
    seconds = nanoseconds // 1_000_000_000 if nanoseconds else int(message.get("time") or 0)
    stamp, zone = local_time(seconds).split(" ", 2)[:2], local_time(seconds).split(" ")[2]
    fraction = f".{nanoseconds % 1_000_000_000:09d}" if nanoseconds else ""
    offset = f"{zone[:3]}:{zone[3:]}" if zone.strip("+-0") else "Z"
    actor = message.get("Actor") or {}
    attributes = ", ".join(f"{key}={value}" for key, value in sorted((actor.get("Attributes") or {}).items()))
    shown = f" ({attributes})" if attributes else ""
    return (
        f"{stamp[0]}T{stamp[1]}{fraction}{offset} {message.get('Type', '')} {message.get('Action', '')}"
        f" {actor.get('ID', '')}{shown}"
    )


COMMANDS = {"info": (INFO, info), "events": (EVENTS, events)}
