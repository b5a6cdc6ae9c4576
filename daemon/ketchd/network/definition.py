"""A network as the catalogue keeps it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from ketchd.network.rules import NetworkRules

BRIDGE, HOST, NONE = "bridge", "host", "none"
PREDEFINED = (BRIDGE, HOST, NONE)
DRIVERS = {BRIDGE: "bridge", HOST: "host", NONE: "null"}


@dataclass(frozen=True, slots=True)
class Network:
    """One network. subnet, gateway, ip_range: text, empty for `host` and `none`, and for the default bridge before it got one.

    link: the bridge's name on the host. chosen: the subnet was chosen by a user, so that addresses may be asked for.
    auxiliary: name -> address that no container gets.
    """

    id: str
    name: str
    driver: str
    created_ns: int
    link: str = ""
    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    auxiliary: dict[str, str] = field(default_factory=dict)
    chosen: bool = False
    internal: bool = False
    attachable: bool = False
    icc: bool = True
    masquerade: bool = True
    mtu: int = 1500
    host_ip: str = ""
    options: dict[str, str] = field(default_factory=dict)
    ipam_options: dict[str, str] | None = None
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def is_predefined(self) -> bool:
        """bridge, host or none: cannot be removed."""
        return self.name in PREDEFINED

    @property
    def has_names(self) -> bool:
        """Whether containers find each other by name there: on user-defined networks."""
        return self.driver == "bridge" and not self.is_predefined

    @property
    def network(self) -> IPv4Network:
        """The subnet."""
        return IPv4Network(self.subnet)

    @property
    def gateway_interface(self) -> IPv4Interface:
        """The bridge's own address."""
        return IPv4Interface(f"{self.gateway}/{self.network.prefixlen}")

    @property
    def reserved(self) -> set[int]:
        """Addresses that no container gets."""
        return {int(IPv4Address(one)) for one in (self.gateway, *self.auxiliary.values()) if one}

    def rules(self, resolver: tuple[str, int, int] | None = None) -> NetworkRules:
        """What the packet rules need of it."""
        return NetworkRules(self.link, self.subnet, self.internal, self.icc, self.masquerade, resolver)

    def to_json(self) -> str:
        """For the catalogue."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Network:
        """The network again; fields that an older ketchd did not write get their defaults."""
        known = {one.name for one in fields(Network)}
        return Network(**{key: value for key, value in json.loads(text).items() if key in known})


def show(
    network: Network, created: str, containers: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """As the Engine API shows it. created: RFC 3339. containers: id -> Name, EndpointID, MacAddress, IPv4Address, IPv6Address."""
    config: list[dict[str, Any]] = []
    if network.subnet:
        config.append({"Subnet": network.subnet})
        if network.ip_range:
            config[0]["IPRange"] = network.ip_range
        config[0]["Gateway"] = network.gateway
        if network.auxiliary:
            config[0]["AuxiliaryAddresses"] = network.auxiliary
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": created,
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": network.ipam_options, "Config": config or None},
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": dict(containers or {}),
        "Options": network.options,
        "Labels": network.labels,
    }


def default_options(link: str, *, icc: bool, masquerade: bool, host_ip: str, mtu: int) -> dict[str, str]:
    """What inspect shows as the default bridge's options."""
    return {
        "com.docker.network.bridge.default_bridge": "true",
        "com.docker.network.bridge.enable_icc": str(icc).lower(),
        "com.docker.network.bridge.enable_ip_masquerade": str(masquerade).lower(),
        "com.docker.network.bridge.host_binding_ipv4": host_ip or "0.0.0.0",
        "com.docker.network.bridge.name": link,
        "com.docker.network.driver.mtu": str(mtu),
    }


def configured(
    known: Network, link: str, bip: str | None, in_use: bool, host_ip: str, *, icc: bool, masquerade: bool, mtu: int
) -> tuple[Network, bool]:  # fmt: skip
    """The default network as ketchd's settings want it; whether it keeps another address than `bip` since it is in use."""
    options = default_options(link, icc=icc, masquerade=masquerade, host_ip=host_ip, mtu=mtu)
    network = replace(known, link=link, options=options, icc=icc, masquerade=masquerade, mtu=mtu)
    if not bip:
        return (
            replace(network, subnet="", gateway="", chosen=False) if known.chosen and not in_use else network
        ), False
    interface = IPv4Interface(bip)
    if in_use and known.subnet and known.gateway_interface != interface:
        return network, True
    return replace(network, subnet=str(interface.network), gateway=str(interface.ip), chosen=True), False
