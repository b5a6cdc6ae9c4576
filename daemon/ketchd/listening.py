"""The addresses that ketchd listens on, as dockerd reads `-H` and `hosts`. Pure.

Source: moby opts/hosts.go, ParseHost and ParseTCPAddr; cmd/dockerd/daemon.go, loadListeners.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ketch_wire.defaults import DEFAULT_SOCKET
from ketch_wire.faults import InvalidInput
from ketchd.model.address import is_address

_HOST, _PORT, _TLS_PORT = "localhost", "2375", "2376"
_AUTHORITY = re.compile(
    r"\[(?P<in_brackets>[^][\s]+)\](?::(?P<after>[0-9]*))?|(?P<name>[^][:\s]*)(?::(?P<port>[0-9]*))?"
)

_ATTACK_SURFACE = """
         Access to the remote API is equivalent to root access on the host. Refer
         to the 'Docker daemon attack surface' section in the documentation for
         more information: https://docs.docker.com/go/attack-surface/"""


def addresses(hosts: Iterable[str], *, tls: bool) -> list[str]:
    """Each place once, in full: `unix://PATH`, `tcp://ADDRESS:PORT` or `fd://[NUMBER]`. Raises InvalidInput.

    Nothing, or an empty address, is the default: the unix socket, and with TLS `tcp://localhost:2376` instead of it.
    """
    default = f"tcp://{_HOST}:{_TLS_PORT}" if tls else f"unix://{DEFAULT_SOCKET}"
    found = [_parse(host.strip()) if host.strip() else default for host in hosts]
    return list(dict.fromkeys(found or [default]))


def open_doors(hosts: Iterable[str], *, tls: bool, verified: bool) -> list[str]:
    """What `info` warns of: addresses at which whoever reaches them is as root. verified: clients need a certificate.

    Source: moby daemon/info.go, fillAPIInfo.
    """
    if tls and verified:
        return []
    scheme, lack = ("https", "TLS client verification") if tls else ("http", "encryption")
    return [
        f"WARNING: API is accessible on {scheme}://{host.removeprefix('tcp://')} without {lack}.{_ATTACK_SURFACE}"
        for host in hosts
        if host.startswith("tcp://")
    ]


def _parse(host: str) -> str:
    scheme, sign, place = host.partition("://")
    if not sign:
        scheme, place = "tcp", host
    place = place.removeprefix(f"{scheme}://")
    if "://" in place:
        raise InvalidInput(
            f'invalid argument "{host}" for "-H, --host" flag: invalid proto, expected {scheme}: {place}'
        )
    if scheme == "unix":
        return f"unix://{place or DEFAULT_SOCKET}"
    if scheme == "fd" and (place in ("", "*") or (place.isascii() and place.isdigit() and int(place) >= 3)):
        return f"fd://{place.removeprefix('*')}"
    if scheme == "tcp":
        return f"tcp://{_authority(host, place)}"
    raise _wrong(host)


def _authority(host: str, place: str) -> str:
    """ADDRESS:PORT of what may lack either. A path is refused here: dockerd takes it for a part of the port, and fails to listen."""
    if ":" in place and is_address(place):
        return f"[{place}]:{_PORT}"
    found = _AUTHORITY.fullmatch(place)
    if found is None or "/" in place:
        raise _wrong(host)
    address, port = found["in_brackets"] or found["name"] or _HOST, found["after"] or found["port"] or _PORT
    if int(port) > 65535:
        raise _wrong(host)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _wrong(host: str) -> InvalidInput:
    return InvalidInput(
        f'invalid argument "{host}" for "-H, --host" flag: invalid bind address format: {host}'
    )
