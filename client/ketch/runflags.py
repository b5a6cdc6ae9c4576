"""What `run` and `create` were asked, as the body of POST /containers/create, field for field as docker's CLI sends it.

Reads env, label and seccomp files. Source: docker/cli cli/command/container/opts.go (parse).
"""

from __future__ import annotations

import json
from typing import Any

from ketch.faults import CommandFailed, why
from ketch.limits import parse_byte_rate, parse_operation_rate, parse_restart, parse_ulimit, parse_weight
from ketch.mounts import is_cdi_name, parse_device, parse_mount, split_volumes
from ketch.networkflags import endpoints, is_mac, network_mode
from ketch.options import Given
from ketch.ports import parse_exposed, parse_published
from ketch.variables import pair_map, read_labels, read_variables

Body = dict[str, Any]

# Windows' own, and what a client never sets; a client in Go sends them all the same.
CONSTANT = {
    "ConsoleSize": [0, 0],
    "Cgroup": "",
    "CpuCount": 0,
    "CpuPercent": 0,
    "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
}


def create_body(given: Given, proxies: dict[str, str | None] | None = None) -> Body:
    """Config, HostConfig and NetworkingConfig. `proxies`: variables of the client's configuration, behind the typed ones.

    Raises CommandFailed (125) for what is wrong or contradicts itself.
    """
    try:
        config = _config(given, proxies or {})
        host = _host_config(given)
        _conflicts(given, host)
        config["HostConfig"] = host
        config["NetworkingConfig"] = {"EndpointsConfig": endpoints(given)}
    except ValueError as error:
        raise refused(given.path, str(error)) from error
    return config


def refused(path: str, message: str, code: int = 125) -> CommandFailed:
    """A fault of `run` or `create`, with docker's hint. `path`: the command as it calls itself."""
    return CommandFailed(f"ketch: {message}\n\nRun '{path} --help' for more information", code)


def _config(given: Given, proxies: dict[str, str | None]) -> Body:
    attached = given.many("attach")
    default = not attached
    interactive = given.on("interactive")
    if given.text("mac-address") and not is_mac(given.text("mac-address").strip()):
        raise ValueError(f"{given.text('mac-address')} is not a valid mac address")
    if given.has("gpus"):
        raise ValueError("--gpus is not available: this engine has no driver for GPUs; use --device instead")
    image, *command = given.arguments
    entrypoint = [given.text("entrypoint")] if given.has("entrypoint") else None
    config: Body = {
        "Hostname": given.text("hostname"),
        "Domainname": given.text("domainname"),
        "User": given.text("user"),
        "AttachStdin": interactive or "stdin" in attached,
        "AttachStdout": default or "stdout" in attached,
        "AttachStderr": default or "stderr" in attached,
        "Tty": given.on("tty"),
        "OpenStdin": interactive,
        # An attached client that goes away closes the program's input.
        "StdinOnce": interactive,
        "Env": _environment(given, proxies),
        "Cmd": command or None,
        "Image": image,
        "Volumes": split_volumes(given.many("volume"))[1],
        "WorkingDir": given.text("workdir"),
        "Entrypoint": entrypoint,
        "OnBuild": None,
        "Labels": read_labels(given.many("label-file"), given.many("label")),
    }
    exposed = dict.fromkeys(parse_published(given.many("publish")))
    for spec in given.many("expose"):
        exposed.update(dict.fromkeys(parse_exposed(spec)))
    if exposed:
        config["ExposedPorts"] = {port: {} for port in exposed}
    if given.text("stop-signal"):
        config["StopSignal"] = given.text("stop-signal")
    if given.has("stop-timeout"):
        config["StopTimeout"] = given.number("stop-timeout")
    health = _health(given)
    if health is not None:
        config["Healthcheck"] = health
    return config


def _environment(given: Given, proxies: dict[str, str | None]) -> list[str] | None:
    typed: dict[str, str | None] = {}
    for text in given.many("env"):
        name, assigned, value = text.partition("=")
        typed[name] = value if assigned else None
    merged = {**proxies, **typed}
    options = [name if value is None else f"{name}={value}" for name, value in merged.items()]
    return read_variables(given.many("env-file"), options) or None


