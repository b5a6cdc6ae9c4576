"""What the engine says of itself and of its host: `/version` and `/info`. Source: Engine API 1.50, SystemVersion and SystemInfo."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from typing import Any

from ketch_wire.defaults import API_VERSION, ENGINE_VERSION, KETCH_VERSION, MINIMUM_API_VERSION
from ketchd.containers import logdrivers
from ketchd.containers.lifecycle import State
from ketchd.containers.settings import RUNTIMES
from ketchd.engine.rooms import Rooms
from ketchd.kernel.cgroups import Cgroups
from ketchd.model.times import rfc3339

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}
INDEX_SERVER = "https://index.docker.io/v1/"


@dataclass(slots=True)
class Facts:
    """What was decided at start, and by reloads since. layer_reason: why this kind of layer. mirrors: with a slash at the end.

    warnings: as `docker info` prints them. address_pools: (base, size) as configured.
    """

    engine_id: str
    layer_kind: str
    layer_reason: str
    cgroup_driver: str
    log_driver: str
    debug: bool = False
    live_restore: bool = True
    default_runtime: str = "runc"
    labels: list[str] = field(default_factory=list)
    insecure_registries: list[str] = field(default_factory=list)
    mirrors: list[str] = field(default_factory=list)
    security_options: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    address_pools: list[tuple[str, int]] = field(default_factory=list)


def _without_password(url: str) -> str:
    """A proxy as it may be shown, in dockerd's way."""
    scheme, sign, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{sign}xxxxx:xxxxx@{place.rpartition('@')[2]}{slash}{path}" if "@" in place else url


def host_architecture() -> str:
    """As images name it: `amd64`."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def version_document() -> dict[str, Any]:
    """`/version`. The engine component is the Docker Engine whose behaviour is followed; ketch's own version stands beside it."""
    kernel, python = platform.release(), platform.python_version()
    details = {
        "ApiVersion": API_VERSION, "Arch": host_architecture(), "BuildTime": "", "Experimental": "false", "GitCommit": "",
        "GoVersion": "", "KernelVersion": kernel, "MinAPIVersion": MINIMUM_API_VERSION, "Os": "linux",
        "PythonVersion": python,
    }  # fmt: skip
    return {
        "Platform": {"Name": f"ketch {KETCH_VERSION}"},
        "Components": [
            {"Name": "Engine", "Version": ENGINE_VERSION, "Details": details},
            {"Name": "ketchd", "Version": KETCH_VERSION, "Details": {"PythonVersion": python}},
        ],
        "Version": ENGINE_VERSION, "ApiVersion": API_VERSION, "MinAPIVersion": MINIMUM_API_VERSION, "GitCommit": "",
        "GoVersion": "", "Os": "linux", "Arch": host_architecture(), "KernelVersion": kernel, "BuildTime": "",
    }  # fmt: skip


def information(rooms: Rooms, facts: Facts) -> dict[str, Any]:
    """`/info`."""
    states = [box.record.state for box in rooms.supervisor]
    running = sum(state in (State.RUNNING, State.RESTARTING) for state in states)
    paused = sum(state is State.PAUSED for state in states)
    release = _os_release()
    secure = {
        host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False}
        for host in facts.insecure_registries
        if "/" not in host
    }
    hub = {"Name": "docker.io", "Mirrors": facts.mirrors, "Secure": True, "Official": True}
    lacks = host_warnings(rooms.cgroups)
    pools = [{"Base": base, "Size": size} for base, size in facts.address_pools]

    def supports(what: str) -> bool:
        return not any(what in warning for warning in lacks)

    return {
        "ID": facts.engine_id,
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
        "Images": rooms.images.count(),
        "Driver": "overlay2",
        "DriverStatus": [["Layers", facts.layer_kind], ["Reason", facts.layer_reason]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": None,
            "Log": [driver for driver in logdrivers.DRIVERS if driver != "none"],
        },
        "MemoryLimit": supports("memory limit"),
        "SwapLimit": supports("swap limit"),
        "CpuCfsPeriod": supports("cpu cfs period"),
        "CpuCfsQuota": supports("cpu cfs quota"),
        "CPUShares": supports("cpu shares"),
        "CPUSet": supports("cpuset"),
        "PidsLimit": supports("pids limit"),
        "IPv4Forwarding": _flag("/proc/sys/net/ipv4/ip_forward"),
        "Debug": facts.debug,
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": rooms.cgroups.version == 1,
        "NGoroutines": 1,
        "SystemTime": rfc3339(time.time_ns()),
        "LoggingDriver": facts.log_driver,
        "CgroupDriver": facts.cgroup_driver,
        "CgroupVersion": str(rooms.cgroups.version),
        "NEventsListener": rooms.events.listeners,
        "KernelVersion": platform.release(),
        "OperatingSystem": release.get("PRETTY_NAME", "Linux"),
        "OSVersion": release.get("VERSION_ID", ""),
        "OSType": "linux",
        "Architecture": platform.machine(),
        "IndexServerAddress": INDEX_SERVER,
        "RegistryConfig": {
            "InsecureRegistryCIDRs": [
                "::1/128",
                "127.0.0.0/8",
                *(one for one in facts.insecure_registries if "/" in one),
            ],
            "IndexConfigs": {"docker.io": hub, **secure},
            "Mirrors": facts.mirrors or None,
        },
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "GenericResources": None,
        "DockerRootDir": str(rooms.data_root),
        "HttpProxy": _without_password(os.environ.get("HTTP_PROXY", os.environ.get("http_proxy", ""))),
        "HttpsProxy": _without_password(os.environ.get("HTTPS_PROXY", os.environ.get("https_proxy", ""))),
        "NoProxy": os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")),
        "Name": platform.node(),
        "Labels": facts.labels,
        "ExperimentalBuild": False,
        "ServerVersion": ENGINE_VERSION,
        "Runtimes": {name: {"path": "ketch"} for name in RUNTIMES},
        "DefaultRuntime": facts.default_runtime,
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": facts.live_restore,
        "Isolation": "",
        "InitBinary": "ketch-init",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": facts.security_options,
        "FirewallBackend": {"Driver": "nftables"},
        "CDISpecDirs": [],
        "Warnings": facts.warnings or None,
        **({"DefaultAddressPools": pools} if pools else {}),
    }


_CONTROLS = (
    ("memory limit", "memory/memory.limit_in_bytes", "memory.max"),
    ("swap limit", "memory/memory.memsw.limit_in_bytes", "memory.swap.max"),
    ("cpu cfs period", "cpu/cpu.cfs_period_us", "cpu.max"),
    ("cpu cfs quota", "cpu/cpu.cfs_quota_us", "cpu.max"),
    ("cpu shares", "cpu/cpu.shares", "cpu.weight"),
    ("cpuset", "cpuset/cpuset.cpus", "cpuset.cpus"),
    ("pids limit", "pids/pids.max", "pids.max"),
)


def host_warnings(cgroups: Cgroups) -> list[str]:
    """dockerd's warnings for what this host's cgroups cannot limit."""
    return [
        f"WARNING: No {name} support"
        for name, first, second in _CONTROLS
        if not cgroups.has(first if cgroups.version == 1 else second)
    ]


def _os_release() -> dict[str, str]:
    """os-release(5)."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8") as lines:
                pairs = [
                    line.strip().partition("=") for line in lines if "=" in line and not line.startswith("#")
                ]
        except OSError:
            continue
        return {key: value.strip("\"'") for key, _, value in pairs}
    return {}


def _flag(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False
