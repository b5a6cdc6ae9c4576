"""`pull`, `push`, `login`, `logout` and `search`: what needs a registry."""

from __future__ import annotations

import os
import sys
from typing import Any

from ketch.credentials import HUB_KEY, HUB_NAMES, Auth, encode_header, host_of, registry_key
from ketch.faults import CommandFailed, EngineAnswer
from ketch.filters import build_filters
from ketch.options import Command, Given
from ketch.progressview import show
from ketch.pulling import pull_image
from ketch.references import parse_name
from ketch.session import Session
from ketch.terminal import ask, ask_secret, is_terminal
from ketch.views import render_rows, shortened

PULL = Command(
    "[OPTIONS] NAME[:TAG|@DIGEST]",
    """
--all-platforms  Download every platform of the image and what belongs to it
-a, --all-tags  Download every tag of the repository
--disable-content-trust  Accepted; images are not verified by signature (default true)
--platform string  Platform, where the image has several
--referrers  Download what refers to the image as well: signatures, SBOMs
-q, --quiet  Show the image's name alone
""",
    (1, 1),
)
PUSH = Command(
    "[OPTIONS] NAME[:TAG]",
    """
--all-platforms  Push the image for every platform, or fail where one is not here
-a, --all-tags  Push every tag of the repository
--compression-format string  Compress layers this way, of every platform: gzip, zstd or uncompressed
--compression-level int  How much: 1 to 9 for gzip, 1 to 20 for zstd
--disable-content-trust  Accepted; images are not signed (default true)
--force-compression  Compress every layer anew, even where the format is the same
--platform string  Push this platform's manifest alone ('os[/arch[/variant]]')
--referrers  Push the artifacts that refer to the image as well
-q, --quiet  Show the image's name alone
""",
    (1, 1),
)
LOGIN = Command(
    "[OPTIONS] [SERVER]",
    """
-p, --password string  Password or access token
--password-stdin  Take the password or access token from stdin
-u, --username string  Username
""",
    (0, 1),
    note="Defaults to Docker Hub if no server is specified.",
)
LOGOUT = Command("[SERVER]", "", (0, 1), note="Defaults to Docker Hub if no server is specified.")
SEARCH = Command(
    "[OPTIONS] TERM",
    """
-f, --filter filter  Show only results that fulfil the conditions
--format string  Format the results using a Go template
--limit int  Largest number of results
--no-trunc  Don't truncate output
""",
    (1, 1),
)


def pull(session: Session, given: Given) -> int:
    """Download an image, or with -a a whole repository."""
    name = parse_name(given.arguments[0])
    if given.on("all-tags"):
        if name.tag or name.digest:
            raise CommandFailed("tag can't be used with --all-tags/-a")
    elif not (name.tag or name.digest):
        name = name.with_default_tag()
        if not given.on("quiet"):
            session.say(f"Using default tag: {name.tag}")
    out = None if given.on("quiet") else sys.stdout
    tag = "" if given.on("all-tags") else None
    everything = given.on("all-platforms")
    platform = given.text("platform") if everything else session.platform(given)
    pull_image(
        session, name, out, platform=platform, tag=tag, everything=everything,
        referrers=given.on("referrers"),
    )  # fmt: skip
    session.say(name.canonical)
    return 0


def push(session: Session, given: Given) -> int:
    """Upload an image, or with -a all tags of it."""
    name = parse_name(given.arguments[0])
    if given.on("all-tags"):
        if name.tag or name.digest:
            raise CommandFailed("tag can't be used with --all-tags/-a")
    elif not (name.tag or name.digest):
        name = name.with_default_tag()
        if not given.on("quiet"):
            session.say(f"Using default tag: {name.tag}")
    if name.digest:
        raise CommandFailed("cannot push a digest reference")
    query: dict[str, Any] = {"tag": name.tag}
    if given.text("platform"):
        query["platform"] = platform_object(given.text("platform"))
    if given.on("all-platforms"):
        query["allPlatforms"] = True
    if given.on("referrers"):
        query["referrers"] = True
    if given.has("compression-format"):
        query["compressionFormat"] = given.text("compression-format")
    if given.has("compression-level"):
        query["compressionLevel"] = given.number("compression-level")
    if given.has("force-compression"):
        query["forceCompressionFormat"] = str(given.on("force-compression")).lower()
    headers = {"X-Registry-Auth": encode_header(session.auth_for(name.domain))}
    answer = session.engine.request("POST", f"/images/{name.repository}/push", query, headers=headers)

    def tell(aux: Any) -> None:
        if aux.get("manifestPushedInsteadOfIndex"):
            session.warn("Not all of its platforms are here: the image for one of them was pushed alone")

    show(session.engine.messages(answer), None if given.on("quiet") else sys.stdout, tell)
    if given.on("quiet"):
        session.say(name.canonical)
    return 0