def _health(given: Given) -> Body | None:
    durations = {
        "Interval": "health-interval",
        "Timeout": "health-timeout",
        "StartPeriod": "health-start-period",
        "StartInterval": "health-start-interval",
    }
    command, retries = given.text("health-cmd"), given.number("health-retries")
    wanted = command or retries or any(given.number(name) for name in durations.values())
    if given.on("no-healthcheck"):
        if wanted:
            raise ValueError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not wanted:
        return None
    for name in ("health-interval", "health-timeout", "health-retries", "health-start-period"):
        if given.number(name) < 0:
            raise ValueError(f"--{name} cannot be negative")
    if given.number("health-start-interval") < 0:
        raise ValueError("--health-start-interval cannot be negative")
    health: Body = {"Test": ["CMD-SHELL", command]} if command else {}
    health.update({field: given.number(name) for field, name in durations.items() if given.number(name)})
    if retries:
        health["Retries"] = retries
    return health


def _host_config(given: Given) -> Body:
    security, paths = _security(given.many("security-opt"))
    added, dropped = capabilities(given.many("cap-add"), given.many("cap-drop"))
    host: Body = {
        "Binds": split_volumes(given.many("volume"))[0] or None,
        "ContainerIDFile": given.text("cidfile"),
        "LogConfig": _logging(given),
        "NetworkMode": network_mode(given),
        "PortBindings": parse_published(given.many("publish")),
        "RestartPolicy": parse_restart(given.text("restart")),
        "AutoRemove": given.on("rm"),
        "VolumeDriver": given.text("volume-driver"),
        "VolumesFrom": given.many("volumes-from") or None,
        "CapAdd": added or None,
        "CapDrop": dropped or None,
        "CgroupnsMode": given.text("cgroupns"),
        "Dns": given.many("dns"),
        "DnsOptions": given.many("dns-option"),
        "DnsSearch": given.many("dns-search"),
        "ExtraHosts": given.many("add-host") or None,
        "GroupAdd": given.many("group-add") or None,
        "IpcMode": given.text("ipc"),
        "Links": given.many("link") or None,
        "OomScoreAdj": given.number("oom-score-adj"),
        "PidMode": given.text("pid"),
        "Privileged": given.on("privileged"),
        "PublishAllPorts": given.on("publish-all"),
        "ReadonlyRootfs": given.on("read-only"),
        "SecurityOpt": security if given.has("security-opt") else None,
        "UTSMode": given.text("uts"),
        "UsernsMode": given.text("userns"),
        "ShmSize": given.number("shm-size"),
        "Isolation": given.text("isolation"),
        **_resources(given),
        **CONSTANT,
        "MaskedPaths": paths,
        "ReadonlyPaths": paths,
    }
    optional: Body = {
        "Tmpfs": {path: rest for path, _, rest in (text.partition(":") for text in given.many("tmpfs"))},
        "Sysctls": pair_map(given.many("sysctl")),
        "Annotations": pair_map(given.many("annotation")),
        "StorageOpt": _storage(given.many("storage-opt")),
        "Runtime": given.text("runtime"),
        "Mounts": [parse_mount(text) for text in given.many("mount")],
    }
    host.update({name: value for name, value in optional.items() if value})
    # Without the option the engine decides.
    if given.has("init"):
        host["Init"] = given.on("init")
    return host


