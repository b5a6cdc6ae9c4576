"""`ketch version`: the client's and the engine's versions."""

from __future__ import annotations

import platform
from typing import Any

from ketch import __version__
from ketch.faults import CommandFailed, EngineAnswer, EngineAway
from ketch.options import Command, Given
from ketch.session import Session
from ketch_wire.defaults import API_VERSION

VERSION = Command(
    "[OPTIONS]",
    """
-f, --format string  Format output using a custom template:
  |'json':             Print in JSON format
  |'TEMPLATE':         Print output using the given Go template.
""",
)

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def version(session: Session, given: Given) -> int:
    """Print both; 1 and the client's alone when no engine answers."""
    server: dict[str, Any] | None = None
    failure: CommandFailed | None = None
    spoken = API_VERSION
    try:
        spoken = session.engine.version
        server = session.engine.get("/version")
    except (EngineAway, EngineAnswer) as error:
        failure = error
    machine = platform.machine()
    client = {
        "Version": __version__,
        "ApiVersion": spoken,
        "DefaultAPIVersion": API_VERSION,
        "PythonVersion": platform.python_version(),
        "Os": "linux",
        "Arch": ARCHITECTURES.get(machine, machine),
        "Context": session.context,
    }
    if given.has("format"):
        from ketch.views import render_one

        try:
            session.say(render_one(given.text("format"), {"Client": client, "Server": server}))
        except CommandFailed as error:
            # Without an engine there is nothing to show of it; a template that is none is told first.
            raise error if failure is None or error.code == 64 else failure from error
    else:
        session.say(page(client, server))
    if failure is not None:
        raise failure
    return 0


def page(client: dict[str, str], server: dict[str, Any] | None) -> str:
    """Both versions for people."""
    spoken = client["ApiVersion"]
    if spoken != client["DefaultAPIVersion"]:
        spoken += f" (downgraded from {client['DefaultAPIVersion']})"
    lines = [
        "Client: Ketch",
        f" Version:           {client['Version']}",
        f" API version:       {spoken}",
        f" Python version:    {client['PythonVersion']}",
        f" OS/Arch:           {client['Os']}/{client['Arch']}",
        f" Context:           {client['Context']}",
    ]
    if server is None:
        return "\n".join(lines) + "\n"
    name = (server.get("Platform") or {}).get("Name", "")
    lines += ["", f"Server: {name}".rstrip() if name else "Server:"]
    components = server.get("Components") or [
        {"Name": "Engine", "Version": server.get("Version", ""), "Details": server}
    ]
    for component in components:
        lines.append(f" {component['Name']}:")
        lines.append(f"  Version:          {component.get('Version', '')}")
        lines += detail_lines(component.get("Details") or {})
    return "\n".join(lines)


def detail_lines(details: dict[str, Any]) -> list[str]:
    """What a component says of itself, in docker's order."""
    lines = []
    if details.get("ApiVersion"):
        minimum = details.get("MinAPIVersion", "")
        lines.append(
            f"  API version:      {details['ApiVersion']}"
            + (f" (minimum version {minimum})" if minimum else "")
        )
    for key, label in (
        ("GoVersion", "Go version:"),
        ("PythonVersion", "Python version:"),
        ("GitCommit", "Git commit:"),
        ("GitCommit", "GitCommit:"),
        ("BuildTime", "Built:"),
    ):
        if not details.get(key) or (
            key == "GitCommit" and (label == "Git commit:") != ("ApiVersion" in details)
        ):
            continue
        lines.append(f"  {label:<17} {built(details[key]) if key == 'BuildTime' else details[key]}")
    if details.get("Os") and details.get("Arch"):
        lines.append(f"  OS/Arch:          {details['Os']}/{details['Arch']}")
    if details.get("Experimental"):
        lines.append(f"  Experimental:     {str(details['Experimental']).lower()}")
    return lines


def built(text: str) -> str:
    """A time of building as `Fri May 30 12:07:14 2025`."""
    from ketch.quantities import parse_time

    try:
        return f"{parse_time(text):%a %b %e %H:%M:%S %Y}"
    except ValueError:
        return text


COMMANDS = {"version": (VERSION, version)}
