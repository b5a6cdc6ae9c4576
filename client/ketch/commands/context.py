"""`ketch context`: names for engines, in the store that docker's clients share."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ketch import dockercontexts
from ketch.commands.inspect import FORMAT, inspect_each
from ketch.contextstore import DOCKER, ContextStore, Stored, TlsFiles, check_name, natural, pack, unpack
from ketch.faults import CommandFailed, why
from ketch.options import Command, Given, convert
from ketch.session import Session
from ketch.terminal import is_terminal
from ketch.views import FORMAT_HELP, chosen_format, render_rows, shortened

CONFIG = """
Docker endpoint config:

NAME                DESCRIPTION
from                Copy named context's Docker endpoint configuration
host                Docker endpoint on which to connect
ca                  Trust certs signed only by this CA
cert                Path to TLS certificate file
key                 Path to TLS key file
skip-tls-verify     Skip TLS certificate validation

Example:

$ ketch context {} my-context --description "some description" --docker "host=tcp://myserver:2376,ca=~/ca-file,cert=~/cert-file,key=~/key-file\""""

KEYS = ("from", "host", "ca", "cert", "key", "skip-tls-verify")
DESCRIPTION = "Current DOCKER_HOST based configuration"
TITLES = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "DockerEndpoint": "DOCKER ENDPOINT",
    "Error": "ERROR",
    "Current": None,
}
TABLE = "{{.Name}}{{if .Current}} *{{end}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}"


def create(session: Session, given: Given) -> int:
    """Make one: of `--docker`, or a copy of `--from`, or of the one in use."""
    name, store = given.arguments[0], session.contexts
    _check_new(store, name)
    description = given.text("description")
    if given.has("from") and given.has("docker"):
        raise CommandFailed("cannot use --docker flag when --from is set")
    if given.has("docker"):
        meta: dict[str, Any] = {"Name": name, "Metadata": {}, "Endpoints": {}}
        made = _with_endpoint(session, Stored(meta, {}), given.many("docker"))
    else:
        copied = session.read_context(given.text("from") or session.context)
        made = Stored({**copied.meta, "Name": name}, copied.tls)
    store.write(_described(made, description))
    return _made(session, name, "created")


def update(session: Session, given: Given) -> int:
    """Change its description or endpoint; a new endpoint has new certificates, or none."""
    name = given.arguments[0]
    check_name(name)
    changed = _described(session.contexts.read(name), given.text("description"))
    if given.has("docker"):
        changed = _with_endpoint(session, changed, given.many("docker"))
    session.contexts.write(changed)
    return _made(session, name, "updated")


def _made(session: Session, name: str, done: str) -> int:
    session.say(name)
    session.warn(f'Successfully {done} context "{name}"')
    return 0


def _check_new(store: ContextStore, name: str) -> None:
    check_name(name)
    if store.has(name):
        raise CommandFailed(f'context "{name}" already exists')


def _described(stored: Stored, description: str) -> Stored:
    if not description:
        return stored
    metadata = {**(stored.meta.get("Metadata") or {}), "Description": description}
    return stored._replace(meta={**stored.meta, "Metadata": metadata})


def _with_endpoint(session: Session, stored: Stored, words: list[str]) -> Stored:
    """`stored` with the endpoint that `--docker` describes."""
    config = dict(word.partition("=")[::2] for word in words)
    try:
        unknown = [f"unrecognized config key: {key}" for key in config if key not in KEYS]
        if unknown:
            raise CommandFailed("\n".join(unknown))
        if "from" in config:
            source = session.read_context(config["from"])
            host, skips = source.docker()
            files = source.tls.get(DOCKER, {})
        else:
            host, skips, files = _endpoint(config)
    except CommandFailed as error:
        raise CommandFailed(f"unable to create docker endpoint config: {error.message}") from error
    meta = {**stored.meta, "Endpoints": {**(stored.meta.get("Endpoints") or {}), DOCKER: _entry(host, skips)}}
    tls: TlsFiles = {endpoint: kept for endpoint, kept in stored.tls.items() if endpoint != DOCKER}
    return Stored(meta, {**tls, DOCKER: files} if files else tls)


def _entry(host: str, skips: bool) -> dict[str, Any]:
    return {**({"Host": host} if host else {}), "SkipTLSVerify": skips}


