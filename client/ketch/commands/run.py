"""`run`, `create` and `start`: make containers, start them, and stay with them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from ketch.attach import Detached, Relay, WaitAnswer, forwarder, resizer, watching
from ketch.engine import Engine
from ketch.faults import CommandFailed, EngineAnswer, why
from ketch.options import Command, Given
from ketch.pulling import pull_image
from ketch.references import is_id, parse_name
from ketch.runflags import create_body, refused
from ketch.runoptions import CHECKS, CREATE, run_options
from ketch.session import Session
from ketch.terminal import is_terminal, size

CREATE_COMMAND = Command(
    "[OPTIONS] IMAGE [COMMAND] [ARG...]", CREATE, (1, None), interspersed=False, checks=CHECKS
)
RUN_COMMAND = Command(
    "[OPTIONS] IMAGE [COMMAND] [ARG...]", run_options(), (1, None), interspersed=False, checks=CHECKS
)
START_COMMAND = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]",
    """
-a, --attach  Attach STDOUT/STDERR and pass signals on
--detach-keys string  Keys that leave a container with a terminal
-i, --interactive  Attach the container's STDIN
""",
    (1, None),
)

LOCAL_ADDRESSES = ("127.", "::1")


def create(session: Session, given: Given) -> int:
    """Make a container; print its ID."""
    _check_pull(given)
    body = _body(session, given)
    session.say(_create(session, given, body))
    return 0


def run(session: Session, given: Given) -> int:
    """Make a container and start it; the exit code is its program's."""
    _check_pull(given)
    body = _body(session, given)
    detached = given.on("detach")
    if detached:
        if given.has("attach"):
            raise CommandFailed("conflicting options: cannot specify both --attach and --detach")
        body.update(AttachStdin=False, AttachStdout=False, AttachStderr=False, StdinOnce=False)
    else:
        check_terminal(body["AttachStdin"], body["Tty"])
    try:
        container = _create(session, given, body)
        if detached:
            session.engine.call("POST", f"/containers/{container}/start")
            session.say(container)
            return 0
    except CommandFailed as error:
        raise _start_failed(given.path, error) from error
    return _stay(session, given, container, body)


def check_terminal(attach_stdin: bool, tty: bool) -> None:
    """A terminal in the container wants one on our side."""
    if tty and attach_stdin and not is_terminal(0):
        raise CommandFailed("the input device is not a TTY")


def _start_failed(path: str, error: CommandFailed) -> CommandFailed:
    """125, 126 or 127 by the words of the engine. Source: docker/cli cli/command/container/run.go, toStatusError."""
    code = 125
    if any(
        text in error.message
        for text in (
            "executable file not found",
            "no such file or directory",
            "system cannot find the file specified",
        )
    ):
        code = 127
    elif "permission denied" in error.message or "is a directory" in error.message:
        code = 126
    return refused(path, error.message, code)


def _check_pull(given: Given) -> None:
    if given.text("pull") not in ("always", "missing", "never", ""):
        raise refused(
            given.path,
            f'invalid pull option: \'{given.text("pull")}\': must be one of "always", "missing" or "never"',
        )


def _body(session: Session, given: Given) -> dict[str, Any]:
    config = session.config
    proxies = config.proxies(session.engine.host, {}) if config.values.get("proxies") else {}
    return create_body(given, proxies)


def _create(session: Session, given: Given, body: dict[str, Any]) -> str:
    host = body["HostConfig"]
    for address in host["Dns"]:
        if address.startswith(LOCAL_ADDRESSES):
            session.warn(f"WARNING: Localhost DNS ({address}) may fail in containers.")
            break
    id_file = given.text("cidfile")
    if id_file and os.path.exists(id_file):
        raise CommandFailed(
            f"container ID file found, make sure the other container isn't running or delete {id_file}"
        )
    image = given.arguments[0]
    name = None if is_id(image) else parse_name(image).with_default_tag()
    quiet, policy = given.on("quiet"), given.text("pull") or "missing"
    out = None if quiet else sys.stderr
    if policy == "always" and name is not None:
        pull_image(session, name, out, platform=session.platform(given))
    host["ConsoleSize"] = list(size(1))
    query = {"name": given.text("name"), "platform": session.platform(given)}
    try:
        made = session.engine.json("POST", "/containers/create", query, send=body)
    except EngineAnswer as error:
        if error.status != 404 or name is None or policy != "missing":
            raise
        if error.reason.startswith("No such container"):
            raise  # of --volumes-from and the like: pulling the image would not help
        if not quiet:
            session.warn(f"Unable to find image '{name.familiar}' locally")
        pull_image(session, name, out, platform=session.platform(given))
        made = session.engine.json("POST", "/containers/create", query, send=body)
    for warning in made.get("Warnings") or ():
        session.warn(f"WARNING: {warning}")
    if id_file:
        _write_id(id_file, made["Id"])
    return str(made["Id"])


