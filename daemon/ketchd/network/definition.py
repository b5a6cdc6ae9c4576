"""A network as the catalogue keeps it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from ketchd.network.addresses import first_usable
from ketchd.network.rules import NetworkRules

BRIDGE, HOST, NONE = "bridge", "host", "none"
PREDEFINED = (BRIDGE, HOST, NONE)
DEFAULT_GATEWAY = "DefaultGatewayIPv4"  # the auxiliary address that is one. Source: libnetwork drivers/bridge, DefaultGatewayV4AuxKey
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
    def default_gateway(self) -> str:
        """Where its containers' default route leads: to the bridge, unless an auxiliary address is for that."""
        return self.auxiliary.get(DEFAULT_GATEWAY, self.gateway)

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


@dataclass(frozen=True, slots=True)
class DefaultBridge:
    """What ketchd's settings say of the default network, each under dockerd's name. link: its bridge, `none` for no such network.

    bip: the bridge's address, CIDR. fixed_cidr: of which its containers have their addresses. default_gateway: where their default
    route leads. host_ip: where ports are published that name no address. Empty: unsaid.
    """

    link: str = "ketch0"
    bip: str = ""
    fixed_cidr: str = ""
    default_gateway: str = ""
    host_ip: str = ""
    icc: bool = True
    masquerade: bool = True
    mtu: int = 1500

    @property
    def span(self) -> IPv4Network | None:
        """fixed_cidr, whose host bits do not matter."""
        return IPv4Network(self.fixed_cidr, strict=False) if self.fixed_cidr else None

    @property
    def interface(self) -> IPv4Interface | None:
        """The bridge's address. fixed_cidr alone is the whole subnet then, as in dockerd 28; None for one out of the pools."""
        if self.bip:
            return IPv4Interface(self.bip)
        span = self.span
        return None if span is None else IPv4Interface(f"{first_usable(span)}/{span.prefixlen}")

    def options(self) -> dict[str, str]:
        """What inspect shows as the network's options."""
        return {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": str(self.icc).lower(),
            "com.docker.network.bridge.enable_ip_masquerade": str(self.masquerade).lower(),
            "com.docker.network.bridge.host_binding_ipv4": self.host_ip or "0.0.0.0",
            "com.docker.network.bridge.name": self.link,
            "com.docker.network.driver.mtu": str(self.mtu),
        }


def configured(known: Network, wanted: DefaultBridge, in_use: bool) -> tuple[Network, bool]:
    """The default network as the settings want it; whether it keeps another subnet than theirs since containers have addresses there."""
    span, gateway, interface = wanted.span, wanted.default_gateway, wanted.interface
    network = replace(
        known, link=wanted.link, options=wanted.options(), icc=wanted.icc, masquerade=wanted.masquerade, mtu=wanted.mtu,
        ip_range=str(span) if span is not None else "", auxiliary={DEFAULT_GATEWAY: gateway} if gateway else {},
    )  # fmt: skip
    if interface is None:
        return (
            replace(network, subnet="", gateway="", chosen=False) if known.chosen and not in_use else network
        ), False
    if known.subnet and span is not None and not wanted.bip and span.subnet_of(known.network):
        return network, False  # a bridge that was there has a wider one
    if in_use and known.subnet and known.gateway_interface != interface:
        if span is not None and not span.subnet_of(known.network):
            network = replace(network, ip_range="")
        if gateway and (IPv4Address(gateway) not in known.network or gateway == known.gateway):
            network = replace(network, auxiliary={})
        return network, True
    return replace(network, subnet=str(interface.network), gateway=str(interface.ip), chosen=True), False


def misplaced(network: Network) -> str:
    """What of the default network's settings does not fit its subnet, in dockerd's words; empty when all does.

    A user-defined one was looked at when it was made.
    """
    if network.ip_range and not IPv4Network(network.ip_range).subnet_of(network.network):
        return f"fixed-cidr {network.ip_range} is not in the subnet {network.subnet}"
    for name, address in network.auxiliary.items():
        if IPv4Address(address) not in network.network:
            return f"auxiliary address: ({name}:{address}) must belong to the master pool: {network.subnet}"
        if address == network.gateway:
            return f"failed to allocate secondary ip address ({name}:{address}): Address already in use"
    return ""


def misfit(wanted: DefaultBridge) -> str:
    """What of the settings contradicts the rest, whatever this host's links are; empty when nothing does."""
    unborn = Network("", BRIDGE, DRIVERS[BRIDGE], 0)
    return "" if wanted.interface is None else misplaced(configured(unborn, wanted, False)[0])
