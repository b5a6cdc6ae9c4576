"""The packet rules of every network as nft text: whole, and as changes of one map. Pure.

One table `inet ketch-BRIDGE`, named after the default bridge, so that several ketchd on one host never meet. A published port
is an element of one of two maps, and a map costs the same for one port as for thousands:

    ports_any   proto . host port                 -> container address . port     (published on every address)
    ports       proto . host address . host port  -> container address . port     (published on one address)

guard        nothing from a bridge may name the host's 127.0.0.0/8 (route_localnet is on there for the next two)
prerouting   translates what comes from elsewhere, a container of ours included (hairpin)
output       translates what the host itself sends, to 127.0.0.1 included
postrouting  gives hairpin and loopback connections our address, so that the answer comes back through us; hides containers
             behind the host's address on the way out
forward      lets in what was published or asked for, keeps networks apart, keeps internal ones in

`bridge ketch-BRIDGE` exists while a user-defined network does: a container's own 127.0.0.0/8 is reachable by the embedded DNS
server's answers (see `names`), and must not be by its neighbours.

A container has no IPv6 address, and nft cannot translate IPv6 to IPv4: a port published on `::` is reserved there (see
`sockets`) and refused at once, so that a client that tried `::1` first goes on to 127.0.0.1.
Source: nft(8); moby libnetwork/drivers/bridge for what is let through.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import InvalidInput

_WITH_ELEMENTS = re.compile(
    r"(?P<head>\b(?:set|map) (?P<name>\w+) \{[^{}]*)elements = \{(?P<elements>[^{}]*)\}"
)
PORT_MAPS = ("ports", "ports_any")
_BRIDGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


def check_bridge_name(name: str) -> str:
    """`name`, when a link can be called that and nft needs no quoting. Raises InvalidInput."""
    if not _BRIDGE_NAME.fullmatch(name):
        raise InvalidInput(f"invalid bridge name: {name[:40]!r}")
    return name


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """What the rules need of one bridge network. subnet `172.17.0.0/16`. resolver: (gateway, udp port, tcp port) where the
    embedded DNS server listens, None without."""

    bridge: str
    subnet: str
    internal: bool = False
    icc: bool = True
    masquerade: bool = True
    resolver: tuple[str, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """One published port: host address (`0.0.0.0` for all) and port to a container's."""

    proto: str
    host_ip: str
    host_port: int
    address: str
    port: int

    @property
    def map(self) -> str:
        """The map it is an element of."""
        return "ports_any" if self.host_ip == "0.0.0.0" else "ports"

    @property
    def key(self) -> str:
        """Its key there."""
        middle = "" if self.host_ip == "0.0.0.0" else f" . {self.host_ip}"
        return f"{self.proto}{middle} . {self.host_port}"

    @property
    def element(self) -> str:
        """It whole, as nft takes and prints it."""
        return f"{self.key} : {self.address} . {self.port}"


def forwards(records: Iterable[dict[str, Any]], address: str) -> list[Forward]:
    """The elements of a container's published ports; IPv6 ones are not translated and left out."""
    return [
        Forward(one["proto"], one["host_ip"], one["host_port"], address, one["container_port"])
        for one in records
        if ":" not in one["host_ip"]
    ]


def table_name(bridge: str) -> str:
    """The table of the instance whose default bridge it is."""
    return f"ketch-{bridge}"


def tables(bridge: str) -> list[str]:
    """Every table of ours, as nft names it; that of the bridge family is not always there."""
    return [f"{family} {table_name(bridge)}" for family in ("inet", "bridge")]


def without_elements(listed: str) -> tuple[str, dict[str, set[str]]]:
    """A table as `nft list table` prints it, taken apart: its text without elements, and set or map -> elements.

    Which element stands first, and how many in a line, is the kernel's and nft's choice.
    """
    found: dict[str, set[str]] = {}

    def take(match: re.Match[str]) -> str:
        found[match["name"]] = {" ".join(one.split()) for one in match["elements"].split(",")}
        return match["head"].rstrip()

    return _WITH_ELEMENTS.sub(take, listed), found


