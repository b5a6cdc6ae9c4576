"""On which networks a container wants to be, as what, and with which of them it reaches the outside. Pure.

A container's record keeps the wanted endpoints in `networking`: network (name or id) -> the settings as the Engine API has
them, its NetworkMode's first. Source: Engine API 1.50, EndpointSettings; messages are dockerd's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from ketch_wire.faults import InvalidInput, Unsupported
from ketchd.containers.shapes import fold, pick

SETTINGS: dict[str, Any] = {
    "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": "", "DriverOpts": None, "GwPriority": 0,
}  # fmt: skip
_MAC = re.compile(
    r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(\1[0-9a-fA-F]{2}){4}|[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2}"
)
_ALONE = ("host", "none")


def normalise(mode: str, sent: Mapping[str, Any], *, mac: str = "") -> dict[str, Any]:
    """The wanted endpoints of a create request: NetworkMode's first, Docker's spelling. sent: as `fields` has read it. mac: Config.MacAddress.

    Raises InvalidInput, Unsupported.
    """
    asked = {
        ("bridge" if name == "default" else name): check(name, settings) for name, settings in sent.items()
    }
    macs = [mac, *(settings["MacAddress"] for settings in asked.values())]
    if (mode == "host" or mode.startswith("container:")) and any(macs):
        raise InvalidInput("conflicting options: mac-address and the network mode")
    if mode.startswith("container:"):
        if any(name != mode for name in asked):
            raise InvalidInput(
                "conflicting options: cannot attach user defined network to non user-defined network-mode"
            )
        return {}
    if mode in _ALONE and any(name != mode for name in asked):
        raise InvalidInput(
            "conflicting options: cannot attach user defined network to non user-defined network-mode"
        )
    first = asked.pop(mode, None) or check(mode, {})
    if mac and not first["MacAddress"]:
        first = check(mode, {**first, "MacAddress": mac})
    return {mode: first, **asked}


def check(network: str, sent: Mapping[str, Any] | None) -> dict[str, Any]:
    """One endpoint's settings, every key present. sent: as `fields` has read it. Raises InvalidInput, Unsupported."""
    settings = fold(sent, SETTINGS)
    ipam = settings["IPAMConfig"] or {}
    address = pick(ipam, "IPv4Address", "")
    if pick(ipam, "IPv6Address", "") or pick(ipam, "LinkLocalIPs", []):
        raise Unsupported("IPv6 and link-local addresses of an endpoint are not supported")
    if address:
        try:
            IPv4Address(address)
        except AddressValueError:
            raise InvalidInput(f"invalid IPv4 address: {address[:60]}") from None
    user_defined = network not in ("bridge", "default", *_ALONE)
    if address and not user_defined:
        raise InvalidInput("user specified IP address is supported on user defined networks only")
    if settings["Aliases"] and not user_defined:
        raise InvalidInput("network-scoped alias is supported only for containers in user defined networks")
    for one in settings["Links"] or ():
        parse_link(one)
    if settings["MacAddress"] and not _MAC.fullmatch(settings["MacAddress"]):
        raise InvalidInput(f"invalid MAC address: {settings['MacAddress'][:40]}")
    if settings["MacAddress"]:  # as Go's net.ParseMAC takes it: 02-42-…, 0242.…
        digits = re.sub(r"[:.-]", "", settings["MacAddress"]).lower()
        settings["MacAddress"] = bytes.fromhex(digits).hex(":")
    return settings


def parse_link(text: str) -> tuple[str, str]:
    """`db:data` -> (db, data): the container db is data to whoever has the link; `db` is itself. Raises InvalidInput.

    Source: docker/cli opts/opts.go, ParseLink; `/db:/web/data`, as inspect shows links, is read as well.
    """
    if not text:
        raise InvalidInput("empty string specified for links")
    name, *rest = text.split(":")
    if len(rest) > 1:
        raise InvalidInput(f"bad format for links: {text[:200]}")
    return name.lstrip("/"), (rest[0] if rest else name).rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One endpoint to be. address, mac: asked for, empty for any. links: (name, alias) of others, for this one alone."""

    network: str
    address: str
    mac: str
    aliases: tuple[str, ...]
    priority: int
    links: tuple[tuple[str, str], ...] = ()


def wanted(networking: Mapping[str, Any]) -> list[Wanted]:
    """The endpoints that a start reserves, in the order of the container's interfaces; none for host and none."""
    return [of(network, settings) for network, settings in networking.items() if network not in _ALONE]


def of(network: str, settings: Mapping[str, Any]) -> Wanted:
    """One of them."""
    return Wanted(
        network=network,
        address=pick(settings["IPAMConfig"], "IPv4Address", ""),
        mac=settings["MacAddress"],
        aliases=tuple(settings["Aliases"] or ()),
        priority=int(settings["GwPriority"]),
        links=tuple(parse_link(one) for one in settings["Links"] or ()),
    )


def leading(candidates: Sequence[tuple[str, int, bool]]) -> int | None:
    """Which endpoint the default route goes by: (network, priority, internal) of each; None when all are internal.

    The highest priority, then the name that sorts first. Source: Engine API, EndpointSettings.GwPriority.
    """
    outside = [index for index, (_, _, internal) in enumerate(candidates) if not internal]
    return min(outside, key=lambda index: (-candidates[index][1], candidates[index][0]), default=None)


def dns_names(name: str, container_id: str, hostname: str, aliases: Iterable[str]) -> list[str]:
    """By which others on a user-defined network find it: its name first, then aliases, short id, host name; each once."""
    return list(dict.fromkeys(filter(None, [name, *aliases, container_id[:12], hostname])))


def show(
    settings: Mapping[str, Any] | None, lease: Mapping[str, Any] | None, network_id: str, names: Sequence[str]
) -> dict[str, Any]:
    """As inspect shows an endpoint. lease: None while the container does not run. names: DNS names, empty without any."""
    shown, given = settings or SETTINGS, lease or {}
    return {
        "IPAMConfig": shown["IPAMConfig"],
        "Links": shown["Links"],
        "Aliases": shown["Aliases"],
        "MacAddress": given.get("mac", ""),
        "DriverOpts": shown["DriverOpts"],
        "GwPriority": shown["GwPriority"],
        "NetworkID": network_id,
        "EndpointID": given.get("endpoint_id", ""),
        "Gateway": given.get("default_gateway") or given.get("gateway", ""),
        "IPAddress": given.get("address", ""),
        "IPPrefixLen": given.get("prefix", 0),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": list(names) or None,
    }