def _endpoint(config: dict[str, str]) -> tuple[str, bool, dict[str, bytes]]:
    host = config.get("host", "")
    try:
        skips = bool(convert("", config.get("skip-tls-verify", "false")))
    except ValueError:
        told = f'skip-tls-verify: parsing "{config["skip-tls-verify"]}": invalid syntax'
        raise CommandFailed(told) from None
    files = {}
    for key in ("ca", "cert", "key"):
        if config.get(key):
            try:
                with open(os.path.expanduser(config[key]), "rb") as file:
                    files[f"{key}.pem"] = file.read()
            except OSError as error:
                raise CommandFailed(f"open {config[key]}: {why(error)}") from error
    if host.startswith("ssh://"):
        from ketch import sshlink

        try:
            sshlink.parse(host)
        except CommandFailed as error:
            raise CommandFailed(f"invalid docker endpoint options: {error.message}") from error
    elif host and "://" not in host:
        raise CommandFailed(f"unable to apply docker endpoint options: unable to parse docker host `{host}`")
    _check_certificates(config, files)
    return host, skips, files


def _check_certificates(config: dict[str, str], files: dict[str, bytes]) -> None:
    """Raises CommandFailed for certificates with which no connection could be made."""
    if not files:
        return
    import ssl

    failed = "invalid docker endpoint options: failed to retrieve context tls info: "
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if "ca.pem" in files:
            context.load_verify_locations(cadata=files["ca.pem"].decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:  # ValueError: of nothing at all
        raise CommandFailed(f"{failed}ca.pem seems invalid") from error
    try:
        if "cert.pem" in files and "key.pem" in files:
            paths = (os.path.expanduser(config[key]) for key in ("cert", "key"))
            context.load_cert_chain(*paths)
    except ssl.SSLError as error:
        raise CommandFailed(f"{failed}cert.pem and key.pem do not belong together, or are none") from error


def ls(session: Session, given: Given) -> int:
    """All of them, with the engine's address, and what is wrong with one."""
    form = "{{.Name}}" if given.on("quiet") else chosen_format(session, given, "")
    current = session.context
    names = {*session.contexts.names(), dockercontexts.DEFAULT, current}
    rows = [_row(session, name, name == current) for name in sorted(names, key=natural)]
    session.write(render_rows(form, rows, TITLES, TABLE).encode("utf-8", "surrogateescape"))
    _warn_of_host(session, "a context")
    return 0


def _row(session: Session, name: str, is_current: bool) -> dict[str, Any]:
    description = host = fault = ""
    try:
        stored = session.read_context(name)
        description = DESCRIPTION if name == dockercontexts.DEFAULT else stored.description
        host = stored.docker()[0]
    except CommandFailed as error:
        fault = shortened(error.message, 45)
    return {
        "Current": is_current,
        "Description": description,
        "DockerEndpoint": host,
        "Error": fault,
        "Name": name,
    }


def _warn_of_host(session: Session, named: str) -> None:
    variable = dockercontexts.host_variable(os.environ)
    if variable:
        session.warn(
            f"Warning: {variable} environment variable overrides the active context. To use {named}, either set the "
            f"global --context flag, or unset {variable} environment variable."
        )


def use(session: Session, given: Given) -> int:
    """Commands that name neither host nor context go there from now on."""
    name = given.arguments[0]
    if name != dockercontexts.DEFAULT:
        check_name(name)
        session.contexts.read(name)
    _set_current(session, "" if name == dockercontexts.DEFAULT else name)
    session.say(name)
    session.warn(f'Current context is now "{name}"')
    if name != dockercontexts.DEFAULT:
        _warn_of_host(session, f'"{name}"')
    return 0


def _set_current(session: Session, name: str) -> None:
    if session.config.setting("currentContext") != name:
        kept = {key: value for key, value in session.config.values.items() if key != "currentContext"}
        session.config.values = {**kept, "currentContext": name} if name else kept
        session.config.save()


def rm(session: Session, given: Given) -> int:
    """Remove them; the one in use only by force."""
    current, faults = session.context, []
    for name in given.arguments:
        try:
            _remove(session, name, current, by_force=given.on("force"))
            session.say(name)
        except CommandFailed as error:
            faults.append(error.message)
    if faults:
        raise CommandFailed("\n".join(faults))
    return 0


def _remove(session: Session, name: str, current: str, *, by_force: bool) -> None:
    if name == dockercontexts.DEFAULT:
        raise CommandFailed(f'context "{name}" cannot be removed')
    if not by_force and not session.contexts.has(name):
        raise CommandFailed(f'context "{name}" does not exist')
    if name == current and not by_force:
        raise CommandFailed(f'context "{name}" is in use, set -f flag to force remove')
    if session.config.setting("currentContext") == name:
        _set_current(session, "")
    session.contexts.remove(name)


def inspect(session: Session, given: Given) -> int:
    """Everything of each; without names, of the one in use."""

    def look(name: str) -> dict[str, Any]:
        stored = session.read_context(name)
        is_stored = name != dockercontexts.DEFAULT
        store = session.contexts
        return {
            "Name": stored.name,
            **({"Metadata": stored.meta["Metadata"]} if stored.meta.get("Metadata") is not None else {}),
            **({"Endpoints": stored.meta["Endpoints"]} if stored.meta.get("Endpoints") else {}),
            "TLSMaterial": {endpoint: list(files) for endpoint, files in stored.tls.items()},
            "Storage": {
                "MetadataPath": store.meta_directory(name) if is_stored else "<IN MEMORY>",
                "TLSPath": store.tls_directory(name) if is_stored else "<IN MEMORY>",
            },
        }

    return inspect_each(session, given, given.arguments or [session.context], look)


def show(session: Session, given: Given) -> int:
    """The name of the one in use."""
    session.say(session.context)
    return 0


def export(session: Session, given: Given) -> int:
    """Write one to a file that is not there yet, or to standard output."""
    name = given.arguments[0]
    target = given.arguments[1] if len(given.arguments) > 1 else f"{name}.dockercontext"
    if name != dockercontexts.DEFAULT:
        check_name(name)
    packed = pack(session.read_context(name))
    if target == "-":
        if is_terminal(1):
            raise CommandFailed("cowardly refusing to export to a terminal, specify a file path")
        session.write(packed)
        return 0
    try:
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(packed)
    except OSError as error:
        raise CommandFailed(f"open {target}: {why(error)}") from error
    session.warn(f"Written file {json.dumps(target, ensure_ascii=False)}")
    return 0


def import_(session: Session, given: Given) -> int:
    """Make one of what `context export` wrote."""
    name, source = given.arguments
    _check_new(session.contexts, name)
    try:
        if source == "-":
            archive = sys.stdin.buffer.read()
        else:
            with open(source, "rb") as file:
                archive = file.read()
    except OSError as error:
        raise CommandFailed(f"open {source}: {why(error)}") from error
    session.contexts.write(unpack(name, archive))
    return _made(session, name, "imported")


COMMANDS = {
    "context create": (
        Command(
            "[OPTIONS] CONTEXT",
            """
--description string  Description of the context
--docker stringToString  set the docker endpoint (default [])
--from string  create context from a named context
""",
            (1, 1),
            note=CONFIG.format("create"),
        ),
        create,
    ),
    "context update": (
        Command(
            "[OPTIONS] CONTEXT",
            """
--description string  Description of the context
--docker stringToString  set the docker endpoint (default [])
""",
            (1, 1),
            note=CONFIG.format("update"),
        ),
        update,
    ),
    "context ls": (
        Command(
            "[OPTIONS]",
            f"""
--format string  Format output using a custom template:{FORMAT_HELP}
-q, --quiet  Only show context names
""",
        ),
        ls,
    ),
    "context use": (Command("CONTEXT", "", (1, 1)), use),
    "context rm": (
        Command(
            "[OPTIONS] CONTEXT [CONTEXT...]", "-f, --force  Force the removal of a context in use", (1, None)
        ),
        rm,
    ),
    "context inspect": (Command("[OPTIONS] [CONTEXT] [CONTEXT...]", FORMAT, (0, None)), inspect),
    "context show": (Command(""), show),
    "context export": (Command("CONTEXT [FILE|-]", "", (1, 2)), export),
    "context import": (Command("CONTEXT FILE|-", "", (2, 2)), import_),
}
