"""`inspect`, of everything or of one kind: what the engine knows, as JSON or by a template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ketch.faults import CommandFailed, EngineAnswer
from ketch.options import Command, Given
from ketch.session import Session
from ketch.views import check_template, render_one

FORMAT = """-f, --format string  Format output using a custom template:
  |'json':             Print in JSON format
  |'TEMPLATE':         Print output using the given Go template.
"""
# In the order in which a bare name is looked up.
KINDS = {
    "container": "/containers/{}/json",
    "image": "/images/{}/json",
    "network": "/networks/{}",
    "volume": "/volumes/{}",
}

Lookup = Callable[[str], Any]


def inspect(session: Session, given: Given) -> int:
    """Look a name up among all kinds, or in `--type`."""
    kind = given.text("type")
    if kind and kind not in KINDS:
        known = ", ".join(f'"{one}"' for one in KINDS)
        raise CommandFailed(f'unknown type: "{kind}": must be one of {known}')
    if given.on("size") and kind not in ("", "container"):
        session.warn(f"WARNING: --size ignored for {kind}")
    size = given.on("size")

    def look(name: str) -> Any:
        for one in [kind] if kind else KINDS:
            query = {"size": True} if size and one == "container" else None
            try:
                return session.engine.get(KINDS[one].format(name), query)
            except EngineAnswer as error:
                if error.status != 404 or kind:
                    raise
        raise CommandFailed(f"Error: No such object: {name}")

    return _inspect(session, given, look)


def container_inspect(session: Session, given: Given) -> int:
    """Containers alone."""
    query = {"size": given.on("size")}
    return _inspect(session, given, lambda name: session.engine.get(KINDS["container"].format(name), query))


def image_inspect(session: Session, given: Given) -> int:
    """Images alone."""
    query: dict[str, Any] = {}
    if given.text("platform"):
        from ketch.commands.registry import platform_object

        query["platform"] = platform_object(given.text("platform"))
    return _inspect(session, given, lambda name: session.engine.get(KINDS["image"].format(name), query))


def network_inspect(session: Session, given: Given) -> int:
    """Networks alone."""
    query = {"verbose": given.on("verbose")}
    return _inspect(session, given, lambda name: session.engine.get(KINDS["network"].format(name), query))


def volume_inspect(session: Session, given: Given) -> int:
    """Volumes alone."""
    return _inspect(session, given, lambda name: session.engine.get(KINDS["volume"].format(name)))


def _inspect(session: Session, given: Given, look: Lookup) -> int:
    return inspect_each(session, given, given.arguments, look)


def inspect_each(session: Session, given: Given, names: list[str], look: Lookup) -> int:
    """What is found is printed, even when something else is not. Source: docker/cli cli/command/inspect."""
    form = given.text("format")
    if form and form != "json":
        check_template(form, code=64)
    found, faults = [], []
    for name in names:
        try:
            found.append(look(name))
        except EngineAnswer as error:
            faults.append(error.message)
        except CommandFailed as error:
            faults.append(error.message)
    if not form:
        text = json.dumps(found, indent=4, ensure_ascii=False) if found else "[]"
        session.say(text)
    elif form == "json":
        session.say(json.dumps(found, separators=(",", ":"), ensure_ascii=False))
    else:
        for one in found:
            session.say(render_one(form, one))
        if not found:
            session.say("")
    if faults:
        raise CommandFailed("\n".join(faults))
    return 0


COMMANDS = {
    "inspect": (
        Command(
            "[OPTIONS] NAME|ID [NAME|ID...]",
            FORMAT
            + """-s, --size  Show total file sizes if the type is container
--type string  Look only among objects of this type
""",
            (1, None),
        ),
        inspect,
    ),
    "container inspect": (
        Command(
            "[OPTIONS] CONTAINER [CONTAINER...]", FORMAT + "-s, --size  Show total file sizes", (1, None)
        ),
        container_inspect,
    ),
    "image inspect": (
        Command(
            "[OPTIONS] IMAGE [IMAGE...]",
            FORMAT + "--platform string  Inspect this platform's part, as 'os[/arch[/variant]]'",
            (1, None),
        ),
        image_inspect,
    ),
    "network inspect": (
        Command(
            "[OPTIONS] NETWORK [NETWORK...]",
            FORMAT + "-v, --verbose  Show more, to find out what is wrong",
            (1, None),
        ),
        network_inspect,
    ),
    "volume inspect": (Command("[OPTIONS] VOLUME [VOLUME...]", FORMAT, (1, None)), volume_inspect),
}
