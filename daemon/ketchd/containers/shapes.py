"""The Engine API's Config and HostConfig: every key with its default, and the folding of a client's spelling onto them. Pure.

Request keys are matched whatever their case, unknown ones are ignored, and null is absent (as Go's decoder does).
Source: Engine API 1.50, ContainerConfig and HostConfig.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

CONFIG: dict[str, Any] = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "ExposedPorts": None, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None,
    "Healthcheck": None, "ArgsEscaped": None, "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None,
    "NetworkDisabled": None, "MacAddress": None, "OnBuild": None, "Labels": {}, "StopSignal": None,
    "StopTimeout": None, "Shell": None,
}  # fmt: skip

HOST_CONFIG: dict[str, Any] = {
    "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "bridge",
    "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": False,
    "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0], "Annotations": None, "CapAdd": None,
    "CapDrop": None, "CgroupnsMode": "", "Dns": None, "DnsOptions": None, "DnsSearch": None, "ExtraHosts": None,
    "GroupAdd": None, "IpcMode": "", "Cgroup": "", "Links": None, "OomScoreAdj": 0, "PidMode": "",
    "Privileged": False, "PublishAllPorts": False, "ReadonlyRootfs": False, "SecurityOpt": None, "StorageOpt": None,
    "Tmpfs": None, "UTSMode": "", "UsernsMode": "", "ShmSize": 0, "Sysctls": None, "Runtime": "",
    "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0,
    "BlkioWeightDevice": None, "BlkioDeviceReadBps": None, "BlkioDeviceWriteBps": None,
    "BlkioDeviceReadIOps": None, "BlkioDeviceWriteIOps": None, "CpuPeriod": 0, "CpuQuota": 0,
    "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "", "Devices": None,
    "DeviceCgroupRules": None, "DeviceRequests": None, "MemoryReservation": 0, "MemorySwap": 0,
    "KernelMemory": 0, "KernelMemoryTCP": 0, "MemorySwappiness": None, "OomKillDisable": None, "PidsLimit": None, "Ulimits": None, "CpuCount": 0,
    "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0, "Mounts": None, "MaskedPaths": None,
    "ReadonlyPaths": None, "Init": None,
}  # fmt: skip

OMITTED_WHEN_EMPTY = frozenset(
    {"Annotations", "StorageOpt", "Tmpfs", "Sysctls", "Mounts", "Init", "ArgsEscaped", "NetworkDisabled", "MacAddress",
     "StopSignal", "StopTimeout", "Shell", "Healthcheck", "ExposedPorts", "KernelMemory", "KernelMemoryTCP"}
)  # fmt: skip
_POINTERS = frozenset({"Init", "StopTimeout"})  # false and 0 are no empty ones: somebody said them


def fold(sent: Mapping[str, Any] | None, shape: Mapping[str, Any]) -> dict[str, Any]:
    """`sent` with the keys of `shape`: Docker's spelling, defaults filled in, null as absent."""
    by_key = {key.lower(): value for key, value in (sent or {}).items() if value is not None}
    return {key: by_key.get(key.lower(), copy.deepcopy(default)) for key, default in shape.items()}


def pick(sent: Mapping[str, Any] | None, key: str, default: Any = None) -> Any:
    """One value of `sent`, whatever the case of its key; `default` when absent or null."""
    if not sent:
        return default
    value = sent.get(key)
    if value is None:
        lowered = key.lower()
        value = next((found for name, found in sent.items() if name.lower() == lowered), None)
    return default if value is None else value


def shown(values: Mapping[str, Any]) -> dict[str, Any]:
    """As inspect prints it: Go's omitempty keys are left out when empty."""
    return {
        key: value
        for key, value in values.items()
        if value or key not in OMITTED_WHEN_EMPTY or (key in _POINTERS and value is not None)
    }
