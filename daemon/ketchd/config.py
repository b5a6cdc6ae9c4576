"""What ketchd is told: dockerd's flags and daemon.json keys, read, checked and merged. Pure but for reading the file.

A flag or key that dockerd does not have either is refused by name. One that dockerd has and ketchd does not need is accepted
and said to be ignored, so that a daemon.json is a drop-in. The same setting in both places is an error, as in dockerd.
Source: dockerd(8), "Daemon configuration file".
"""

from __future__ import annotations

import argparse
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from ketch_wire.defaults import DEFAULT_SOCKET
from ketch_wire.faults import InvalidInput
from ketchd.journal import LEVELS

DEFAULT_CONFIG_FILE = "/etc/ketch/daemon.json"


@dataclass(slots=True)
class Config:
    """The daemon's settings; names are dockerd's keys with underscores."""

    data_root: str = "/var/lib/ketch"
    exec_root: str = "/run/ketch"
    hosts: list[str] = field(default_factory=list)
    pidfile: str = "/run/ketch.pid"
    group: str = "ketch"
    log_level: str = "info"
    log_format: str = "console"
    debug: bool = False
    insecure_registries: list[str] = field(default_factory=list)
    registry_mirrors: list[str] = field(default_factory=list)
    bridge: str = "ketch0"
    bip: str = ""
    mtu: int = 1500
    ip: str = ""
    ip_forward: bool = True
    ip_masq: bool = True
    icc: bool = True
    dns: list[str] = field(default_factory=list)
    dns_opts: list[str] = field(default_factory=list)
    dns_search: list[str] = field(default_factory=list)
    cgroup_parent: str = ""
    labels: list[str] = field(default_factory=list)
    log_driver: str = "json-file"
    log_opts: dict[str, str] = field(default_factory=dict)
    default_shm_size: str = ""
    shutdown_timeout: int = 15
    live_restore: bool = True
    storage_driver: str = ""
    userns_remap: str = ""
    init: bool = False
    max_concurrent_downloads: int = 6
    max_concurrent_uploads: int = 5
    max_download_attempts: int = 5
    tls: bool = False
    tlsverify: bool = False
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""
    ketch: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


# Flag (as dockerd spells it) -> key of daemon.json, where they differ by the plural.
_REPEATED = {
    "host": "hosts", "insecure-registry": "insecure-registries", "registry-mirror": "registry-mirrors", "label": "labels",
    "dns": "dns", "dns-opt": "dns-opts", "dns-search": "dns-search",
}  # fmt: skip
_MAPS = {"log-opt": "log-opts"}
_SHORT = {
    "host": "-H",
    "pidfile": "-p",
    "debug": "-D",
    "log-level": "-l",
    "group": "-G",
    "storage-driver": "-s",
    "bridge": "-b",
}
_HELP = {
    "data-root": "root of persistent state", "exec-root": "root of execution state, gone after a reboot",
    "host": "socket to listen on, unix://PATH or tcp://ADDRESS:PORT (repeatable)", "pidfile": "file to hold the daemon's pid",
    "group": "group of the unix socket", "log-level": "debug, info, warn, error or fatal", "log-format": "console or json",
    "debug": "the same as --log-level debug", "insecure-registry": "registry reached without verified TLS (repeatable)",
    "registry-mirror": "mirror of Docker Hub (repeatable)", "bridge": "bridge of the default network; none for no network",
    "bip": "address of the default bridge, CIDR", "mtu": "MTU of the networks", "ip": "default address of published ports",
    "ip-forward": "enable net.ipv4.ip_forward", "ip-masq": "masquerade what leaves the bridge", "icc": "containers reach each other",
    "dns": "DNS server of containers (repeatable)", "dns-opt": "DNS option (repeatable)",
    "dns-search": "DNS search domain (repeatable)", "cgroup-parent": "parent of containers' cgroups",
    "label": "key=value shown by info (repeatable)", "log-driver": "default log driver", "log-opt": "default log option (repeatable)",
    "default-shm-size": "size of /dev/shm", "shutdown-timeout": "seconds for work under way at the end",
    "live-restore": "containers run on while ketchd is down; false stops them at its end",
    "storage-driver": "erofs, erofs-loop or directory; by default the best that works",
    "userns-remap": "user namespace remapping: default, USER or USER:GROUP", "init": "run an init in every container",
    "max-concurrent-downloads": "blobs of one pull at once", "max-concurrent-uploads": "blobs of one push at once",
    "max-download-attempts": "attempts of one blob", "tls": "serve TCP over TLS", "tlsverify": "TLS with client certificates",
    "tlscacert": "CA of client certificates", "tlscert": "certificate", "tlskey": "key",
}  # fmt: skip

