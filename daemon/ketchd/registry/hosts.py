"""What a host's directory in certs.d says: certificates by file name, mirrors and settings by hosts.toml. Pure.

Source: dockerd's "Verify repository client with certificates"; containerd's docs/hosts.md.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ketch_wire.faults import InvalidInput

PULL, RESOLVE, PUSH = "pull", "resolve", "push"
_CAPABILITIES = (PULL, RESOLVE, PUSH)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths. pairs: (certificate, key); the key is empty when the certificate's file holds it too."""

    authorities: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One place to ask. url: scheme, host and path prefix; the prefix ends with /v2 unless override_path.

    capabilities: `pull` (by digest), `resolve` (trusted to say what a tag means), `push`.
    """

    url: str
    capabilities: frozenset[str] = frozenset(_CAPABILITIES)
    certificates: Certificates = Certificates()
    skip_verify: bool = False
    override_path: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Hosts:
    """A hosts.toml. server: the registry itself, None when the file does not name it. mirrors: to try before it, in order."""

    server: HostEntry | None = None
    mirrors: tuple[HostEntry, ...] = ()


def pick_certificates(directory: str, names: Sequence[str]) -> Certificates:
    """The files of a certs.d directory: *.crt are authorities, X.cert goes with X.key.

    Raises InvalidInput in dockerd's words.
    """
    there = set(names)
    authorities, pairs = [], []
    for name in sorted(names):
        stem = name.rpartition(".")[0]
        if name.endswith(".crt"):
            authorities.append(posixpath.join(directory, name))
        elif name.endswith(".cert"):
            if f"{stem}.key" not in there:
                raise InvalidInput(
                    f"missing key {stem}.key for client certificate {name}. CA certificates must use the extension .crt"
                )
            pairs.append((posixpath.join(directory, name), posixpath.join(directory, f"{stem}.key")))
        elif name.endswith(".key") and f"{stem}.cert" not in there:
            raise InvalidInput(f"missing client certificate {stem}.cert for key {name}")
    return Certificates(tuple(authorities), tuple(pairs))


def parse(text: str, directory: str) -> Hosts:
    """A hosts.toml that lies in `directory`; relative file names are meant from there. Raises InvalidInput."""
    import tomllib  # of the few that need it; settings with mirrors are checked here before the launcher is forked

    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{directory}/hosts.toml: {error}") from error
    where = f"{directory}/hosts.toml"
    mirrors = []
    table = document.get("host", {})
    if not isinstance(table, dict):
        raise InvalidInput(f"{where}: 'host' is no table")
    for url, settings in table.items():
        if not isinstance(settings, dict):
            raise InvalidInput(f"{where}: host {url!r} is no table")
        mirrors.append(_entry(url, settings, directory, where))
    server = document.get("server")
    if server is not None and not isinstance(server, str):
        raise InvalidInput(f"{where}: 'server' is no string")
    own = {key: value for key, value in document.items() if key not in ("host", "server")}
    return Hosts(_entry(server, own, directory, where) if server else None, tuple(mirrors))


def check_mirror(url: str) -> str:
    """A `registry-mirrors` value, with one slash at its end. Raises InvalidInput in dockerd's words."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInput(f'invalid mirror: "{url}" is not a valid URI') from None
    if parts.scheme not in ("http", "https"):
        raise InvalidInput(f'invalid mirror: unsupported scheme "{parts.scheme}" in "{url}"')
    if parts.query or parts.fragment:
        raise InvalidInput(f'invalid mirror: query or fragment at end of the URI "{url}"')
    if "@" in parts.netloc:
        raise InvalidInput(
            f'invalid mirror: username/password not allowed in URI "{parts.scheme}://xxxxx@{parts.netloc.rpartition("@")[2]}"'
        )
    return url.rstrip("/") + "/"


def _entry(url: str, settings: dict[str, Any], directory: str, where: str) -> HostEntry:
    full = url if "://" in url else f"https://{url}"
    parts = urlsplit(full)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise InvalidInput(f"{where}: {url!r} is no URL of a registry")
    words = settings.get("capabilities", list(_CAPABILITIES))
    if not isinstance(words, list) or any(word not in _CAPABILITIES for word in words):
        raise InvalidInput(f"{where}: unknown capability for {url!r}: pull, resolve and push are known")
    override = _flag(settings, "override_path", where)
    path = parts.path.rstrip("/")
    if not override and not path.endswith("/v2"):
        path += "/v2"
    return HostEntry(
        f"{parts.scheme}://{parts.netloc}{path}",
        frozenset(words),
        Certificates(
            tuple(_files(settings.get("ca"), directory, where)),
            tuple(_pairs(settings.get("client"), directory, where)),
        ),
        _flag(settings, "skip_verify", where),
        override,
        tuple(_headers(settings.get("header"), where)),
    )


def _flag(settings: dict[str, Any], key: str, where: str) -> bool:
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"{where}: {key!r} is neither true nor false")
    return value


def _files(value: Any, directory: str, where: str) -> list[str]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InvalidInput(f"{where}: 'ca' is neither a path nor a list of paths")
    return [posixpath.join(directory, name) for name in found]


def _pairs(value: Any, directory: str, where: str) -> list[tuple[str, str]]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list):
        raise InvalidInput(f"{where}: 'client' is neither a path nor a list")
    pairs = []
    for item in found:
        both = [item] if isinstance(item, str) else item
        if (
            not isinstance(both, list)
            or not 1 <= len(both) <= 2
            or not all(isinstance(name, str) for name in both)
        ):
            raise InvalidInput(f"{where}: 'client' holds what is no certificate with its key")
        key = posixpath.join(directory, both[1]) if len(both) == 2 and both[1] else ""
        pairs.append((posixpath.join(directory, both[0]), key))
    return pairs


def _headers(value: Any, where: str) -> list[tuple[str, str]]:
    if value is None:
        return []
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: 'header' is no table")
    pairs = []
    for name, given in value.items():
        for text in given if isinstance(given, list) else [given]:
            if not isinstance(text, str) or not text.isprintable() or not name.replace("-", "").isalnum():
                raise InvalidInput(f"{where}: header {name!r} is not usable")
            pairs.append((name, text))
    return pairs
