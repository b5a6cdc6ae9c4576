"""Ports as they are typed: `-p` and `--expose`, with ranges. Pure. Source: docker/go-connections nat, docker/cli opts."""

from __future__ import annotations

from collections.abc import Iterable

Bindings = dict[str, list[dict[str, str]]]
PROTOCOLS = ("tcp", "udp", "sctp")


def parse_published(specs: Iterable[str]) -> Bindings:
    """`[[ip:]host:]container[/proto]`, ranges, or `published=80,target=80`, as PortBindings. Raises ValueError."""
    bindings: Bindings = {}
    for spec in specs:
        for port, binding in _mappings(_plain(spec)):
            bindings.setdefault(port, []).append(binding)
    return bindings


def parse_exposed(spec: str) -> list[str]:
    """`80`, `80-90/udp` as `80/tcp`, … Raises ValueError."""
    if ":" in spec:
        raise ValueError(f"invalid port format for --expose: {spec}")
    protocol, ports = _split_protocol(spec)
    try:
        start, end = port_range(ports)
    except ValueError as error:
        raise ValueError(f"invalid range format for --expose: {spec}, error: {error}") from None
    return [f"{port}/{protocol.lower()}" for port in range(start, end + 1)]


def port_range(text: str) -> tuple[int, int]:
    """`80` or `80-90`. Raises ValueError."""
    if not text:
        raise ValueError("empty string specified for ports")
    first, dash, last = text.partition("-")
    start = _port(first)
    end = _port(last.partition("-")[0]) if dash else start
    if end < start:
        raise ValueError(f"invalid range specified for port: {text}")
    return start, end


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) > 0xFFFF:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def _plain(spec: str) -> str:
    if "=" not in spec:
        return spec
    fields = {"protocol": "tcp", "published": "", "target": ""}
    for part in spec.split(","):
        key, assigned, value = part.partition("=")
        if not assigned or not key:
            raise ValueError(f"invalid publish opts format (should be name=value but got '{part}')")
        fields[key] = value
    return f"{fields['published']}:{fields['target']}/{fields['protocol']}"


def _split_protocol(text: str) -> tuple[str, str]:
    port, _, rest = text.partition("/")
    return (rest.partition("/")[0] or "tcp", port) if port else ("", "")


def _mappings(spec: str) -> list[tuple[str, dict[str, str]]]:
    rest, _, container = spec.rpartition(":")
    address, _, host = rest.rpartition(":")
    protocol, container = _split_protocol(container)
    if address.startswith("["):
        if not address.endswith("]"):
            raise ValueError(f"invalid IP address {address}: address {address}:: missing ']' in address")
        address = address[1:-1]
    if address:
        import ipaddress

        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(f"invalid IP address: {address}") from None
    if not container:
        raise ValueError(f"no port specified: {spec}<empty>")
    try:
        start, end = port_range(container)
    except ValueError:
        raise ValueError(f"invalid containerPort: {container}") from None
    host_start = host_end = 0
    if host:
        try:
            host_start, host_end = port_range(host)
        except ValueError:
            raise ValueError(f"invalid hostPort: {host}") from None
        if end - start != host_end - host_start and start != end:
            raise ValueError(f"invalid ranges specified for container and host Ports: {container} and {host}")
    if protocol.lower() not in PROTOCOLS:
        raise ValueError(f"invalid proto: {protocol}")
    mappings = []
    for offset in range(end - start + 1):
        chosen = str(host_start + offset) if host else ""
        # One container port and a range of the host's: the engine picks the first that is free.
        if start == end and host_start != host_end:
            chosen = f"{chosen}-{host_end}"
        mappings.append((f"{start + offset}/{protocol.lower()}", {"HostIp": address, "HostPort": chosen}))
    return mappings
