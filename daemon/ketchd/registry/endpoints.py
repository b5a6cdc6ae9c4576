"""Where to ask for a repository: the registry itself, its mirrors, in which order and how far to trust them. Pure.

Source: dockerd's registry/service_v2.go; containerd's docs/hosts.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.model.reference import HUB
from ketchd.registry.hosts import PULL, PUSH, RESOLVE, Certificates, HostEntry, Hosts, check_mirror

HUB_API = "registry-1.docker.io"
HUB_INDEX = "index.docker.io"
HUB_SERVER = "https://index.docker.io/v1/"
_LOOPBACK = ("127.0.0.0/8", "::1/128")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to ask.

    base: URL up to and with `/v2`. host: `name[:port]`, whose certificates and credentials apply. namespace: the
    registry meant, when this host is another's mirror. verify: whether its certificate must be valid. own: whether the
    request's credentials are meant for it. resolves: whether it may say what a tag means.
    """

    base: str
    host: str
    verify: bool = True
    own: bool = True
    resolves: bool = True
    namespace: str = ""
    certificates: Certificates | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def is_secure(self) -> bool:
        """Whether what is sent there cannot be read or changed on the way."""
        return self.verify and self.base.startswith("https:")


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's. insecure: host[:port] names and CIDRs. mirrors: URLs, for Docker Hub.

    certificate_directories: each holds one directory per host. downloads, uploads: blobs at once. attempts: of one blob.
    """

    insecure: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    certificate_directories: tuple[str, ...] = ("/etc/docker/certs.d", "/etc/ketch/certs.d")
    downloads: int = 6
    uploads: int = 5
    attempts: int = 5
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def is_insecure(host: str, addresses: Sequence[str], insecure: Sequence[str]) -> bool:
    """Whether `host[:port]` may be asked without a verified certificate. addresses: what its name resolves to.

    Loopback may, as with dockerd: nobody stands in between.
    """
    name = hostname(host)
    if host in insecure or name in insecure:
        return True
    if host == HUB:
        return False
    networks = [*_LOOPBACK, *(entry for entry in insecure if "/" in entry)]
    for address in addresses or [name]:
        for network in networks:
            try:
                if ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False):
                    return True
            except ValueError:
                continue
    return False


def hostname(host: str) -> str:
    """`host[:port]` without the port and without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def choose(
    domain: str, settings: Settings, hosts: Hosts | None, *, insecure: bool, push: bool = False
) -> list[Endpoint]:
    """The endpoints for a repository of `domain`, to try in this order. Raises InvalidInput (a mirror's URL is none).

    A mirror never gets the request's credentials, and a push never goes to one.
    """
    found: list[Endpoint] = []
    if hosts is not None:
        wanted = PUSH if push else PULL
        found += [_of_entry(entry, domain) for entry in hosts.mirrors if wanted in entry.capabilities]
    if domain == HUB and not push and not (hosts is not None and hosts.mirrors):
        for mirror in settings.mirrors:
            checked = check_mirror(mirror)
            host = urlsplit(checked).netloc
            found.append(
                Endpoint(f"{checked}v2", host, verify=host not in settings.insecure, own=False, namespace="")
            )
    if hosts is not None and hosts.server is not None:
        server = _of_entry(hosts.server, domain)
        return [*found, _owned(server, domain)]
    if domain == HUB:
        return [*found, Endpoint(f"https://{HUB_API}/v2", HUB)]
    if insecure:
        return [
            *found,
            Endpoint(f"https://{domain}/v2", domain, verify=False),
            Endpoint(f"http://{domain}/v2", domain, verify=False),
        ]
    return [*found, Endpoint(f"https://{domain}/v2", domain)]


def _of_entry(entry: HostEntry, domain: str) -> Endpoint:
    host = urlsplit(entry.url).netloc
    own = host == domain or (domain == HUB and host == HUB_API)
    return Endpoint(
        entry.url,
        HUB if own and domain == HUB else host,
        verify=not entry.skip_verify,
        own=own,
        resolves=RESOLVE in entry.capabilities,
        namespace="" if own else domain,
        certificates=entry.certificates if entry.certificates != Certificates() else None,
        headers=entry.headers,
    )


def _owned(server: Endpoint, domain: str) -> Endpoint:
    """The administrator named this host as the registry itself: its credentials go there."""
    return Endpoint(
        server.base, domain, verify=server.verify, own=True, resolves=True, namespace=server.namespace,
        certificates=server.certificates, headers=server.headers,
    )  # fmt: skip


def server_host(address: str) -> str:
    """The host meant by an AuthConfig's serveraddress, whatever form it has. Raises InvalidInput."""
    if not address or address == HUB_SERVER:
        return HUB
    text = address if "://" in address else f"https://{address}"
    try:
        host = urlsplit(text).netloc
        _ = urlsplit(text).port
    except ValueError:
        host = ""
    if not host or any(character.isspace() or not character.isprintable() for character in host):
        raise InvalidInput(f'unable to parse server address: parse "{text[:200]}": invalid host name')
    return HUB if host in (HUB, HUB_INDEX, HUB_API) else host


def follow(base: str, location: str) -> str:
    """Where an answer of `base` leads. Raises EngineFailure: another scheme than HTTP, or from TLS to plain text."""
    try:
        target = urljoin(base, location)
        before, after = urlsplit(base), urlsplit(target)
        _ = after.port
    except ValueError as error:
        raise EngineFailure("the registry redirects to what is no URL") from error
    if after.scheme not in ("http", "https") or not after.hostname:
        raise EngineFailure(f"the registry redirects to an unsupported URL {shown(target)!r}")
    if before.scheme == "https" and after.scheme == "http":
        raise EngineFailure(f"the registry redirects from https to plain text at {after.netloc}: refused")
    return target


def same_origin(first: str, second: str) -> bool:
    """Whether two URLs have scheme, host and port in common: only then do credentials follow."""
    return _origin(urlsplit(first)) == _origin(urlsplit(second))


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def shown(url: str) -> str:
    """A URL for a message: without query (signatures stand there) and without user information."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:500]


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy for `url` by HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as Go reads them; None for a direct connection."""
    parts = urlsplit(url)
    key = "https_proxy" if parts.scheme == "https" else "http_proxy"
    proxy = environment.get(key.upper()) or environment.get(key) or ""
    if not proxy:
        return None
    host = (parts.hostname or "").lower()
    if host == "localhost" or _is_loopback(host):
        return None
    bypass = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    port = parts.port or _PORTS.get(parts.scheme, 0)
    if any(_bypasses(entry.strip().lower(), host, port) for entry in bypass.split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bypasses(entry: str, host: str, port: int) -> bool:
    if not entry:
        return False
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit() and "]" not in number:
        if int(number) != port:
            return False
        entry = name.strip("[]")
    if entry.startswith("*."):
        entry = entry[1:]
    if entry.startswith("."):
        return host.endswith(entry)
    return host == entry or host.endswith(f".{entry}")