# dockerd's own flags and keys that mean nothing here, with why.
_IGNORED = {
    "add-runtime": "ketch starts containers itself", "runtimes": "ketch starts containers itself",
    "default-runtime": "ketch starts containers itself", "authorization-plugin": "there are no plugins",
    "authorization-plugins": "there are no plugins", "allow-nondistributable-artifacts": "foreign URLs are never followed",
    "api-cors-header": "the API is not for browsers", "bip6": "the default bridge has no IPv6",
    "builder": "the builder has settings of its own", "cluster-advertise": "there is no swarm", "cluster-store": "there is no swarm",
    "cluster-store-opt": "there is no swarm", "cluster-store-opts": "there is no swarm", "config-file": "",
    "containerd": "there is no containerd", "containerd-namespace": "there is no containerd",
    "containerd-plugins-namespace": "there is no containerd", "cpu-rt-period": "no real-time scheduling",
    "cpu-rt-runtime": "no real-time scheduling", "cri-containerd": "there is no containerd",
    "data-path-addr": "there is no swarm", "default-address-pool": "pools are chosen against the routing table",
    "default-address-pools": "pools are chosen against the routing table", "default-cgroupns-mode": "private on cgroup v2",
    "default-gateway": "the bridge is the gateway", "default-gateway-v6": "the default bridge has no IPv6",
    "default-ipc-mode": "private", "default-network-opt": "networks have options of their own",
    "default-network-opts": "networks have options of their own", "default-ulimit": "limits are per container",
    "default-ulimits": "limits are per container", "exec-opt": "the cgroup driver is chosen at start",
    "exec-opts": "the cgroup driver is chosen at start", "experimental": "nothing is hidden", "features": "nothing is hidden",
    "fixed-cidr": "the whole subnet is used", "fixed-cidr-v6": "the default bridge has no IPv6",
    "graph": "", "host-gateway-ip": "the bridge's address", "host-gateway-ips": "the bridge's address",
    "http-proxy": "the environment's proxy is used", "https-proxy": "the environment's proxy is used",
    "init-path": "ketch has an init of its own", "ip6tables": "nftables is used", "iptables": "nftables is used",
    "ipv6": "the default bridge has no IPv6", "max-concurrent-uploads-per-layer": "", "metrics-addr": "no metrics endpoint",
    "network-control-plane-mtu": "there is no swarm", "network-diagnostic-port": "there is no swarm",
    "no-new-privileges": "it is per container", "no-proxy": "the environment's proxy is used",
    "node-generic-resource": "there is no swarm", "node-generic-resources": "there is no swarm",
    "oom-score-adjust": "the unit file sets it", "proxies": "the environment's proxy is used", "raw-logs": "logs have no colour unless on a terminal",
    "seccomp-profile": "the profile is per container", "selinux-enabled": "SELinux labels are not set", "storage-opt": "layers have no options",
    "storage-opts": "layers have no options", "swarm-default-advertise-addr": "there is no swarm",
    "userland-proxy": "no port has a process", "userland-proxy-path": "no port has a process",
    "allow-direct-routing": "nftables rules decide", "cdi-spec-dirs": "no CDI devices", "cdi-spec-dir": "no CDI devices",
    "firewall-backend": "nftables is used", "min-api-version": "1.12 is accepted",
}  # fmt: skip

