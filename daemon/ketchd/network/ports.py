"""Published ports: what was asked, which host port it becomes, who already has it. Pure.

Source: Engine API, HostConfig.PortBindings; messages are dockerd's (libnetwork/portallocator).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ketch_wire.faults import InvalidInput

PROTOCOLS = ("tcp", "udp", "sctp")
ANY_V4, ANY_V6 = "0.0.0.0", "::"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One binding as asked: container port to a host port out of low…high, on every address of `host_ips`.

    low 0: any free one. A blank host address means both families where the host has IPv6: one port, two bindings.
    """

    proto: str
    host_ips: tuple[str, ...]
    low: int
    high: int
    container_port: int

    @property
    def choices(self) -> int:
        """How many ports would do."""
        return self.high - self.low + 1 if self.low else 1 << 16


def parse(binding: Mapping[str, Any], *, default_ip: str, has_ipv6: bool) -> Wanted:
    """A binding {proto, host_ip, host_port, container_port}; host_port `8080`, `8080-8090`, `` or `0`. Raises InvalidInput."""
    proto = str(binding["proto"] or "tcp").lower()
    if proto not in PROTOCOLS:
        raise InvalidInput(f"invalid proto: {proto[:20]}")
    low, high = parse_range(str(binding["host_port"] or "0"))
    container_port = int(binding["container_port"])
    if not 1 <= container_port <= 65535:
        raise InvalidInput(f"invalid containerPort: {container_port}")
    asked = str(binding["host_ip"] or default_ip or "")
    if not asked:
        addresses = (ANY_V4, ANY_V6) if has_ipv6 else (ANY_V4,)
        return Wanted(proto, addresses, low, high, container_port)
    try:
        address = ipaddress.ip_address(asked.strip("[]"))
    except ValueError:
        raise InvalidInput(f"invalid hostIP: {asked[:60]}") from None
    return Wanted(proto, (str(address),), low, high, container_port)


def parse_range(text: str) -> tuple[int, int]:
    """`8080` -> (8080, 8080), `8080-8090` -> (8080, 8090), `0` -> (0, 0). Raises InvalidInput."""
    first, dash, last = text.partition("-")
    try:
        low, high = _port(first), _port(last) if dash else _port(first)
    except ValueError:
        raise InvalidInput(f"invalid hostPort: {text[:40]}") from None
    if high < low or (dash and not low):
        raise InvalidInput(f"invalid range format for hostPort: {text[:40]}")
    return low, high


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise ValueError(text)
    return int(text)


def candidates(wanted: Wanted, ephemeral: tuple[int, int], after: int) -> Iterator[int]:
    """Host ports to try, in order. Any free one: the ephemeral range from behind `after`, once round."""
    if wanted.low:
        yield from range(wanted.low, wanted.high + 1)
        return
    low, high = ephemeral
    size = high - low + 1
    begin = after + 1 if low <= after < high else low
    for step in range(size):
        yield low + (begin - low + step) % size


@dataclass(slots=True)
class PortTable:
    """Who holds which host port: proto -> port -> host address -> container id. An unspecified address (`0.0.0.0`, `::`)
    and a particular one of the same family cannot hold the same port."""

    _held: dict[str, dict[int, dict[str, str]]] = field(default_factory=dict)

    def is_free(self, proto: str, host_ip: str, port: int) -> bool:
        """Whether a container could have it."""
        holders = self._held.get(proto, {}).get(port)
        if not holders:
            return True
        family = ":" in host_ip
        return not any(
            held == host_ip or host_ip in (ANY_V4, ANY_V6) or held in (ANY_V4, ANY_V6)
            for held in holders
            if (":" in held) == family
        )

    def hold(self, proto: str, host_ip: str, port: int, container_id: str) -> None:
        """It is the container's now."""
        self._held.setdefault(proto, {}).setdefault(port, {})[host_ip] = container_id

    def let_go(self, proto: str, host_ip: str, port: int, container_id: str) -> None:
        """It is free again, if it was the container's."""
        holders = self._held.get(proto, {}).get(port, {})
        if holders.get(host_ip) == container_id:
            del holders[host_ip]
            if not holders:
                del self._held[proto][port]


def joined(host_ip: str, port: int) -> str:
    """`0.0.0.0:80`, `[::]:80`."""
    return f"[{host_ip}]:{port}" if ":" in host_ip else f"{host_ip}:{port}"


def failed(endpoint_name: str, endpoint_id: str, why: str) -> str:
    """dockerd's sentence for a port that cannot be published."""
    return (
        "failed to set up container networking: driver failed programming external connectivity on endpoint "
        f"{endpoint_name} ({endpoint_id}): {why}"
    )


def already_allocated(host_ip: str, port: int) -> str:
    """A container has it."""
    return f"Bind for {joined(host_ip, port)} failed: port is already allocated"


def cannot_bind(proto: str, host_ip: str, port: int, reason: str) -> str:
    """The host has it, or does not have the address: `listen tcp4 0.0.0.0:80: bind: address already in use`."""
    kind = f"{proto}6" if ":" in host_ip else f"{proto}4"
    return f"listen {kind} {joined(host_ip, port)}: bind: {reason}"


def all_allocated(host_ip: str) -> str:
    """No port of the range is free."""
    return f"Bind for {host_ip or ANY_V4} failed: all ports are allocated"