def _resources(given: Given) -> Body:
    devices = [parse_device(text) for text in given.many("device") if not is_cdi_name(text)]
    qualified = [text for text in given.many("device") if is_cdi_name(text)]
    return {
        "CpuShares": given.number("cpu-shares"),
        "Memory": given.number("memory"),
        "NanoCpus": given.number("cpus"),
        "CgroupParent": given.text("cgroup-parent"),
        "BlkioWeight": given.number("blkio-weight"),
        "BlkioWeightDevice": [parse_weight(text) for text in given.many("blkio-weight-device")],
        "BlkioDeviceReadBps": [parse_byte_rate(text) for text in given.many("device-read-bps")],
        "BlkioDeviceWriteBps": [parse_byte_rate(text) for text in given.many("device-write-bps")],
        "BlkioDeviceReadIOps": [parse_operation_rate(text) for text in given.many("device-read-iops")],
        "BlkioDeviceWriteIOps": [parse_operation_rate(text) for text in given.many("device-write-iops")],
        "CpuPeriod": given.number("cpu-period"),
        "CpuQuota": given.number("cpu-quota"),
        "CpuRealtimePeriod": given.number("cpu-rt-period"),
        "CpuRealtimeRuntime": given.number("cpu-rt-runtime"),
        "CpusetCpus": given.text("cpuset-cpus"),
        "CpusetMems": given.text("cpuset-mems"),
        "Devices": devices,
        "DeviceCgroupRules": given.many("device-cgroup-rule") or None,
        "DeviceRequests": _cdi_requests(qualified),
        "MemoryReservation": given.number("memory-reservation"),
        "MemorySwap": given.number("memory-swap"),
        "MemorySwappiness": given.number("memory-swappiness"),
        "OomKillDisable": given.on("oom-kill-disable"),
        "PidsLimit": given.number("pids-limit"),
        # The last of a name counts.
        "Ulimits": sorted(
            {one["Name"]: one for one in map(parse_ulimit, given.many("ulimit"))}.values(),
            key=lambda one: str(one["Name"]),
        ),
    }


def _cdi_requests(names: list[str]) -> list[Body] | None:
    if not names:
        return None
    return [{"Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": None, "Options": None}]


def _conflicts(given: Given, host: Body) -> None:
    swappiness = given.number("memory-swappiness")
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise ValueError(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    pid, uts, user, cgroup = (given.text(name) for name in ("pid", "uts", "userns", "cgroupns"))
    if pid not in ("", "host", "private") and not (pid.startswith("container:") and len(pid) > 10):
        raise ValueError("--pid: invalid PID mode")
    if uts not in ("", "host"):
        raise ValueError("--uts: invalid UTS mode")
    if user not in ("", "host"):
        raise ValueError("--userns: invalid USER mode")
    if cgroup not in ("", "host", "private"):
        raise ValueError("--cgroupns: invalid CGROUP mode")
    if given.on("rm") and host["RestartPolicy"]["Name"] not in ("", "no"):
        raise ValueError("conflicting options: cannot specify both --restart and --rm")


def capabilities(added: list[str], dropped: list[str]) -> tuple[list[str], list[str]]:
    """Both in the kernel's names, sorted; ALL stands for all others, adding wins over dropping."""

    def names(texts: list[str]) -> set[str]:
        upper = {text.strip().upper() for text in texts}
        full = {
            text if text in ("ALL", "RESET") or text.startswith("CAP_") else f"CAP_{text}" for text in upper
        }
        return {"ALL"} if "ALL" in full else full

    adds, drops = names(added), names(dropped)
    return sorted(adds), sorted(drops - adds)


def _logging(given: Given) -> Body:
    driver, options = given.text("log-driver"), pair_map(given.many("log-opt"))
    if driver == "none" and options:
        raise ValueError(f"invalid logging opts for driver {driver}")
    return {"Type": driver, "Config": options}


def _storage(texts: list[str]) -> dict[str, str]:
    if any("=" not in text for text in texts):
        raise ValueError("invalid storage option")
    return pair_map(texts)


def _security(texts: list[str]) -> tuple[list[str], list[str] | None]:
    """The options as the engine takes them, and the masked and read-only paths: none, or the engine's own (None)."""
    kept: list[str] = []
    paths: list[str] | None = None
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign and name != "no-new-privileges":
            name, sign, value = text.partition(":")
        if name != "no-new-privileges" and not (sign and value):
            raise ValueError(f'Invalid --security-opt: "{text}"')
        if text == "systempaths=unconfined":
            paths = []
        elif name == "seccomp" and value not in ("builtin", "unconfined"):
            kept.append("seccomp=" + _profile(value))
        else:
            kept.append(text)
    return kept, paths


def _profile(path: str) -> str:
    failed = f"opening seccomp profile ({path}) failed: open {path}: "
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read()
        return json.dumps(json.loads(content), separators=(",", ":"))
    except OSError as error:
        raise ValueError(failed + why(error)) from error
    except ValueError as error:
        raise ValueError(f"compacting json for seccomp profile ({path}) failed: {error}") from error
