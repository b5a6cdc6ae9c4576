"""The program: global options, the command's module, its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import cast

from ketch import __version__
from ketch.commandtable import COMMON, GROUPS, MANAGEMENT, PLAIN, TABLE, Entry, find, members
from ketch.engine import Tls, tls_of_environment
from ketch.faults import CommandFailed, UsageError, why
from ketch.options import Command, Given, HelpAsked, parse, render_options
from ketch.session import Session

PROGRAM = "ketch"

GLOBAL = Command(
    "[OPTIONS] COMMAND [ARG...]",
    """
--config string  Location of client config files (default "~/.docker")
-c, --context string  Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with "docker context use")
-D, --debug  Show where a fault of the client itself happened
-H, --host list  Daemon socket to connect to
-l, --log-level string  Accepted for docker's sake; the client logs nothing (default "info")
--tls  Use TLS; implied by --tlsverify
--tlscacert string  Trust certificates signed by this authority alone (default "~/.docker/ca.pem")
--tlscert string  Path to the TLS certificate (default "~/.docker/cert.pem")
--tlskey string  Path to the TLS key (default "~/.docker/key.pem")
--tlsverify  Use TLS and verify the engine's certificate
-v, --version  Print version information and quit
""",
    (0, None),
    interspersed=False,
)

LEVELS = frozenset("trace debug info warn warning error fatal panic".split())

Function = Callable[[Session, Given], int]


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except CommandFailed as error:
        _complain(error.message)
        return error.code
    except BrokenPipeError:
        _flush()
        return 141  # nobody reads on: what a program gets that SIGPIPE ends
    except OSError as error:
        _flush()
        if _is_debugging(words):
            raise
        _complain(f"{error.filename}: {why(error)}" if error.filename else why(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _is_debugging(words: list[str]) -> bool:
    try:
        return parse(GLOBAL, PROGRAM, words).on("debug")
    except (CommandFailed, HelpAsked):
        return False


def _flush() -> None:
    """What was printed; where it cannot be written, the interpreter must not try again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _complain(message: str) -> None:
    _flush()
    if message:
        sys.stderr.buffer.write((message + "\n").encode("utf-8", "surrogateescape"))
        sys.stderr.buffer.flush()


def _run(words: list[str]) -> int:
    if words[:1] in (["__complete"], ["__completeNoDesc"]):
        from ketch.commands import completion

        for line in completion.answer(words[1:], GLOBAL, open_session, load):
            print(line if words[0] == "__complete" else line.partition("\t")[0])
        return 0
    try:
        options = parse(GLOBAL, PROGRAM, words)
    except HelpAsked:
        print(top_page(terminal_columns()))
        return 0
    rest = options.arguments
    if options.on("version"):
        print(f"Ketch version {__version__}")
        return 0
    if options.text("log-level") not in LEVELS:
        raise CommandFailed(f"Unable to parse logging level: {options.text('log-level')}")
    if rest[:1] == ["help"]:
        topic = " ".join(rest[1:])
        if topic and topic not in GROUPS and find(topic) is None:
            raise CommandFailed(f"unknown help topic: {rest[-1]}")
        rest = [*rest[1:], "--help"]
    if not rest or rest == ["--help"]:
        print(top_page(terminal_columns()), file=sys.stdout if rest else sys.stderr)
        return 0
    session = _session(options)
    if rest[0] in GROUPS:
        if len(rest) == 1 or rest[1] in ("--help", "-h"):
            print(group_page(rest[0]), file=sys.stdout if rest[1:] else sys.stderr)
            return 0
        path, rest = " ".join(rest[:2]), rest[2:]
    else:
        path, rest = rest[0], rest[1:]
    found = find(path)
    if found is None:
        parent, _, _ = path.rpartition(" ")
        usage = f"\n\nUsage:  {PROGRAM} {parent}" if parent else ""
        hint = f"{PROGRAM} {parent}".strip()
        raise UsageError(
            f"{PROGRAM}: unknown command: {PROGRAM} {path}{usage}\n\nRun '{hint} --help' for more information"
        )
    entry, own = found
    command, function = load(entry)
    try:
        given = parse(command, f"{PROGRAM} {own}", rest)
    except HelpAsked:
        print(command_page(entry, own, command, terminal_columns()))
        return 0
    return function(session, given)