_OWN = {"gc", "push"}

_KINDS: dict[str, Any] = {entry.name: entry.type for entry in fields(Config)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ketchd", description="The ketch engine: a container daemon that speaks the Docker Engine API.",
        usage="ketchd [OPTIONS]", allow_abbrev=False, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument("-v", "--version", action="store_true", help="print the version and end")
    parser.add_argument("--validate", action="store_true", help="check flags and configuration file, and end")
    parser.add_argument(
        "--config-file", metavar="string", help=f"configuration file (default {DEFAULT_CONFIG_FILE})"
    )
    for name, text in _HELP.items():
        names = [*([_SHORT[name]] if name in _SHORT else []), f"--{name}"]
        key = (_REPEATED.get(name) or _MAPS.get(name) or name).replace("-", "_")
        shown = _shown_default(name, key)
        text += f" (default {shown})" if shown else ""
        if name in _REPEATED or name in _MAPS:
            kind = "list" if name in _REPEATED else "map"
            parser.add_argument(*names, dest=key, action="append", help=text, metavar=kind)
        elif _KINDS[key] == "bool":
            parser.add_argument(*names, dest=key, nargs="?", const="true", help=text, metavar="bool")
        else:
            kind = "int" if _KINDS[key] == "int" else "string"
            parser.add_argument(*names, dest=key, help=text, metavar=kind)
    for name in _IGNORED:
        if name != "config-file":
            parser.add_argument(
                f"--{name}", dest=f"ignored {name}", nargs="?", const="true", help=argparse.SUPPRESS
            )
    return parser


def _shown_default(name: str, key: str) -> str:
    """What help says a setting is when nobody sets it; empty for off and for nothing."""
    if name == "host":
        return f"unix://{DEFAULT_SOCKET}"
    value = getattr(Config(), key)
    return "" if value is False or not value else str(value).lower() if value is True else str(value)


@dataclass(slots=True)
class CommandLine:
    """What was typed: the merged settings, or what to do instead."""

    config: Config
    version: bool = False
    validate: bool = False


def read(argv: Sequence[str]) -> CommandLine:
    """Flags and configuration file as one Config. Raises InvalidInput with dockerd's kind of line."""
    given = vars(_parser().parse_args(list(argv)))
    version, validate = given.pop("version", False), given.pop("validate", False)
    named = given.pop("config_file", None)
    ignored = [key.removeprefix("ignored ") for key in given if key.startswith("ignored ")]
    flags = {key: value for key, value in given.items() if not key.startswith("ignored ")}
    keys = read_file(Path(named or DEFAULT_CONFIG_FILE), must_exist=named is not None and not version)
    for key in sorted(keys):
        if key in _IGNORED:
            ignored.append(key)
            del keys[key]
    stored = {key.replace("-", "_"): value for key, value in keys.items()}
    if twice := sorted(set(flags) & set(stored)):
        shown = ", ".join(
            f"{key.replace('_', '-')}: (from flag: {flags[key]}, from file: {stored[key]})" for key in twice
        )
        raise InvalidInput(
            "unable to configure the ketch daemon: the following directives are specified both as a flag and in the "
            f"configuration file: {shown}"
        )
    config = Config(ignored=ignored)
    for key, value in {**stored, **flags}.items():
        setattr(config, key, _typed(key, value))
    _check(config)
    return CommandLine(config, version, validate)


def read_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    """The keys of a daemon.json; {} when the default file is not there. Raises InvalidInput."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        if must_exist:
            raise InvalidInput(
                f"unable to configure the ketch daemon with file {path}: no such file or directory"
            ) from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"unable to configure the ketch daemon with file {path}: {error}") from error
    if not text.strip():
        return {}
    try:
        keys = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"unable to configure the ketch daemon with file {path}: {error}") from error
    if not isinstance(keys, dict):
        raise InvalidInput(f"unable to configure the ketch daemon with file {path}: it is no JSON object")
    known = {entry.name.replace("_", "-") for entry in fields(Config)} - {"ignored"}
    if unknown := sorted(set(keys) - known - set(_IGNORED)):
        raise InvalidInput(
            f"unable to configure the ketch daemon with file {path}: the following directives don't match any "
            f"configuration option: {', '.join(unknown)}"
        )
    return keys


def _typed(key: str, value: Any) -> Any:
    """A flag's text or a key's JSON value as the setting's type. Raises InvalidInput."""
    kind, name = _KINDS[key], key.replace("_", "-")
    if key == "ketch":
        return _own(value)
    if kind == "bool":
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "1", "t"):
            return True
        if str(value).lower() in ("false", "0", "f"):
            return False
        raise InvalidInput(f'invalid argument "{value}" for "--{name}": it is neither true nor false')
    if kind == "int":
        try:
            return int(value)
        except (TypeError, ValueError):
            raise InvalidInput(f'invalid argument "{value}" for "--{name}": it is no whole number') from None
    if kind.startswith("list"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidInput(f"invalid value of {name}: a list of strings is expected")
        return value
    if kind.startswith("dict"):
        if isinstance(value, list):
            return dict(item.partition("=")[::2] for item in value)
        if isinstance(value, dict):
            return {str(option): str(setting) for option, setting in value.items()}
        raise InvalidInput(f"invalid value of {name}: a map is expected")
    if not isinstance(value, str):
        raise InvalidInput(f"invalid value of {name}: a string is expected")
    return value


def _own(value: Any) -> dict[str, Any]:
    """The settings that dockerd has nothing of: objects by room. What is in them is for the room to read."""
    if not isinstance(value, dict) or not all(isinstance(inner, dict) for inner in value.values()):
        raise InvalidInput("invalid value of ketch: an object of objects is expected")
    if unknown := sorted(set(value) - _OWN):
        raise InvalidInput(f"invalid value of ketch: nothing is called {', '.join(unknown)}")
    return value


def _check(config: Config) -> None:
    config.hosts = config.hosts or [f"unix://{DEFAULT_SOCKET}"]
    for host in config.hosts:
        scheme, sign, place = host.partition("://")
        if not sign or scheme not in ("unix", "tcp", "fd") or (not place and scheme != "fd"):
            raise InvalidInput(f"invalid -H {host!r}: unix://PATH, tcp://ADDRESS:PORT or fd:// is expected")
    if config.log_level not in LEVELS:
        raise InvalidInput(f"invalid logging level: {config.log_level}")
    if config.log_format == "text":
        config.log_format = "console"  # dockerd's word
    if config.log_format not in ("json", "console"):
        raise InvalidInput(f"invalid log format: {config.log_format}")
    if config.debug:
        config.log_level = "debug"
    if config.bip:
        try:
            interface = ipaddress.ip_interface(config.bip)
        except ValueError as error:
            raise InvalidInput(f"invalid bip {config.bip!r}: {error}") from None
        if "/" not in config.bip or interface.ip == interface.network.network_address:
            raise InvalidInput(f"invalid bip {config.bip!r}: an address with its prefix length is expected")
    if config.storage_driver not in ("", "erofs", "erofs-loop", "directory", "overlay2"):
        raise InvalidInput(f"unknown storage driver: {config.storage_driver}")
    if config.storage_driver == "overlay2":
        config.storage_driver = ""  # what dockerd's files say for the default
    if config.log_driver not in ("json-file", "none", "local", "journald"):
        raise InvalidInput(f"logger: no log driver named '{config.log_driver}' is registered")
    for key in ("max_concurrent_downloads", "max_concurrent_uploads", "max_download_attempts"):
        if getattr(config, key) < 1:
            raise InvalidInput(f"invalid {key.replace('_', '-')}: {getattr(config, key)}")
    if not 68 <= config.mtu <= 65535:
        raise InvalidInput(f"invalid mtu: {config.mtu}")


def ignored_because(name: str) -> str:
    """Why a setting of dockerd's is ignored."""
    return _IGNORED.get(name) or "it means nothing here"
