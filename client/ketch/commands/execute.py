"""`exec` and `attach`: another program in a running container, or the one that runs there already."""

from __future__ import annotations

from typing import Any

from ketch.attach import Detached, Relay, WaitAnswer, forwarder, resizer, watching
from ketch.faults import CommandFailed
from ketch.options import Command, Given
from ketch.session import Session
from ketch.terminal import is_terminal, size
from ketch.variables import check_variable, read_variables

EXEC_COMMAND = Command(
    "[OPTIONS] CONTAINER COMMAND [ARG...]",
    """
-d, --detach  Run in the background
--detach-keys string  Keys that leave a program with a terminal
-e, --env list  Set environment variables
--env-file list  Read environment variables from a file
-i, --interactive  Keep STDIN open even if not attached
--privileged  Give extended privileges to the command
-t, --tty  Allocate a pseudo-TTY
-u, --user string  User name or UID (format: "<name|uid>[:<group|gid>]")
-w, --workdir string  Working directory inside the container
""",
    (2, None),
    interspersed=False,
    checks={"env": check_variable},
)
ATTACH_COMMAND = Command(
    "[OPTIONS] CONTAINER",
    """
--detach-keys string  Keys that leave a container with a terminal
--no-stdin  Do not attach STDIN
--sig-proxy  Pass signals on to the process (default true)
""",
    (1, 1),
)

LEFT = "read escape sequence"


def execute(session: Session, given: Given) -> int:
    """Run a command in a container; the exit code is its own."""
    engine = session.engine
    container, *command = given.arguments
    detach, tty, interactive = given.on("detach"), given.on("tty"), given.on("interactive")
    keys = given.text("detach-keys") or session.config.setting("detachKeys")
    try:
        variables = read_variables(given.many("env-file"), given.many("env"))
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    # A missing or stopped container is told before anything is made.
    engine.get(f"/containers/{container}/json")
    if not detach and tty and interactive and not is_terminal(0):
        raise CommandFailed("the input device is not a TTY")
    console = list(size(1)) if tty and is_terminal(1) else None
    body: dict[str, Any] = {
        "User": given.text("user"),
        "Privileged": given.on("privileged"),
        "Tty": tty,
        "AttachStdin": interactive and not detach,
        "AttachStderr": not detach,
        "AttachStdout": not detach,
        "DetachKeys": keys,
        "Env": variables or None,
        "WorkingDir": given.text("workdir"),
        "Cmd": command,
        "Detach": detach,
    }
    begin: dict[str, Any] = {"Detach": detach, "Tty": tty}
    if console:
        body["ConsoleSize"] = begin["ConsoleSize"] = console
    made = engine.json("POST", f"/containers/{container}/exec", send=body)
    path = f"/exec/{made['Id']}"
    if detach:
        with engine.request("POST", f"{path}/start", send=begin) as answer:
            answer.read()
        return 0
    link, early, _ = engine.hijack(f"{path}/start", send=begin)
    relay = Relay(link, early, stdin=interactive, framed=not tty, detach_keys=keys)
    resize = resizer(engine, path) if tty and is_terminal(1) else None
    with relay, watching(resize, None) as (signals, act):
        relay.on_signal = act
        if resize is not None:
            resize()
        try:
            relay.run(signals)
        except Detached as left:
            raise CommandFailed(LEFT) from left
    return int(engine.get(f"{path}/json").get("ExitCode") or 0)


def attach(session: Session, given: Given) -> int:
    """Attach to a running container until it ends; the exit code is its program's."""
    engine = session.engine
    name = given.arguments[0]
    # Waits before it looks: an end in between is not missed.
    with WaitAnswer(engine, name) as waiting:
        return _attach(session, given, name, waiting)


def _attach(session: Session, given: Given, name: str, waiting: WaitAnswer) -> int:
    engine = session.engine
    found = engine.get(f"/containers/{name}/json")
    state, config = found["State"], found["Config"]
    for is_so, message in (
        (not state.get("Running"), "You cannot attach to a stopped container, start it first"),
        (state.get("Paused"), "You cannot attach to a paused container, unpause it first"),
        (state.get("Restarting"), "You cannot attach to a restarting container, wait until it is running"),
    ):
        if is_so:
            raise CommandFailed(message)
    tty = bool(config.get("Tty"))
    if not given.on("no-stdin") and tty and not is_terminal(0):
        raise CommandFailed("the input device is not a TTY")
    stdin = not given.on("no-stdin") and bool(config.get("OpenStdin"))
    keys = given.text("detach-keys") or session.config.setting("detachKeys")
    container = found["Id"]
    link, early, _ = engine.hijack(
        f"/containers/{container}/attach",
        {"stream": True, "stdin": stdin, "stdout": True, "stderr": True, "detachKeys": keys},
    )
    relay = Relay(link, early, stdin=stdin, framed=not tty, detach_keys=keys)
    relay.waiting = waiting
    resize = resizer(engine, f"/containers/{container}") if tty and is_terminal(1) else None
    forward = forwarder(engine, container) if given.on("sig-proxy") and not tty else None
    with relay, watching(resize, forward) as (signals, act):
        relay.on_signal = act
        if resize is not None:
            _redraw(engine, container)
        try:
            relay.run(signals)
        except Detached as left:
            raise CommandFailed(LEFT) from left
    return waiting.code()


def _redraw(engine: Any, container: str) -> None:
    """A program redraws when its size changes: make it change."""
    rows, columns = size(1)
    for height, width in ((rows + 1, columns + 1), (rows, columns)):
        engine.call("POST", f"/containers/{container}/resize", {"h": height, "w": width})


COMMANDS = {"exec": (EXEC_COMMAND, execute), "attach": (ATTACH_COMMAND, attach)}
