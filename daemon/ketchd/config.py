"""What ketchd is told: dockerd's flags and daemon.json keys, read, checked and merged. Pure but for reading the file.

A flag or key that dockerd does not have either is refused by name. One that dockerd has and ketchd does not need is accepted
and said to be ignored, so that a daemon.json is a drop-in. The same setting in both places is an error, as in dockerd.
Source: dockerd(8), "Daemon configuration file".
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from ketch_wire.defaults import DEFAULT_SOCKET
from ketch_wire.faults import InvalidInput
from ketchd.checks import check
from ketchd.ignored import IGNORED, REFUSED
from ketchd.sandbox.defaults import RLIMITS

DEFAULT_CONFIG_FILE = "/etc/ketch/daemon.json"

Bytes = int
Limits = dict[str, tuple[int, int]]  # ulimits: (soft, hard) by name
Pools = list[tuple[str, int]]  # (base, size): subnets of the prefix length `size` out of `base`
Features = dict[str, bool]  # they mean nothing here, and are told in the event of a reload


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
    fixed_cidr: str = ""
    default_gateway: str = ""
    host_gateway_ips: list[str] = field(default_factory=list)
    mtu: int = 1500
    ip: str = ""
    ip_forward: bool = True
    ip_masq: bool = True
    icc: bool = True
    default_address_pools: Pools = field(default_factory=list)
    dns: list[str] = field(default_factory=list)
    dns_opts: list[str] = field(default_factory=list)
    dns_search: list[str] = field(default_factory=list)
    cgroup_parent: str = ""
    labels: list[str] = field(default_factory=list)
    log_driver: str = "json-file"
    log_opts: dict[str, str] = field(default_factory=dict)
    default_shm_size: Bytes = 64 * 1024 * 1024
    default_ulimits: Limits = field(default_factory=dict)
    default_ipc_mode: str = ""
    default_cgroupns_mode: str = ""
    default_runtime: str = "runc"
    no_new_privileges: bool = False
    seccomp_profile: str = ""
    shutdown_timeout: int = 15
    live_restore: bool = True
    storage_driver: str = ""
    userns_remap: str = ""
    init: bool = False
    max_concurrent_downloads: int = 6
    max_concurrent_uploads: int = 5
    max_download_attempts: int = 5
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    tls: bool = False
    tlsverify: bool = False
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""
    features: Features = field(default_factory=dict)
    ketch: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def effective_log_level(self) -> str:
        """`debug` goes before `log-level`."""
        return "debug" if self.debug else self.log_level


# Flag (as dockerd spells it) -> key of daemon.json, where they differ by the plural.
_REPEATED = {
    "host": "hosts", "insecure-registry": "insecure-registries", "registry-mirror": "registry-mirrors", "label": "labels",
    "dns": "dns", "dns-opt": "dns-opts", "dns-search": "dns-search", "host-gateway-ip": "host-gateway-ips",
}  # fmt: skip
_MAPS = {"log-opt": "log-opts", "default-ulimit": "default-ulimits"}
_POOLS = {"default-address-pool": "default-address-pools"}
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
    "host": "socket to listen on: unix://PATH, [tcp://][ADDRESS]:PORT or fd://[NUMBER] (repeatable)", "pidfile": "file to hold the daemon's pid",
    "group": "group of the unix socket", "log-level": "debug, info, warn, error or fatal", "log-format": "console or json",
    "debug": "the same as --log-level debug", "insecure-registry": "registry reached without verified TLS (repeatable)",
    "registry-mirror": "mirror of Docker Hub (repeatable)", "bridge": "bridge of the default network; none for no network",
    "bip": "address of the default bridge, CIDR", "fixed-cidr": "IPv4 subnet that containers on the default bridge have their addresses of",
    "default-gateway": "IPv4 gateway of containers on the default bridge, in place of the bridge",
    "host-gateway-ip": "address that host-gateway in --add-host is, in place of the default bridge's (repeatable)",
    "mtu": "MTU of the networks", "ip": "default address of published ports",
    "ip-forward": "enable net.ipv4.ip_forward", "ip-masq": "masquerade what leaves the bridge", "icc": "containers reach each other",
    "default-address-pool": "base=SUBNET,size=PREFIX-LENGTH that networks get their subnets of (repeatable)",
    "dns": "DNS server of containers (repeatable)", "dns-opt": "DNS option (repeatable)",
    "dns-search": "DNS search domain (repeatable)", "cgroup-parent": "parent of containers' cgroups",
    "label": "key=value shown by info (repeatable)", "log-driver": "default log driver", "log-opt": "default log option (repeatable)",
    "default-shm-size": "size of /dev/shm", "default-ulimit": "NAME=SOFT[:HARD] of containers (repeatable)",
    "default-ipc-mode": "private or shareable", "default-cgroupns-mode": "private or host",
    "default-runtime": "runc, which is ketch itself; others are refused",
    "no-new-privileges": "containers gain no privileges by setuid programs", "seccomp-profile": "builtin, unconfined or a profile's file",
    "shutdown-timeout": "seconds that containers have to stop in at the end, without live-restore; below 0 without end",
    "live-restore": "containers run on while ketchd is down; false stops them at its end",
    "storage-driver": "erofs, erofs-loop or directory; by default the best that works",
    "userns-remap": "user namespace remapping: default, USER or USER:GROUP", "init": "run an init in every container",
    "max-concurrent-downloads": "blobs of one pull at once", "max-concurrent-uploads": "blobs of one push at once",
    "max-download-attempts": "attempts of one blob", "http-proxy": "proxy for registries in plain text, in place of the environment's",
    "https-proxy": "proxy for registries, in place of the environment's", "no-proxy": "hosts that are reached without one",
    "tls": "serve TCP over TLS, with client certificates unless --tlsverify=false", "tlsverify": "TLS with client certificates",
    "tlscacert": "CA of client certificates", "tlscert": "certificate", "tlskey": "key",
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
        key = (_REPEATED.get(name) or _MAPS.get(name) or _POOLS.get(name) or name).replace("-", "_")
        shown = _shown_default(name, key)
        text += f" (default {shown})" if shown else ""
        if name in _REPEATED or name in _MAPS or name in _POOLS:
            kind = "list" if name in _REPEATED else "map"
            parser.add_argument(*names, dest=key, action="append", help=text, metavar=kind)
        elif _KINDS[key] == "bool":
            parser.add_argument(*names, dest=key, nargs="?", const="true", help=text, metavar="bool")
        else:
            kind = "int" if _KINDS[key] == "int" else "string"
            parser.add_argument(*names, dest=key, help=text, metavar=kind)
    for name in (*IGNORED, *REFUSED):
        parser.add_argument(
            f"--{name}", dest=f"ignored {name}", nargs="?", const="true", help=argparse.SUPPRESS
        )
    return parser


def _shown_default(name: str, key: str) -> str:
    """What help says a setting is when nobody sets it; empty for off and for nothing."""
    if name == "host":
        return f"unix://{DEFAULT_SOCKET}"
    if name == "default-shm-size":
        return "64m"
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
    path = Path(named or DEFAULT_CONFIG_FILE)
    keys = read_file(path, must_exist=named is not None and not version)
    keys = {key: value for key, value in keys.items() if value is not None}  # null is not set, as in Go
    keys |= _proxies(keys.pop("proxies", {}))
    if "host-gateway-ip" in keys:  # as dockerd had it before it took several
        keys.setdefault("host-gateway-ips", [keys.pop("host-gateway-ip")])
    for key in sorted(keys):
        if key in IGNORED or key in REFUSED:
            if key in IGNORED or keys[key]:
                ignored.append(key)
            if key != "features":
                del keys[key]
    for name in ignored:
        if name in REFUSED:
            raise InvalidInput(f"{name} is not supported: {REFUSED[name]}")
    stored = {key.replace("-", "_"): value for key, value in keys.items()}
    if twice := sorted(set(flags) & set(stored)):
        shown = ", ".join(
            f"{key.replace('_', '-')}: (from flag: {flags[key]}, from file: {stored[key]})" for key in twice
        )
        raise InvalidInput(
            f"unable to configure the ketch daemon with file {path}: the following directives are specified both as a flag "
            f"and in the configuration file: {shown}"
        )
    config = Config(ignored=ignored)
    for key, value in {**stored, **flags}.items():
        setattr(config, key, _typed(key, value))
    # As in dockerd: `--tlsverify=false` is TLS without client certificates, never plain TCP, and TLS without a word of it has them
    # verified. Source: moby cmd/dockerd/daemon.go, loadDaemonCliConfig
    spoken_of = "tlsverify" in stored or "tlsverify" in flags
    config.tls = config.tls or spoken_of
    config.tlsverify = config.tlsverify if spoken_of else config.tls
    if {"tls", "tlsverify"} & set(flags) and config.tls:
        _find_certificates(config)
    check(config)
    return CommandLine(config, version, validate)


def _find_certificates(config: Config) -> None:
    """Flags that ask for TLS and name no file mean those of docker's clients, as in dockerd. Source: moby cmd/dockerd/options.go."""
    directory = (
        os.environ.get("DOCKER_CERT_PATH")
        or os.environ.get("DOCKER_CONFIG")
        or os.path.expanduser("~/.docker")
    )
    config.tlscacert = config.tlscacert or os.path.join(directory, "ca.pem")
    config.tlscert = config.tlscert or os.path.join(directory, "cert.pem")
    config.tlskey = config.tlskey or os.path.join(directory, "key.pem")


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
        json.dumps(keys, ensure_ascii=False).encode()  # half a surrogate pair: no text that could be shown
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"unable to configure the ketch daemon with file {path}: {error}") from error
    if not isinstance(keys, dict):
        raise InvalidInput(f"unable to configure the ketch daemon with file {path}: it is no JSON object")
    known = {entry.name.replace("_", "-") for entry in fields(Config)} - {"ignored"} | {
        "proxies",
        "host-gateway-ip",
    }
    if unknown := sorted(set(keys) - known - set(IGNORED) - set(REFUSED)):
        raise InvalidInput(
            f"unable to configure the ketch daemon with file {path}: the following directives don't match any "
            f"configuration option: {', '.join(unknown)}"
        )
    return keys