def ruleset(bridge: str, networks: Sequence[NetworkRules], ports: Sequence[Forward]) -> str:
    """The whole table anew, in one transaction: what was there of ours is replaced."""
    table = table_name(bridge)
    lines = [f"add table inet {table}", f"delete table inet {table}", f"table inet {table} {{"]
    lines += _set("bridges", "ifname", [f'"{one.bridge}"' for one in networks])
    lines += _set("subnets", "ipv4_addr", [one.subnet for one in networks], interval=True)
    for name, key in (
        ("ports", "inet_proto . ipv4_addr . inet_service"),
        ("ports_any", "inet_proto . inet_service"),
    ):
        lines.append(f"  map {name} {{ type {key} : ipv4_addr . inet_service")
        chosen = [one.element for one in ports if one.map == name]
        lines += [f"    elements = {{ {', '.join(chosen)} }}"] if chosen else []
        lines.append("  }")
    lines += _chain("guard", "filter hook prerouting priority -300", _guard(networks))
    lines += _chain(
        "publish",
        "",
        [
            "meta nfproto ipv4 dnat ip to meta l4proto . ip daddr . th dport map @ports",
            "meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @ports_any",
        ],
    )
    lines += _chain("prerouting", "nat hook prerouting priority -100", [*_resolver(networks), "jump publish"])
    lines += _chain("output", "nat hook output priority -100", ["jump publish"])
    lines += _chain("postrouting", "nat hook postrouting priority 100", _postrouting(networks))
    lines += _chain("forward", "filter hook forward priority 0", _forward(networks))
    lines += _chain("inward", "", _inward(networks))
    lines.append("}")
    lines += [f"add table bridge {table}", f"delete table bridge {table}"]
    if any(one.resolver for one in networks):
        lines.append(f"table bridge {table} {{")
        lines += _chain(
            "forward",
            "filter hook forward priority 0",
            ["ip daddr 127.0.0.0/8 drop", "ip saddr 127.0.0.0/8 drop"],
        )
        lines.append("}")
    return "\n".join(lines) + "\n"


def without_bridge_family(text: str) -> str:
    """The ruleset for a kernel that has no nf_tables for bridges."""
    head, found, _ = text.partition("add table bridge ")
    return head if found else text


def removals(bridge: str) -> list[str]:
    """Commands that take everything away, each on its own: what is not there, or not supported, does not matter."""
    table = table_name(bridge)
    return [f"add table {family} {table}\ndelete table {family} {table}\n" for family in ("inet", "bridge")]


def add_ports(bridge: str, ports: Sequence[Forward]) -> str:
    """The elements of newly published ports. Fails as a whole when the table is not there."""
    return _elements("add", bridge, ports, lambda one: one.element)


def remove_ports(bridge: str, ports: Sequence[Forward]) -> str:
    """The elements of ports that are no longer published. Fails as a whole when one of them is not there."""
    return _elements("delete", bridge, ports, lambda one: one.key)


def _elements(verb: str, bridge: str, ports: Sequence[Forward], render: Any) -> str:
    lines = []
    for name in PORT_MAPS:
        chosen = [render(one) for one in ports if one.map == name]
        if chosen:
            lines.append(f"{verb} element inet {table_name(bridge)} {name} {{ {', '.join(chosen)} }}\n")
    return "".join(lines)


def _set(name: str, kind: str, elements: Sequence[str], interval: bool = False) -> list[str]:
    flags = "; flags interval" if interval else ""
    lines = [f"  set {name} {{ type {kind}{flags}"]
    lines += [f"    elements = {{ {', '.join(elements)} }}"] if elements else []
    return [*lines, "  }"]


def _chain(name: str, hook: str, rules: Sequence[str]) -> list[str]:
    head = [f"    type {hook}; policy accept;"] if hook else []
    return [f"  chain {name} {{", *head, *(f"    {rule}" for rule in rules), "  }"]


def _guard(networks: Sequence[NetworkRules]) -> list[str]:
    open_port = ["iifname @bridges ip daddr 127.0.0.11 th dport 53 meta l4proto { tcp, udp } accept"]
    return [
        *(open_port if any(one.resolver for one in networks) else []),
        "iifname @bridges ip daddr 127.0.0.0/8 drop",
    ]


def _resolver(networks: Sequence[NetworkRules]) -> list[str]:
    rules = []
    for one in networks:
        if one.resolver is not None:
            gateway, udp, tcp = one.resolver
            for proto, port in (("udp", udp), ("tcp", tcp)):
                rules.append(
                    f'iifname "{one.bridge}" ip daddr 127.0.0.11 {proto} dport 53 dnat ip to {gateway}:{port}'
                )
    return rules


def _postrouting(networks: Sequence[NetworkRules]) -> list[str]:
    return [
        "oifname @bridges ct status dnat ip saddr 127.0.0.0/8 masquerade",
        "oifname @bridges ct status dnat ip saddr @subnets masquerade",
        *(
            f'ip saddr {one.subnet} oifname != "{one.bridge}" masquerade'
            for one in networks
            if one.masquerade and not one.internal
        ),
    ]


def _forward(networks: Sequence[NetworkRules]) -> list[str]:
    rules = []
    for one in networks:
        if one.internal:
            rules.append(f'iifname "{one.bridge}" oifname != "{one.bridge}" drop')
            rules.append(f'oifname "{one.bridge}" iifname != "{one.bridge}" drop')
    return [*rules, "oifname @bridges jump inward"]


def _inward(networks: Sequence[NetworkRules]) -> list[str]:
    return [
        "ct state established,related accept",
        "ct status dnat accept",
        *(f'iifname "{one.bridge}" oifname "{one.bridge}" accept' for one in networks if one.icc),
        "drop",
    ]