def open_session(typed: list[str]) -> Session:
    """A session of the global options in `typed`, which is nothing else. Raises CommandFailed."""
    return _session(parse(GLOBAL, PROGRAM, typed))


def _session(options: Given) -> Session:
    hosts = options.many("host")
    if len(hosts) > 1:
        raise CommandFailed("Failed to initialize: unable to resolve docker endpoint: specify only one -H")
    return Session(
        hosts[0] if hosts else "",
        options.text("config") if options.has("config") else "",
        options.text("context"),
        tls=lambda directory: tls_of(options, directory),
        is_debugging=options.on("debug"),
    )


def load(entry: Entry) -> tuple[Command, Function]:
    """Import the module of one command."""
    module = import_module(f"ketch.commands.{entry.module}")
    return cast("tuple[Command, Function]", module.COMMANDS[entry.key])


def tls_of(options: Given, directory: str) -> Tls | None:
    """What `--tls…` and the environment say; None for plain TCP. directory: where docker's clients keep certificates."""
    found = tls_of_environment(directory)
    verify = options.on("tlsverify") if options.has("tlsverify") else found is not None and found.verify
    # `--tlsverify=false` is TLS too. Source: docker/cli cli/flags/options.go SetDefaultOptions.
    is_on = options.on("tls") if options.has("tls") else found is not None
    if not (is_on or verify or options.has("tlsverify")):
        return None
    names = (("ca.pem", "tlscacert"), ("cert.pem", "tlscert"), ("key.pem", "tlskey"))
    named = tuple((name, options.text(flag)) for name, flag in names if options.has(flag))
    for _, path in named:
        if not os.path.exists(path):
            raise CommandFailed(
                f"Failed to initialize: unable to resolve docker endpoint: open {path}: no such file or directory"
            )
    return Tls(found.directory if found else os.environ.get("DOCKER_CERT_PATH") or directory, verify, named)


def terminal_columns() -> int:
    """The width of the terminal on standard input, as docker's help takes it; 80 without one."""
    try:
        return os.get_terminal_size(0).columns or 80
    except (OSError, ValueError):
        return 80


def command_page(entry: Entry, own: str, command: Command, columns: int) -> str:
    """The help of one command."""
    parts = [f"Usage:  {PROGRAM} {own} {command.usage}".rstrip(), entry.summary]
    if command.note:
        parts[-1] += "\n" + command.note
    spellings = [typed for typed, _ in entry.spellings()]
    if len(spellings) > 1:
        parts.append("Aliases:\n  " + ", ".join(f"{PROGRAM} {typed}" for typed in spellings))
    flags, _ = command.flags()
    if flags:
        parts.append("Options:\n" + render_options(flags, columns))
    return "\n\n".join(parts)


def group_page(group: str) -> str:
    """The help of a group of commands."""
    rows = members(group)
    width = max(11, max(len(name) for name, _ in rows) + 1)
    listed = "\n".join(f"  {name:<{width}} {summary}" for name, summary in rows)
    return (
        f"Usage:  {PROGRAM} {group} COMMAND\n\n{GROUPS[group]}\n\nCommands:\n{listed}\n\n"
        f"Run '{PROGRAM} {group} COMMAND --help' for more information on a command."
    )


def top_page(columns: int) -> str:
    """The help of the program."""
    parts = [
        f"Usage:  {PROGRAM} [OPTIONS] COMMAND",
        "A container engine for one Linux host that speaks the Docker Engine API",
    ]
    for group in (COMMON, MANAGEMENT, PLAIN):
        if group == MANAGEMENT:
            rows = sorted(GROUPS.items())
        else:
            rows = [(entry.spellings()[-1][0], entry.summary) for entry in TABLE if entry.group == group]
            rows = [(entry_name(name), summary) for name, summary in rows]
        parts.append(f"{group}:\n" + "\n".join(f"  {name:<11} {summary}" for name, summary in rows))
    flags, _ = GLOBAL.flags()
    parts.append("Global Options:\n" + render_options(flags, columns))
    parts.append(f"Run '{PROGRAM} COMMAND --help' for more information on a command.")
    return "\n\n".join(parts)


def entry_name(typed: str) -> str:
    """The top-level name of a command whose last spelling is `typed`."""
    return "build" if typed == "builder build" else typed


if __name__ == "__main__":
    sys.exit(main())