def _write_id(path: str, container: str) -> None:
    try:
        with open(path, "x", encoding="ascii") as file:
            file.write(container)
    except OSError as error:
        raise CommandFailed(
            f"failed to create the container ID file: open {path}: {why(error)}", 125
        ) from error


def _stay(session: Session, given: Given, container: str, body: dict[str, Any]) -> int:
    """Attach, wait, start, in this order: nothing of the output is missed, nor a quick end."""
    engine = session.engine
    streams = {name: body[f"Attach{name.capitalize()}"] for name in ("stdin", "stdout", "stderr")}
    keys = given.text("detach-keys") or session.config.setting("detachKeys")
    link, early, _ = engine.hijack(
        f"/containers/{container}/attach", {"stream": True, "detachKeys": keys, **streams}
    )
    relay = Relay(link, early, stdin=streams["stdin"], framed=not body["Tty"], detach_keys=keys)
    removed = given.on("rm")
    forward = forwarder(engine, container) if given.on("sig-proxy") else None
    try:
        return stay(engine, relay, container, removed=removed, tty=body["Tty"], forward=forward)
    except EngineAnswer as error:
        raise _start_failed(given.path, error) from error


def stay(engine: Engine, relay: Relay, container: str, *, removed: bool, tty: bool, forward: Any) -> int:
    """Start an attached container and stay until its end; its exit code, 0 when the user leaves it."""
    resize = resizer(engine, f"/containers/{container}") if tty and is_terminal(1) else None
    with (
        relay,
        WaitAnswer(engine, container, "removed" if removed else "next-exit") as waiting,
        watching(resize, forward) as (signals, act),
    ):
        relay.waiting = waiting
        relay.on_signal = act
        try:
            engine.call("POST", f"/containers/{container}/start")
        except EngineAnswer:
            if removed:
                with contextlib.suppress(CommandFailed):
                    waiting.code()
            raise
        if resize is not None:
            resize()
        try:
            relay.run(signals)
        except Detached:
            return 0
        return waiting.code()


def start(session: Session, given: Given) -> int:
    """Start containers; with -a or -i stay with the one."""
    names = given.arguments
    if given.on("attach") or given.on("interactive"):
        if len(names) > 1:
            raise CommandFailed("you cannot start and attach multiple containers at once")
        return _start_attached(session, given, names[0])
    failed = []
    for name in names:
        try:
            session.engine.call("POST", f"/containers/{name}/start")
        except EngineAnswer as error:
            session.warn(error.message)
            failed.append(name)
        else:
            session.say(name)
    if failed:
        raise CommandFailed(f"Error: failed to start containers: {', '.join(failed)}")
    return 0


def _start_attached(session: Session, given: Given, name: str) -> int:
    engine = session.engine
    found = engine.get(f"/containers/{name}/json")
    config, container = found["Config"], found["Id"]
    stdin = given.on("interactive") and bool(config.get("OpenStdin"))
    keys = given.text("detach-keys") or session.config.setting("detachKeys")
    link, early, _ = engine.hijack(
        f"/containers/{container}/attach",
        {"stream": True, "stdin": stdin, "stdout": True, "stderr": True, "detachKeys": keys},
    )
    tty = bool(config.get("Tty"))
    relay = Relay(link, early, stdin=stdin, framed=not tty, detach_keys=keys)
    forward = None if tty else forwarder(engine, container)
    removed = bool((found.get("HostConfig") or {}).get("AutoRemove"))
    return stay(engine, relay, container, removed=removed, tty=tty, forward=forward)


COMMANDS = {
    "run": (RUN_COMMAND, run),
    "create": (CREATE_COMMAND, create),
    "start": (START_COMMAND, start),
}
