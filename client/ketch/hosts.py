"""Addresses of engines, as `-H` and DOCKER_HOST take them. Pure.

Source: docker/cli opts/hosts.go.
"""

from __future__ import annotations

from ketch.faults import CommandFailed
from ketch_wire.defaults import DEFAULT_SOCKET

SCHEMES = ("unix", "tcp", "ssh", "http", "https")


def parse_host(text: str, *, secure: bool = False) -> str:
    """An address with everything that may be left out: `:1` is `tcp://localhost:1`, a path a socket, nothing the default socket.

    secure: TLS, whose port is another. Raises CommandFailed in docker's words.
    """
    host = text.strip()
    if not host:
        return f"unix://{DEFAULT_SOCKET}"
    if host.startswith("/"):
        return f"unix://{host}"
    scheme, separator, place = host.partition("://")
    if not separator:
        scheme, place = "tcp", host
    if scheme == "unix":
        return f"unix://{place or DEFAULT_SOCKET}"
    if scheme == "tcp":
        address, port, path = split_tcp(host, place, 2376 if secure else 2375)
        shown = f"[{address}]" if ":" in address else address
        return f"tcp://{shown}:{port}{path}"
    if scheme not in SCHEMES:
        raise _wrong(host)
    return host


def split_tcp(host: str, place: str, port: int) -> tuple[str, int, str]:
    """(address, port, path) of `ADDRESS:PORT/PATH`. port: what a missing one is. Raises CommandFailed for what `host` is wrong in."""
    authority, slash, path = place.partition("/")
    if authority.startswith("["):
        address, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _wrong(host)
        number = rest[1:]
    else:
        address, _, number = authority.rpartition(":") if ":" in authority else (authority, "", "")
        if ":" in address:
            raise _wrong(host)
    if number and not (number.isascii() and number.isdigit() and int(number) < 65536):
        raise _wrong(host)
    return address or "localhost", int(number or port), (slash + path).rstrip("/")


def _wrong(host: str) -> CommandFailed:
    return CommandFailed(
        f"Failed to initialize: unable to resolve docker endpoint: invalid bind address format: {host}"
    )
