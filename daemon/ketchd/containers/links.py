"""Links on the default bridge: what a container that has one sees of the other in its environment and its hosts file. Pure.

A record keeps its links as `{"id": …, "name": …, "alias": …}`: the other's id, what it was called last, and what it is called here.
Source: moby 28 daemon/links/links.go, daemon/container_operations.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NOT_TOLD = ("HOME", "PATH")  # what a build puts there


def has_names_of_its_own(mode: str) -> bool:
    """Whether links of this NetworkMode are a user-defined network's."""
    return mode not in ("", "default", "bridge", "host", "none") and not mode.startswith("container:")


def shown(parent: str, links: Sequence[Mapping[str, str]]) -> list[str] | None:
    """HostConfig.Links as inspect has them: `/db:/web/data`. parent: the name of the container that has them."""
    return [f"/{one['name']}:/{parent}/{one['alias']}" for one in links] or None


def variables(parent: str, alias: str, address: str, config: Mapping[str, Any]) -> list[str]:
    """The environment that tells of one link: the other's address, exposed ports and variables. config: the other's."""
    word = alias.upper().replace("-", "_")
    ports = sorted((_port(key) for key in config["ExposedPorts"] or {}), key=_tcp_first)
    told = [f"{word}_PORT={proto}://{address}:{number}" for number, proto in ports[:1]]
    for number, proto in ports:
        start = f"{word}_PORT_{number}_{proto.upper()}"
        told += [
            f"{start}={proto}://{address}:{number}", f"{start}_ADDR={address}", f"{start}_PORT={number}",
            f"{start}_PROTO={proto}",
        ]  # fmt: skip
    for first, last, proto in _ranges(ports):
        start = f"{word}_PORT_{first}_{proto.upper()}"
        told += [
            f"{start}_START={proto}://{address}:{first}", f"{start}_PORT_START={first}",
            f"{start}_END={proto}://{address}:{last}", f"{start}_PORT_END={last}",
        ]  # fmt: skip
    told.append(f"{word}_NAME=/{parent}/{alias}")
    for entry in config["Env"] or ():
        name, sign, value = entry.partition("=")
        if sign and name not in _NOT_TOLD:
            told.append(f"{word}_ENV_{name}={value}")
    return told


def _port(key: str) -> tuple[int, str]:
    number, _, proto = key.partition("/")
    return int(number), proto


def _tcp_first(port: tuple[int, str]) -> tuple[bool, str, int]:
    number, proto = port
    return proto != "tcp", proto, number


def _ranges(ports: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    """First, last and protocol of every range of successive ports, as `_tcp_first` sorts them."""
    at = 0
    while at < len(ports):
        (first, proto), end = ports[at], at
        while end + 1 < len(ports) and ports[end + 1] == (ports[end][0] + 1, proto):
            end += 1
        if end > at:
            yield first, ports[end][0], proto
        at = end + 1


def host_names(alias: str, name: str, hostname: str) -> str:
    """What the other is called in /etc/hosts: by its alias, its host name, and its name where that is another word."""
    return " ".join([alias, hostname, *([name] if name != alias else [])])


def moved(hosts: str, alias: str, address: str) -> str:
    """A hosts file in which the container called `alias` has another address."""
    lines = []
    for line in hosts.splitlines(keepends=True):
        _, tab, names = line.partition("\t")
        lines.append(f"{address}\t{names}" if tab and names.split()[:1] == [alias] else line)
    return "".join(lines)


def without(hosts: str, alias: str) -> str:
    """A hosts file that knows nobody called `alias`."""
    return "".join(
        line for line in hosts.splitlines(keepends=True) if line.partition("\t")[2].split()[:1] != [alias]
    )