def platform_object(text: str) -> dict[str, str]:
    """`os/arch[/variant]` as newer requests take it."""
    parts = text.lower().split("/")
    if len(parts) > 3 or not all(parts):
        raise CommandFailed(f'invalid platform: "{text}" is an invalid OS component or platform')
    return dict(zip(("os", "architecture", "variant"), parts, strict=False))


def login(session: Session, given: Given) -> int:
    """Check credentials with the registry, then keep them."""
    user, password = given.text("username"), given.text("password")
    if given.has("password"):
        if given.on("password-stdin"):
            raise CommandFailed("conflicting options: cannot specify both --password and --password-stdin")
        session.warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if given.on("password-stdin"):
        if not user:
            raise CommandFailed("the --password-stdin option requires --username to be set")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    host = _server(given)
    kept = {} if user or password else session.auth_for(host)
    if kept.get("username") or kept.get("identitytoken"):
        session.warn(f"Authenticating with existing credentials... [Username: {kept.get('username', '')}]")
        session.warn("\nTo log in with another account, run 'ketch logout' first, then 'ketch login'\n")
        try:
            session.say(session.engine.json("POST", "/auth", send=kept).get("Status") or "Login Succeeded")
            return 0
        except EngineAnswer as error:
            if error.status != 401:
                raise
            session.warn(f"Login did not succeed, error: {error.message}")
    auth = _credentials(session, host, user, password, kept.get("username", ""))
    return _store(session, host, auth)


def _server(given: Given) -> str:
    typed = given.arguments[0] if given.arguments else ""
    return host_of(typed) if typed and typed not in HUB_NAMES and typed != HUB_KEY else "docker.io"


def _credentials(session: Session, host: str, user: str, password: str, default: str) -> Auth:
    if not (user and password) and not is_terminal(0):
        raise CommandFailed("Error: Cannot perform an interactive login from a non TTY device")
    if not user:
        if host in HUB_NAMES:
            session.say(
                "Log in with your Docker ID or email address to push and pull images from Docker Hub.\n"
            )
        user = ask(f"Username ({default}): " if default else "Username: ").strip() or default
        if not user:
            raise CommandFailed("Error: Non-null Username Required")
    if not password:
        password = ask_secret("Password: ").strip()
        if not password:
            raise CommandFailed("Error: Password Required")
    return {"username": user, "password": password, "serveraddress": registry_key(host)}


def _store(session: Session, host: str, auth: Auth) -> int:
    """Let the engine try the credentials; keep them when they are right."""
    told = session.engine.json("POST", "/auth", send=auth)
    if told.get("IdentityToken"):
        auth = {**auth, "password": "", "identitytoken": told["IdentityToken"]}
    config = session.config
    try:
        config.store(host, auth)
    except CommandFailed as error:
        raise CommandFailed(f"Error saving credentials: {error.message}") from error
    except OSError as error:
        raise CommandFailed(f"Error saving credentials: {error.strerror}: {error.filename}") from error
    if not config.is_kept_by_helper(host):
        session.warn(
            f"\nWARNING! Your credentials are stored unencrypted in '{os.path.realpath(config.path)}'.\n"
            "Configure a credential helper to remove this warning. See\n"
            "https://docs.docker.com/go/credential-store/\n"
        )
    if told.get("Status"):
        session.say(told["Status"])
    return 0


def logout(session: Session, given: Given) -> int:
    """Forget the credentials of a registry."""
    host = _server(given)
    session.say(f"Removing login credentials for {registry_key(host)}")
    try:
        session.config.erase(host)
    except CommandFailed as error:
        session.warn(f"WARNING: could not erase credentials:\n{host}: {error.message}")
    except OSError as error:
        raise CommandFailed(f"Error saving credentials: {error.strerror}: {error.filename}") from error
    return 0


def search(session: Session, given: Given) -> int:
    """Look for repositories on Docker Hub."""
    query: dict[str, Any] = {"term": given.arguments[0]}
    if given.number("limit"):
        query["limit"] = given.number("limit")
    if given.many("filter"):
        query["filters"] = build_filters(given.many("filter"))
    headers = {"X-Registry-Auth": encode_header(session.auth_for("docker.io"))}
    found = session.engine.json("GET", "/images/search", query, headers=headers)
    rows = []
    for one in found:
        about = str(one.get("description") or "").replace("\n", " ").replace("\r", " ")
        rows.append(
            {
                "Name": one.get("name", ""),
                "Description": about if given.on("no-trunc") else shortened(about, 45),
                "StarCount": str(one.get("star_count") or 0),
                "IsOfficial": "[OK]" if one.get("is_official") else "",
            }
        )
    titles = {"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL"}
    table = "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}"
    session.write(render_rows(given.text("format"), rows, titles, table).encode("utf-8", "surrogateescape"))
    return 0


COMMANDS = {
    "pull": (PULL, pull),
    "push": (PUSH, push),
    "login": (LOGIN, login),
    "logout": (LOGOUT, logout),
    "search": (SEARCH, search),
}
