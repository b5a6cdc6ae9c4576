"""From a create request to a complete, checked container: merging with the image, defaults, refusals. Pure.

Messages are dockerd's (Engine API, ContainerCreate). Raises InvalidInput; changes nothing.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.containers.daemondefaults import BUILT_IN, DaemonDefaults
from ketchd.containers.shapes import CONFIG, HOST_CONFIG, fold, pick
from ketchd.containers.signals import signal_number
from ketchd.model.address import is_address
from ketchd.model.imageconfig import RunConfig

_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_PORT = re.compile(r"([0-9]+)(?:-([0-9]+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_HOST_PORT = re.compile(r"(?:([0-9]{1,5})(?:-([0-9]{1,5}))?)?")
# Free texts: they are kept and shown, never used.
_MAY_HOLD_NUL = frozenset(("Labels", "Annotations"))
NAME_LIMIT = 4096
# All of them are ours; the first two are dockerd's names of its own.
RUNTIMES = ("runc", "io.containerd.runc.v2", "ketch")


def check_name(name: str) -> str:
    """`name` without its leading slash. Raises InvalidInput."""
    if len(name) > NAME_LIMIT or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"Invalid container name ({name[:80]}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return name.removeprefix("/")


def port_key(text: str) -> str:
    """`80`, `80/TCP` -> `80/tcp`. Raises InvalidInput."""
    match = _PORT.fullmatch(text)
    if not match or not 0 < int(match[1]) < 65536 or match[2]:
        raise InvalidInput(f'invalid port specification: "{text}"')
    return f"{int(match[1])}/{(match[3] or 'tcp').lower()}"


def check_texts(sent: Any, where: str = "") -> None:
    """No text of a request that becomes a path, a name or an argument holds a NUL byte. Raises InvalidInput."""
    if isinstance(sent, str):
        if "\0" in sent:
            raise InvalidInput(f"invalid {where}: it contains a NUL byte")
    elif isinstance(sent, Mapping):
        for key, value in sent.items():
            if key not in _MAY_HOLD_NUL:
                check_texts(key, where or "request")
                check_texts(value, f"{where}.{key}" if where else key)
    elif isinstance(sent, list):
        for one in sent:
            check_texts(one, where)


def merge(sent: Mapping[str, Any], image: RunConfig) -> dict[str, Any]:
    """The container's Config: what was sent, completed from the image. Raises InvalidInput."""
    config = fold(sent, CONFIG)
    if not config["Entrypoint"]:
        if not config["Cmd"]:
            config["Cmd"] = list(image.cmd) if image.cmd is not None else None
        if config["Entrypoint"] is None:
            config["Entrypoint"] = list(image.entrypoint) if image.entrypoint is not None else None
    if config["Entrypoint"] == [""]:
        config["Entrypoint"] = None
    env = list(config["Env"] or [])
    mine = {entry.split("=", 1)[0] for entry in env}
    env += [entry for entry in image.env if entry.split("=", 1)[0] not in mine]
    config["Env"] = env
    config["Labels"] = {**image.labels, **(config["Labels"] or {})}
    ports: dict[str, Any] = {
        port_key(port): {} for port in [*image.exposed_ports, *(config["ExposedPorts"] or {})]
    }
    config["ExposedPorts"] = ports or None
    volumes: dict[str, Any] = {path: {} for path in [*image.volumes, *(config["Volumes"] or {})]}
    config["Volumes"] = volumes or None
    config["User"] = config["User"] or image.user
    config["WorkingDir"] = config["WorkingDir"] or image.working_dir
    config["StopSignal"] = config["StopSignal"] or image.stop_signal or None
    config["Healthcheck"] = _merge_health(config["Healthcheck"], image.healthcheck)
    config["Shell"] = config["Shell"] or (list(image.shell) if image.shell else None)
    _check_config(config)
    return config


