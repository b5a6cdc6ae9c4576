"""A request to create a network, read and checked. Pure. Source: Engine API 1.50, NetworkCreate; messages are dockerd's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

from ketch_wire.faults import Forbidden, InvalidInput, NotFound, Unsupported
from ketchd.network.addresses import first_usable
from ketchd.network.definition import PREDEFINED, Network
from ketchd.network.rules import check_bridge_name

_NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try '
    "again."
)
_BRIDGE = "com.docker.network.bridge."
_MTU = "com.docker.network.driver.mtu"


def _pick(sent: Mapping[str, Any], key: str, default: Any) -> Any:
    """Go matches keys whatever their case, and null is absent."""
    value = sent.get(key)
    if value is None:
        value = next((found for name, found in sent.items() if name.lower() == key.lower()), None)
    return default if value is None else value


def parse(body: Mapping[str, Any], *, network_id: str, created_ns: int, default_mtu: int) -> Network:
    """The network that `body` asks for; without a subnet when none was asked for.

    Raises InvalidInput, Forbidden (predefined, swarm), NotFound (driver), Unsupported (IPv6 and what else is not built).
    """
    name, driver = str(_pick(body, "Name", "")), str(_pick(body, "Driver", "") or "bridge")
    if not name.strip():
        raise InvalidInput("invalid network name: name is empty")
    if name in PREDEFINED or name == "default":
        raise Forbidden(f"operation is not permitted on predefined {name} network ")
    _check_driver(driver)
    if str(_pick(body, "Scope", "") or "local") != "local":
        raise Forbidden("cannot create a swarm scoped network when swarm is not active")
    for key, what in (("ConfigOnly", "config-only networks"), ("EnableIPv6", "IPv6 networks")):
        if _pick(body, key, False):
            raise Unsupported(f"{what} are not supported")
    if _pick(_object(body, "ConfigFrom"), "Network", ""):
        raise Unsupported("config-only networks are not supported")
    if _pick(body, "EnableIPv4", True) is False:
        raise Unsupported("networks without IPv4 are not supported")
    if _pick(body, "Ingress", False):
        raise Forbidden(_NO_SWARM)
    options, ipam = _texts(body, "Options"), _object(body, "IPAM")
    network = Network(
        id=network_id,
        name=name,
        driver=driver,
        created_ns=created_ns,
        link=check_bridge_name(options.get(_BRIDGE + "name") or f"br-{network_id[:12]}"),
        internal=bool(_pick(body, "Internal", False)),
        attachable=bool(_pick(body, "Attachable", False)),
        icc=_flag(options, _BRIDGE + "enable_icc"),
        masquerade=_flag(options, _BRIDGE + "enable_ip_masquerade"),
        mtu=_mtu(options, default_mtu),
        host_ip=_host_ip(options),
        options=options,
        labels=_texts(body, "Labels"),
        ipam_options=_texts(ipam, "Options") if _pick(ipam, "Options", None) is not None else None,
    )
    mode = options.get(_BRIDGE + "gateway_mode_ipv4", "nat")
    if mode not in ("", "nat"):
        raise Unsupported(f"gateway mode {mode[:20]!r} is not supported")
    return _with_addresses(network, ipam)


def _check_driver(driver: str) -> None:
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver == "overlay":
        raise Forbidden(_NO_SWARM)
    if driver != "bridge":
        raise NotFound(f"could not find plugin {driver[:60]} in v1 plugin registry: plugin not found")


def _object(sent: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = _pick(sent, key, {})
    if not isinstance(found, dict):
        raise InvalidInput(f"invalid JSON: {key} has to be an object")
    return found


def _texts(sent: Mapping[str, Any], key: str) -> dict[str, str]:
    found = _pick(sent, key, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidInput(f"invalid JSON: {key} has to be a map of strings")
    return dict(found)


def _flag(options: Mapping[str, str], key: str) -> bool:
    text = options.get(key, "").lower()
    if text in ("", "1", "t", "true"):
        return True
    if text in ("0", "f", "false"):
        return False
    value = options[key][:20]
    raise InvalidInput(
        f'failed to parse {key} value: {value} (strconv.ParseBool: parsing "{value}": invalid syntax)'
    )


def _mtu(options: Mapping[str, str], default: int) -> int:
    text = options.get(_MTU, "")
    if not text:
        return default
    shown = text[:20]
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise InvalidInput(
            f'failed to parse {_MTU} value: {shown} (strconv.Atoi: parsing "{shown}": invalid syntax)'
        )
    if len(text) > len(shown) or not 68 <= int(text) <= 65535:
        raise InvalidInput(f"invalid MTU number: {shown}")
    return int(text)


def _host_ip(options: Mapping[str, str]) -> str:
    text = options.get(_BRIDGE + "host_binding_ipv4", "")
    try:
        return str(IPv4Address(text)) if text else ""
    except ValueError:
        raise InvalidInput(f"failed to parse {_BRIDGE}host_binding_ipv4 value: {text[:40]!r}") from None


def _with_addresses(network: Network, ipam: Mapping[str, Any]) -> Network:
    driver = _pick(ipam, "Driver", "")
    if driver not in ("", "default"):
        raise NotFound(f"failed to retrieve IPAM driver: plugin {str(driver)[:60]!r} not found")
    listed = _pick(ipam, "Config", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InvalidInput("invalid JSON: Config has to be a list of objects")
    configs = [one for one in listed if any(one.values())]
    if not configs:
        return network
    if len(configs) > 1:
        raise InvalidInput("bridge driver doesn't support multiple subnets")
    wrong: list[str] = []
    values = _checked(configs[0], wrong)
    if wrong:
        raise InvalidInput("invalid network config:\n" + "\n".join(wrong))
    return replace(network, chosen=bool(values["subnet"]), **values)


def _checked(config: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    text = str(_pick(config, "Subnet", ""))
    gateway, span = str(_pick(config, "Gateway", "")), str(_pick(config, "IPRange", ""))
    auxiliary = _texts(config, "AuxiliaryAddresses")
    values: dict[str, Any] = {"subnet": "", "gateway": "", "ip_range": "", "auxiliary": {}}
    if not text:
        wrong += [f"invalid {what}: a subnet is needed with it" for what in _given(gateway, span, auxiliary)]
        return values
    try:
        subnet = ip_network(text, strict=False)
    except ValueError:
        wrong.append(f"invalid subnet {text[:60]}: invalid CIDR block notation")
        return values
    if not isinstance(subnet, IPv4Network):
        raise Unsupported(f"IPv6 networks are not supported: {text[:60]}")
    if str(subnet) != text:
        wrong.append(f"invalid subnet {text[:60]}: it should be {subnet}")
    if subnet.prefixlen > 30:
        wrong.append(f"invalid subnet {subnet}: it has no room for a gateway and a container")
    values.update(subnet=str(subnet), gateway=gateway or str(first_usable(subnet)), auxiliary=auxiliary)
    if span:
        values["ip_range"] = _span(span, subnet, wrong)
    for what, address in (("gateway", gateway), *(("auxiliary address", one) for one in auxiliary.values())):
        if address and not _within(address, subnet):
            wrong.append(f"invalid {what} {address[:60]}: parent subnet {subnet} doesn't contain it")
    return values


def _given(gateway: str, span: str, auxiliary: Mapping[str, str]) -> list[str]:
    named = (("gateway", gateway), ("ip-range", span), ("auxiliary address", auxiliary))
    return [what for what, value in named if value]


def _span(text: str, subnet: IPv4Network, wrong: list[str]) -> str:
    try:
        span = IPv4Network(text, strict=False)
    except ValueError:
        wrong.append(f"invalid ip-range {text[:60]}: invalid CIDR block notation")
        return ""
    if not span.subnet_of(subnet):
        wrong.append(f"invalid ip-range {text[:60]}: parent subnet {subnet} doesn't contain ip-range")
    return str(span)


def _within(text: str, subnet: IPv4Network) -> bool:
    try:
        return IPv4Address(text) in subnet
    except ValueError:
        return False