def _proxies(value: Any) -> dict[str, Any]:
    """The object that dockerd's file has in place of its flags. Raises InvalidInput."""
    if not isinstance(value, dict) or set(value) - {"http-proxy", "https-proxy", "no-proxy"}:
        raise InvalidInput("invalid value of proxies: http-proxy, https-proxy and no-proxy are expected")
    return value


def _typed(key: str, value: Any) -> Any:
    """A flag's text or a key's JSON value as the setting's type. Raises InvalidInput."""
    kind, name = _KINDS[key], key.replace("_", "-")
    if key == "ketch":
        return _own(value)
    if kind == "Bytes":
        return _size(value)
    if kind == "Limits":
        return _ulimits(value)
    if kind == "Pools":
        return _pools(value)
    if kind == "Features":
        if not isinstance(value, dict) or not all(isinstance(one, bool) for one in value.values()):
            raise InvalidInput("invalid value of features: a map of true and false is expected")
        return value
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
        except (TypeError, ValueError, OverflowError):
            raise InvalidInput(f'invalid argument "{value}" for "--{name}": it is no whole number') from None
    if kind.startswith("list"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidInput(f"invalid value of {name}: a list of strings is expected")
        return value
    if kind.startswith("dict"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return dict(item.partition("=")[::2] for item in value)
        if isinstance(value, dict):
            return {str(option): str(setting) for option, setting in value.items()}
        raise InvalidInput(f"invalid value of {name}: a map is expected")
    if not isinstance(value, str):
        raise InvalidInput(f"invalid value of {name}: a string is expected")
    return value


def _size(value: Any) -> int:
    from ketchd.containers.logdrivers import size  # of the few that need it

    if not isinstance(value, str):
        raise InvalidInput(f'invalid size: "{value}"')
    return size(value.removesuffix("iB").removesuffix("ib"), 1024)


def _ulimits(value: Any) -> Limits:
    """`name=soft[:hard]` of flags, or a map of {Name, Soft, Hard} as daemon.json has them. Raises InvalidInput."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        found: dict[str, Any] = {}
        for text in value:
            name, _, both = text.partition("=")
            soft, _, hard = both.partition(":")
            found[name] = {"Soft": soft, "Hard": hard or soft}
        value = found
    if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()):
        raise InvalidInput("invalid value of default-ulimits: a map of ulimits is expected")
    limits: Limits = {}
    for name, one in value.items():
        try:
            soft, hard = int(one.get("Soft", 0)), int(one.get("Hard", 0))
        except (TypeError, ValueError, OverflowError):
            raise InvalidInput(f"invalid ulimit argument: {name}") from None
        if name not in RLIMITS:
            raise InvalidInput(f"invalid ulimit type: {name}")
        if hard != -1 and (soft == -1 or soft > hard):
            raise InvalidInput(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
        limits[name] = (soft, hard)
    return limits


def _pools(value: Any) -> Pools:
    """`base=SUBNET,size=N` of flags, or a list of {base, size} as daemon.json has them. Raises InvalidInput."""
    wrong = InvalidInput("invalid value of default-address-pools: a list of base and size is expected")
    if not isinstance(value, list):
        raise wrong
    found = []
    for one in value:
        given = dict(part.partition("=")[::2] for part in one.split(",")) if isinstance(one, str) else one
        if not isinstance(given, dict) or given.keys() != {"base", "size"}:
            raise wrong
        try:
            found.append((str(given["base"]), int(given["size"])))
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
    return found


def _own(value: Any) -> dict[str, Any]:
    """The settings that dockerd has nothing of: objects by room. What is in them is for the room to read."""
    if not isinstance(value, dict) or not all(isinstance(inner, dict) for inner in value.values()):
        raise InvalidInput("invalid value of ketch: an object of objects is expected")
    if unknown := sorted(set(value) - _OWN):
        raise InvalidInput(f"invalid value of ketch: nothing is called {', '.join(unknown)}")
    return value
