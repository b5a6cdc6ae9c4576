"""TLS towards registries: the context of an endpoint, from the system's authorities and the host's own directory.

Directories are read again when they change, so a new certificate needs no restart.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.registry import hosts
from ketchd.registry.endpoints import Endpoint
from ketchd.registry.hosts import Certificates, Hosts

_HOSTS_FILE = "hosts.toml"
_FILE_LIMIT = 1024 * 1024
_CONTEXTS_KEPT = 64


class Trust:
    """Certificates by host. `directories`: each may hold a directory `HOST[:PORT]`, the first that does counts."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = [Path(directory) for directory in directories]
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}

    async def hosts(self, domain: str) -> Hosts | None:
        """The domain's hosts.toml, or `_default`'s; None without one. Raises InvalidInput."""
        return await asyncio.to_thread(self._read_hosts, domain)

    async def context(self, endpoint: Endpoint) -> ssl.SSLContext | None:
        """The context for `endpoint`; None for plain HTTP. Raises InvalidInput, EngineFailure (unusable files)."""
        if not endpoint.base.startswith("https:"):
            return None
        certificates = endpoint.certificates or self._certificates(endpoint.host)
        files = [*certificates.authorities, *(name for pair in certificates.pairs for name in pair if name)]
        key = (endpoint.verify, certificates, tuple(_stamp(name) for name in files))
        if (context := self._contexts.get(key)) is None:
            context = await asyncio.to_thread(_make, endpoint.verify, certificates)
            if len(self._contexts) >= _CONTEXTS_KEPT:
                self._contexts.clear()
            self._contexts[key] = context
        return context

    def _read_hosts(self, domain: str) -> Hosts | None:
        for name in (domain, "_default"):
            for directory in self._directories:
                path = directory / name / _HOSTS_FILE
                try:
                    if path.stat().st_size > _FILE_LIMIT:
                        raise InvalidInput(f"{path} is larger than {_FILE_LIMIT} bytes")
                    return hosts.parse(path.read_text("utf-8"), str(path.parent))
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except (OSError, UnicodeDecodeError) as error:
                    raise InvalidInput(f"{path} cannot be read: {error}") from error
        return None

    def _certificates(self, host: str) -> Certificates:
        for directory in self._directories:
            try:
                names = os.listdir(directory / host)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise InvalidInput(f"{directory / host} cannot be read: {error.strerror}") from error
            return hosts.pick_certificates(str(directory / host), names)
        return Certificates()


def _stamp(name: str) -> tuple[int, int]:
    try:
        found = os.stat(name)
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)


def _make(verify: bool, certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if verify:
        context.load_default_certs()
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    name = ""
    try:
        for name in certificates.authorities:
            context.load_verify_locations(name)
        for name, key in certificates.pairs:
            context.load_cert_chain(name, key or None)
    except (OSError, ssl.SSLError) as error:
        raise EngineFailure(f"cannot use certificate {name}: {error.strerror or error}") from error
    return context