def _merge_health(sent: Mapping[str, Any] | None, image: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not sent:
        return dict(image) if image else None
    merged = {key: value for key, value in (image or {}).items() if value}
    merged.update({key: value for key, value in sent.items() if value})
    for key in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        value = merged.get(key, 0)
        if value and value < 1_000_000:
            raise InvalidInput(f"{key} in Healthcheck cannot be less than 1ms")
    if merged.get("Retries", 0) < 0:
        raise InvalidInput("Retries in Healthcheck cannot be negative")
    return merged


def _check_config(config: dict[str, Any]) -> None:
    if not config["Cmd"] and not config["Entrypoint"]:
        raise InvalidInput("no command specified")
    for entry in config["Env"]:
        if entry.startswith("=") or not entry:
            raise InvalidInput(f"invalid environment variable: {entry:.100}")
    workdir = config["WorkingDir"]
    if workdir:
        if not workdir.startswith("/"):
            raise InvalidInput(
                f"the working directory '{workdir}' is invalid, it needs to be an absolute path"
            )
        config["WorkingDir"] = posixpath.normpath(workdir).replace("//", "/")
    if config["StopSignal"]:
        signal_number(config["StopSignal"])
    for key, what in (("Hostname", "hostname"), ("Domainname", "domainname")):
        if len(config[key].encode()) > 64 or any(letter.isspace() for letter in config[key]):
            raise InvalidInput(f"invalid {what}: {config[key][:80]}")


def normalise_host(
    sent: Mapping[str, Any] | None,
    *,
    cgroup_version: int,
    cpus: int,
    defaults: DaemonDefaults = BUILT_IN,
) -> dict[str, Any]:
    """The complete HostConfig, sentinels of the docker CLI replaced. Raises InvalidInput."""
    host = fold(sent, HOST_CONFIG)
    log = host["LogConfig"]
    host["LogConfig"] = {"Type": pick(log, "Type") or "", "Config": pick(log, "Config") or {}}
    if host["NetworkMode"] in ("", "default"):
        host["NetworkMode"] = "bridge"
    restart = host["RestartPolicy"]
    host["RestartPolicy"] = {
        "Name": pick(restart, "Name") or "no",
        "MaximumRetryCount": pick(restart, "MaximumRetryCount", 0),
    }
    defaults.complete(host, cgroup_version=cgroup_version)
    if host["MemorySwappiness"] == -1:
        host["MemorySwappiness"] = None
    if host["PidsLimit"] is not None and host["PidsLimit"] <= 0:
        host["PidsLimit"] = None
    if host["Memory"] and not host["MemorySwap"]:
        host["MemorySwap"] = host["Memory"] * 2
    if cgroup_version == 2:
        host["OomKillDisable"] = None
    elif host["OomKillDisable"] is None:
        host["OomKillDisable"] = False
    bindings: dict[str, Any] = {}
    for port, wanted in (host["PortBindings"] or {}).items():
        bindings[port_key(port)] = wanted or [{"HostIp": "", "HostPort": ""}]
        for one in bindings[port_key(port)]:
            _check_binding(one)
    host["PortBindings"] = bindings
    check_host(host, cpus)
    return host


def _check_binding(one: Mapping[str, str]) -> None:
    match = _HOST_PORT.fullmatch(one["HostPort"])
    low, high = (int(match[1] or 0), int(match[2] or match[1] or 0)) if match else (0, -1)
    if not low <= high < 65536:
        raise InvalidInput(f'invalid port specification: "{one["HostPort"][:60]}"')
    if one["HostIp"] and not is_address(one["HostIp"].strip("[]")):
        raise InvalidInput(f"invalid hostIP: {one['HostIp'][:60]}")


def check_host(host: dict[str, Any], cpus: int) -> None:
    """dockerd's refusals of a complete HostConfig. Raises InvalidInput."""
    restart = host["RestartPolicy"]
    name, count = restart["Name"], restart["MaximumRetryCount"]
    if name not in ("no", "always", "on-failure", "unless-stopped"):
        raise InvalidInput(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or "
            "'unless-stopped'"
        )
    if count and name != "on-failure":
        raise InvalidInput("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if count < 0:
        raise InvalidInput("invalid restart policy: maximum retry count cannot be negative")
    if host["AutoRemove"] and name != "no":
        raise InvalidInput("can't create 'AutoRemove' container with restart policy")
    _check_memory(host)
    nano = host["NanoCpus"]
    if nano and not 10_000_000 <= nano <= cpus * 1_000_000_000:
        raise InvalidInput(
            f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )
    if nano and (host["CpuPeriod"] or host["CpuQuota"]):
        which = "CPU Period" if host["CpuPeriod"] else "CPU Quota"
        raise InvalidInput(f"Conflicting options: Nano CPUs and {which} cannot both be set")
    if host["CpuPeriod"] and not 1000 <= host["CpuPeriod"] <= 1_000_000:
        raise InvalidInput(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if host["CpuQuota"] and 0 < host["CpuQuota"] < 1000:
        raise InvalidInput("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host["CpuShares"] < 0:
        raise InvalidInput(f"invalid CPU shares ({host['CpuShares']}): value must be a positive integer")
    if host["BlkioWeight"] and not 10 <= host["BlkioWeight"] <= 1000:
        raise InvalidInput("Range of blkio weight is from 10 to 1000")
    if host["ShmSize"] < 0:
        raise InvalidInput("SHM size can not be less than 0")
    if not -1000 <= host["OomScoreAdj"] <= 1000:
        raise InvalidInput(f"Invalid value {host['OomScoreAdj']}, range for oom score adj is [-1000, 1000]")
    if host["Runtime"] not in RUNTIMES:
        raise InvalidInput(f"unknown or invalid runtime name: {host['Runtime']}")
    if host["CpuRealtimePeriod"] or host["CpuRealtimeRuntime"]:
        raise InvalidInput("Your kernel does not support CPU real-time scheduler")
    for refusal in _not_offered(host):
        raise refusal
    _check_modes(host)
    _check_names(host)


def _not_offered(host: Mapping[str, Any]) -> Iterator[InvalidInput]:
    """What dockerd has and we have not, or not on this system: better refused than forgotten."""
    if host["Isolation"] not in ("", "default"):
        yield InvalidInput(f"invalid isolation '{host['Isolation'][:60]}' on linux")
    if host["Links"] and (refusal := _of_links(host["NetworkMode"])) is not None:
        yield refusal
    if host["StorageOpt"]:
        yield InvalidInput("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    for request in host["DeviceRequests"] or []:
        driver, wanted = pick(request, "Driver", ""), pick(request, "Capabilities", [])
        shown = " ".join(f"[{' '.join(group)}]" for group in wanted)
        yield InvalidInput(
            f'could not select device driver "{driver[:60]}" with capabilities: [{shown[:200]}]'
        )


def _of_links(mode: str) -> InvalidInput | None:
    """Whether a container of this NetworkMode can have any."""
    if mode == "host" or mode.startswith("container:"):
        kind = "host type networking" if mode == "host" else "container type network"
        return InvalidInput(
            f"conflicting options: {kind} can't be used with links. This would result in undefined behavior"
        )
    return None


def _check_names(host: Mapping[str, Any]) -> None:
    for entry in host["ExtraHosts"] or []:
        name, sign, address = entry.partition(":")
        if not sign or not name or any(letter.isspace() for letter in name):
            raise InvalidInput(f'bad format for add-host: "{entry[:200]}"')
        if address != "host-gateway" and not is_address(address.strip("[]")):
            raise InvalidInput(f'invalid IP address in add-host: "{address[:200]}"')
    for server in host["Dns"] or []:
        if not is_address(server):
            raise InvalidInput(f'bad nameserver address "{server[:200]}"')
    for word in [*(host["DnsSearch"] or []), *(host["DnsOptions"] or [])]:
        if any(letter.isspace() for letter in word):
            raise InvalidInput(f'"{word[:200]}" is not a valid word of resolv.conf')


def _check_memory(host: dict[str, Any]) -> None:
    memory, swap, reservation = host["Memory"], host["MemorySwap"], host["MemoryReservation"]
    if memory and memory < 6 * 1024 * 1024:
        raise InvalidInput("Minimum memory limit allowed is 6MB")
    if swap > 0 and not memory:
        raise InvalidInput("You should always set the Memory limit when using Memoryswap limit, see usage")
    if swap > 0 and swap < memory:
        raise InvalidInput("Minimum memoryswap limit should be larger than memory limit, see usage")
    if reservation and reservation < 6 * 1024 * 1024:
        raise InvalidInput("Minimum memory reservation allowed is 6MB")
    if memory and reservation and memory < reservation:
        raise InvalidInput("Minimum memory limit can not be less than memory reservation limit, see usage")
    swappiness = host["MemorySwappiness"]
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise InvalidInput(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")


def _check_modes(host: dict[str, Any]) -> None:
    for key, what, allowed in (
        ("PidMode", "PID mode", ("", "host")),
        ("IpcMode", "IPC mode", ("none", "private", "shareable", "host")),
        ("UTSMode", "UTS mode", ("", "host")),
        ("CgroupnsMode", "cgroup namespace mode", ("private", "host")),
        ("UsernsMode", "user namespace mode", ("", "host")),
    ):
        mode = host[key]
        joins = mode.startswith("container:") and len(mode) > 10 and key in ("PidMode", "IpcMode")
        if mode not in allowed and not joins:
            raise InvalidInput(f"invalid {what}: {mode[:200]}")
    mode = host["NetworkMode"]
    if mode in ("container", "container:"):
        raise InvalidInput("invalid container format container:<name|id>")
    if mode.startswith("container:"):
        if host["PortBindings"] or host["PublishAllPorts"]:
            raise InvalidInput("conflicting options: port publishing and the container type network mode")
        if host["Dns"]:
            raise InvalidInput("conflicting options: dns and the network mode")
        if host["ExtraHosts"]:
            raise InvalidInput("conflicting options: custom host-to-IP mapping and the network mode")
    for option in host["SecurityOpt"] or []:
        if not re.match(
            r"(no-new-privileges|(seccomp|apparmor|label)([=:].*)?|no-new-privileges[=:].*|systempaths[=:]unconfined)$",
            option,
            re.DOTALL,
        ):
            number = 2 if "=" in option or ":" in option else 1
            raise InvalidInput(f'invalid --security-opt {number}: "{option[:200]}"')


def command_line(config: Mapping[str, Any]) -> list[str]:
    """Entrypoint and Cmd as one argument list."""
    return [*(config["Entrypoint"] or []), *(config["Cmd"] or [])]
