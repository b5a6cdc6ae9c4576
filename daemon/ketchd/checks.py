"""Whether the settings can be used, in dockerd's words. Pure. Source: moby daemon/config/config.go, Validate."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from ketch_wire.faults import InvalidInput
from ketchd import listening
from ketchd.journal import LEVELS
from ketchd.model.address import is_address
from ketchd.network.addresses import parse_pool

if TYPE_CHECKING:
    from ketchd.config import Config

OUR_RUNTIMES = ("runc", "io.containerd.runc.v2", "ketch")
_DOMAIN = re.compile(r"\.|[a-zA-Z0-9_]([a-zA-Z0-9_-]*)(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]*))*\.?")


def check(config: Config) -> None:
    """Raise InvalidInput when a setting cannot be used, and give what has several names its one name."""
    config.hosts = listening.addresses(config.hosts, tls=config.tls)
    if config.log_level not in LEVELS:
        raise InvalidInput(f"invalid logging level: {config.log_level}")
    if config.log_format == "text":
        config.log_format = "console"  # dockerd's word
    if config.log_format not in ("json", "console"):
        raise InvalidInput(f"invalid log format: {config.log_format}")
    _check_default_bridge(config)
    for base, size in config.default_address_pools:
        parse_pool(base, size)
    if config.storage_driver not in ("", "erofs", "erofs-loop", "directory", "overlay2"):
        raise InvalidInput(f"unknown storage driver: {config.storage_driver}")
    if config.storage_driver == "overlay2":
        config.storage_driver = ""  # what dockerd's files say for the default
    if config.log_driver not in ("json-file", "none", "local", "journald"):
        raise InvalidInput(f"logger: no log driver named '{config.log_driver}' is registered")
    for key in ("max_concurrent_downloads", "max_concurrent_uploads", "max_download_attempts"):
        if getattr(config, key) < 1:
            raise InvalidInput(f"invalid {key.replace('_', '-')}: {getattr(config, key)}")
    _check_registries(config)
    _check_containers(config)


def _check_default_bridge(config: Config) -> None:
    """dockerd starts with a `fixed-cidr` outside of the subnet, and hands out other addresses then: refused here."""
    config.mtu = config.mtu or 1500
    if not 68 <= config.mtu <= 65535:
        raise InvalidInput(f"invalid mtu: {config.mtu}")
    if config.bip:
        try:
            interface = ipaddress.IPv4Interface(config.bip)
        except ValueError as error:
            raise InvalidInput(f"invalid bip {config.bip!r}: {error}") from None
        if "/" not in config.bip or interface.ip == interface.network.network_address:
            raise InvalidInput(f"invalid bip {config.bip!r}: an address with its prefix length is expected")
    if config.fixed_cidr:
        try:
            span = ipaddress.IPv4Network(config.fixed_cidr if "/" in config.fixed_cidr else "", strict=False)
        except ValueError:
            raise InvalidInput(f"invalid CIDR address: {config.fixed_cidr}") from None
        if not config.bip and span.prefixlen > 30:
            raise InvalidInput(f"invalid fixed-cidr {span}: it has no room for a gateway and a container")
    for address in [*config.host_gateway_ips, *([config.default_gateway] if config.default_gateway else [])]:
        if not is_address(address):
            raise InvalidInput(f"{address} is not an ip address")
    if ":" in config.default_gateway:
        raise InvalidInput(f"invalid default-gateway {config.default_gateway}: it is no IPv4 address")
    kinds = [":" in address for address in config.host_gateway_ips]
    if len(kinds) != len(set(kinds)):
        raise InvalidInput("host-gateway-ip may be one IPv4 and one IPv6 address")
    if config.fixed_cidr or config.default_gateway:
        from ketchd.network.definition import DefaultBridge, misfit  # of the few that need it

        if reason := misfit(DefaultBridge("", config.bip, config.fixed_cidr, config.default_gateway)):
            raise InvalidInput(reason)


def _check_registries(config: Config) -> None:
    for host in config.insecure_registries:
        if "://" in host:
            raise InvalidInput(f"insecure registry {host} should not contain '://'")
    if config.registry_mirrors:
        from ketchd.registry.hosts import check_mirror  # of the few that need it

        for mirror in config.registry_mirrors:
            check_mirror(mirror)


def _unlike(labels: list[str]) -> list[str]:
    """Each label once. Raises InvalidInput when one key has two values."""
    values: dict[str, str] = {}
    for label in labels:
        key, sign, value = label.partition("=")
        if not sign or not key:
            raise InvalidInput(f"bad attribute format: {label}")
        if values.setdefault(key, value) != value:
            raise InvalidInput(f"conflict labels for {key}={value} and {key}={values[key]}")
    return [f"{key}={value}" for key, value in values.items()]


def _check_containers(config: Config) -> None:
    """What is handed on to containers, with dockerd's words."""
    for server in [*config.dns, *([config.ip] if config.ip else [])]:
        if not is_address(server):
            raise InvalidInput(f"{server} is not an ip address")
    for domain in config.dns_search:
        if not _DOMAIN.fullmatch(domain.strip()):
            raise InvalidInput(f"{domain} is not a valid domain")
    for option in config.dns_opts:
        if not option or any(letter.isspace() for letter in option):
            raise InvalidInput(f"{option!r} is not a valid word of resolv.conf")
    config.labels = _unlike(config.labels)
    if config.default_ipc_mode not in ("", "private", "shareable"):
        raise InvalidInput(
            f'IPC mode "{config.default_ipc_mode}" is not supported as default value; use "shareable" or "private"'
        )
    if config.default_cgroupns_mode not in ("", "private", "host"):
        raise InvalidInput(
            f'default cgroup namespace mode ({config.default_cgroupns_mode}) is invalid; use "host" or "private"'
        )
    if config.default_runtime not in OUR_RUNTIMES:
        raise InvalidInput(f"specified default runtime '{config.default_runtime}' does not exist")
