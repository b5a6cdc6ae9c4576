"""The network side of `run` and `create`: `--network` in both notations and its companions, as EndpointsConfig. Pure.

Source: docker/cli opts/network.go, cli/command/container/opts.go (parseNetworkOpts).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ketch.mounts import split_fields
from ketch.options import Given

_LONG = re.compile(r"\w+=\w+(,\w+=\w+)*", re.ASCII)
_MAC = re.compile(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}")

# Every field, as a client in Go sends them: an engine sees no difference.
ENDPOINT: dict[str, Any] = {
    "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": "", "DriverOpts": None, "GwPriority": 0,
    "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "",
    "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": None,
}  # fmt: skip


class Attachment(NamedTuple):
    """One network to join, as typed."""

    target: str
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    ipv4: str = ""
    ipv6: str = ""
    link_local: tuple[str, ...] = ()
    mac: str = ""
    driver_options: tuple[tuple[str, str], ...] = ()
    priority: int = 0


def is_mac(text: str) -> bool:
    """Whether `text` is an Ethernet address."""
    return _MAC.fullmatch(text) is not None


def is_user_defined(mode: str) -> bool:
    """Whether a network mode names a network of the user's own."""
    return mode not in ("default", "bridge", "host", "none", "") and not mode.startswith("container:")


def parse_network(text: str) -> Attachment:
    """One `--network`: a name, or `name=N,alias=A,ip=…`. Raises ValueError."""
    if not _LONG.search(text):
        return Attachment(text)
    found = Attachment("")
    for one in split_fields(text):
        key, assigned, value = (part.strip() for part in one.lower().partition("="))
        if not assigned or not key:
            raise ValueError(f"invalid field {one}")
        found = _with(found, key, value)
    if not found.target:
        raise ValueError("network name/id is not specified")
    return found


def _with(found: Attachment, key: str, value: str) -> Attachment:
    if key == "name":
        return found._replace(target=value)
    if key == "alias":
        return found._replace(aliases=(*found.aliases, value))
    if key == "ip":
        return found._replace(ipv4=value)
    if key == "ip6":
        return found._replace(ipv6=value)
    if key == "mac-address":
        if not is_mac(value):
            raise ValueError(f"{value} is not a valid mac address")
        return found._replace(mac=value)
    if key == "link-local-ip":
        return found._replace(link_local=(*found.link_local, value))
    if key == "driver-opt":
        name, assigned, option = value.partition("=")
        if not assigned or not name:
            raise ValueError("invalid key value pair format in driver options")
        return found._replace(driver_options=(*found.driver_options, (name.strip(), option.strip())))
    if key == "gw-priority":
        try:
            return found._replace(priority=int(value))
        except ValueError:
            raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
    raise ValueError(f"invalid field key {key}")


def network_mode(given: Given) -> str:
    """HostConfig.NetworkMode: the first network."""
    networks = given.many("network")
    return parse_network(networks[0]).target if networks else "default"


def endpoints(given: Given) -> dict[str, Any]:
    """EndpointsConfig. Raises ValueError for what contradicts itself."""
    typed = [parse_network(text) for text in given.many("network")]
    if not typed:
        return {"default": _endpoint(_with_old_flags(Attachment("default"), given))}
    found: dict[str, Any] = {}
    kinds = set()
    for at, one in enumerate(typed):
        kinds.add(is_user_defined(one.target))
        if at == 0:
            one = _with_old_flags(one, given)
        endpoint = _endpoint(one)
        if one.target in found:
            raise ValueError(f'network "{one.target}" is specified multiple times')
        # One network and nothing else: its mode says it all.
        if len(typed) == 1 and endpoint == ENDPOINT:
            continue
        found[one.target] = endpoint
    if len(kinds) > 1:
        raise ValueError(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
        )
    return found


def _with_old_flags(one: Attachment, given: Given) -> Attachment:
    """`--network-alias`, `--link`, `--ip`, … belong to the first network."""
    aliases, links = tuple(given.many("network-alias")), tuple(given.many("link"))
    ipv4, ipv6, mac = given.text("ip"), given.text("ip6"), given.text("mac-address")
    link_local = tuple(given.many("link-local-ip"))
    for both, old, new in (
        (aliases and one.aliases, "--network-alias", "per-network alias"),
        (ipv4 and one.ipv4, "--ip", "per-network IPv4 address"),
        (ipv6 and one.ipv6, "--ip6", "per-network IPv6 address"),
        (mac and one.mac, "--mac-address", "per-network MAC address"),
        (link_local and one.link_local, "--link-local-ip", "per-network link-local IP addresses"),
    ):
        if both:
            raise ValueError(f"conflicting options: cannot specify both {old} and {new}")
    return one._replace(
        aliases=one.aliases or aliases,
        links=links if one.target not in ("default", "bridge") else (),
        ipv4=one.ipv4 or ipv4,
        ipv6=one.ipv6 or ipv6,
        mac=one.mac or mac.strip(),
        link_local=one.link_local or link_local,
    )


def _endpoint(one: Attachment) -> dict[str, Any]:
    if not one.target.strip():
        raise ValueError("no name set for network")
    if not is_user_defined(one.target):
        if one.aliases:
            raise ValueError("network-scoped aliases are only supported for user-defined networks")
        if one.links:
            raise ValueError("links are only supported for user-defined networks")
    found = dict(ENDPOINT, MacAddress=one.mac, GwPriority=one.priority)
    if one.aliases:
        found["Aliases"] = list(one.aliases)
    if one.links:
        found["Links"] = list(one.links)
    if one.driver_options:
        found["DriverOpts"] = dict(one.driver_options)
    address: dict[str, Any] = {}
    if one.ipv4:
        address["IPv4Address"] = one.ipv4
    if one.ipv6:
        address["IPv6Address"] = one.ipv6
    if one.link_local:
        address["LinkLocalIPs"] = list(one.link_local)
    if address:
        found["IPAMConfig"] = address
    return found
