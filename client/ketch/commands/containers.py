"""Commands that act on containers that are there: stop, kill, restart, pause, rm, wait, rename, and a look at them."""

from __future__ import annotations

import re
from typing import Any

from ketch.faults import CommandFailed, EngineAnswer
from ketch.options import Command, Given
from ketch.references import parse_name
from ketch.session import Session, each
from ketch.views import columns

MANY = "CONTAINER [CONTAINER...]"
STOP_OPTIONS = """
-s, --signal string  Signal to send to the container
--time = --timeout
-t, --timeout int  Seconds to wait before killing the container
"""


def stop(session: Session, given: Given) -> int:
    """End containers: their stop signal, then SIGKILL."""
    return _end(session, given, "stop")


def restart(session: Session, given: Given) -> int:
    """End containers and start them again."""
    return _end(session, given, "restart")


def _end(session: Session, given: Given, verb: str) -> int:
    query: dict[str, Any] = {"signal": given.text("signal")}
    if given.has("timeout"):
        query["t"] = str(given.number("timeout"))
    return _each(session, given, verb, query, together=verb == "stop")


def kill(session: Session, given: Given) -> int:
    """Send containers a signal."""
    return _each(session, given, "kill", {"signal": given.text("signal")}, together=True)


def pause(session: Session, given: Given) -> int:
    """Freeze containers."""
    return _each(session, given, "pause", {}, together=True)


def unpause(session: Session, given: Given) -> int:
    """Thaw containers."""
    return _each(session, given, "unpause", {}, together=True)


def _each(session: Session, given: Given, verb: str, query: dict[str, Any], *, together: bool = False) -> int:
    engine = session.engine
    # Asked before there are threads that would all ask.
    engine.version  # noqa: B018

    def act(name: str) -> None:
        engine.call("POST", f"/containers/{name}/{verb}", query)

    return each(session, given.arguments, act, together=together)


def remove(session: Session, given: Given) -> int:
    """Remove containers."""
    query = {"v": given.on("volumes"), "link": given.on("link"), "force": given.on("force")}

    def act(name: str) -> str | None:
        name = name.strip("/")
        if not name:
            raise CommandFailed("container name cannot be empty")
        try:
            session.engine.call("DELETE", f"/containers/{name}", query)
        except EngineAnswer as error:
            if error.status == 404 and given.on("force"):
                session.warn(error.message)
                return ""
            raise
        return None

    session.engine.version  # noqa: B018
    return each(session, given.arguments, act, together=True)


def wait(session: Session, given: Given) -> int:
    """Wait until containers stop; print their exit codes."""

    def act(name: str) -> str:
        told = session.engine.json("POST", f"/containers/{name}/wait")
        return str(told["StatusCode"])

    return each(session, given.arguments, act)


def rename(session: Session, given: Given) -> int:
    """Give a container another name."""
    old, new = (text.strip() for text in given.arguments)
    if not old or not new:
        raise CommandFailed("Error: Neither old nor new names may be empty")
    try:
        session.engine.call("POST", f"/containers/{old}/rename", {"name": new})
    except EngineAnswer as error:
        session.warn(error.message)
        raise CommandFailed(f"Error: failed to rename container named {old}") from error
    return 0


def port(session: Session, given: Given) -> int:
    """Show where the ports of a container are published."""
    name = given.arguments[0]
    found = session.engine.get(f"/containers/{name}/json")
    ports = (found.get("NetworkSettings") or {}).get("Ports") or {}
    if len(given.arguments) > 1:
        wanted = given.arguments[1]
        number, slash, protocol = wanted.partition("/")
        if not number.isascii() or not number.isdigit():
            raise CommandFailed(
                f'Error: invalid port ({number}): strconv.ParseUint: parsing "{number}": invalid syntax'
            )
        key = f"{number}/{protocol if slash and protocol else 'tcp'}"
        bindings = ports.get(key)
        if not bindings:
            raise CommandFailed(f"Error: No public port '{wanted}' published for {name}")
        lines = [_address(binding) for binding in bindings]
    else:
        lines = [
            f"{key} -> {_address(binding)}" for key, bindings in ports.items() for binding in bindings or ()
        ]
    for line in sorted(lines, key=_natural):
        session.say(line)
    return 0


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Numbers within a text by their value."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part
    ]


def _address(binding: dict[str, str]) -> str:
    address = binding.get("HostIp", "")
    return f"[{address}]:{binding['HostPort']}" if ":" in address else f"{address}:{binding['HostPort']}"


def top(session: Session, given: Given) -> int:
    """Show the processes of a container."""
    name, *arguments = given.arguments
    found = session.engine.get(f"/containers/{name}/top", {"ps_args": " ".join(arguments)})
    rows = [found["Titles"], *(found.get("Processes") or ())]
    session.write(columns(rows, 20, 1).encode("utf-8", "surrogateescape"))
    return 0


def diff(session: Session, given: Given) -> int:
    """Show what changed in a container's filesystem."""
    if not given.arguments[0]:
        raise CommandFailed("Container name cannot be empty")
    for change in session.engine.get(f"/containers/{given.arguments[0]}/changes") or ():
        session.say(f"{'CAD'[change['Kind']]} {change['Path']}")
    return 0


def commit(session: Session, given: Given) -> int:
    """Make an image of a container."""
    query: dict[str, Any] = {
        "container": given.arguments[0],
        "comment": given.text("message"),
        "author": given.text("author"),
        "changes": given.many("change"),
    }
    if not given.on("pause"):
        query["pause"] = "0"
    if len(given.arguments) > 1:
        name = parse_name(given.arguments[1])
        if name.digest:
            raise CommandFailed("refusing to create a tag with a digest reference")
        name = name.with_default_tag()
        query |= {"repo": name.repository, "tag": name.tag}
    session.say(session.engine.json("POST", "/commit", query)["Id"])
    return 0


COMMANDS = {
    "stop": (Command(f"[OPTIONS] {MANY}", STOP_OPTIONS, (1, None)), stop),
    "restart": (Command(f"[OPTIONS] {MANY}", STOP_OPTIONS, (1, None)), restart),
    "kill": (
        Command(f"[OPTIONS] {MANY}", "-s, --signal string  Signal to send to the container", (1, None)),
        kill,
    ),
    "pause": (Command(MANY, "", (1, None)), pause),
    "unpause": (Command(MANY, "", (1, None)), unpause),
    "rm": (
        Command(
            f"[OPTIONS] {MANY}",
            """
-f, --force  Remove running containers as well (uses SIGKILL)
-l, --link  Remove the link of this name
-v, --volumes  Remove the anonymous volumes of the container
""",
            (1, None),
        ),
        remove,
    ),
    "wait": (Command(MANY, "", (1, None)), wait),
    "rename": (Command("CONTAINER NEW_NAME", "", (2, 2)), rename),
    "port": (Command("CONTAINER [PRIVATE_PORT[/PROTO]]", "", (1, 2)), port),
    "top": (Command("CONTAINER [ps OPTIONS]", "", (1, None), interspersed=False), top),
    "diff": (Command("CONTAINER", "", (1, 1)), diff),
    "commit": (
        Command(
            "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
            """
-a, --author string  Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
-c, --change list  Apply a Dockerfile instruction to the image
-m, --message string  Commit message
-p, --pause  Pause the container during the commit (default true)
""",
            (1, 2),
        ),
        commit,
    ),
}
