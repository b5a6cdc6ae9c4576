"""The types of the fields of requests about containers, and the reading of a request by them as Go's decoder reads it. Pure.

Keys are matched whatever their case and the last of a name wins; unknown keys are dropped; null leaves a field as it is; a
number has no fraction and fits its type. Source: Engine API 1.50, ContainerConfig, HostConfig, NetworkingConfig, NetworkConnect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ketch_wire.faults import InvalidInput

Read = Callable[[Any, str], Any]
Shape = Mapping[str, Read]


def _wrong(value: Any, where: str, kind: str) -> InvalidInput:
    names = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return InvalidInput(
        f"invalid JSON: cannot unmarshal {names.get(type(value), 'null')} into field {where} of type {kind}"
    )


def text(value: Any, where: str) -> str:
    """A string; null is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(value, where, "string")
    return value


def flag(value: Any, where: str) -> bool:
    """true or false; null is false."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong(value, where, "bool")
    return value


def _whole(kind: str, low: int, high: int) -> Read:
    def read(value: Any, where: str) -> int:
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(value, where, kind)
        return value

    return read


number = _whole("int64", -(1 << 63), (1 << 63) - 1)
_unsigned = _whole("uint64", 0, (1 << 64) - 1)
_uint32 = _whole("uint32", 0, (1 << 32) - 1)
_uint16 = _whole("uint16", 0, (1 << 16) - 1)


def each(item: Read, kind: str = "[]string") -> Read:
    """A list."""

    def read(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(value, where, kind)
        return [item(one, where) for one in value]

    return read


def by_name(item: Read, kind: str = "map[string]string") -> Read:
    """An object whose keys are free."""

    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, kind)
        return {key: item(one, where) for key, one in value.items()}

    return read


def shaped(shape: Shape, *, full: bool = False) -> Read:
    """An object of known fields; `full`: with those that are missing, as their type's zero."""

    def read(value: Any, where: str) -> dict[str, Any]:
        found = decode({} if value is None else value, shape, where)
        if full:
            found = {**{key: item(None, where) for key, item in shape.items()}, **found}
        return found

    return read


def _words(value: Any, where: str) -> list[str]:
    return [value] if isinstance(value, str) else texts(value, where)


def _nothing(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise _wrong(value, where, "struct {}")
    return {}


def _console(value: Any, where: str) -> list[int]:
    found = each(_unsigned, "[2]uint")(value, where)
    return [*found, 0, 0][:2]


def decode(sent: Any, shape: Shape, where: str = "") -> dict[str, Any]:
    """`sent` with the keys of `shape` in Docker's spelling, each value read by its type; null values are left out.

    where: the path of the object, for the message. Raises InvalidInput.
    """
    if not isinstance(sent, dict):
        raise _wrong(sent, where or "ContainerConfig", "object")
    names = {key.lower(): key for key in shape}
    found: dict[str, Any] = {}
    for key, value in sent.items():
        name = names.get(key.lower())
        if name is not None and value is not None:
            found[name] = shape[name](value, f"{where}.{name}" if where else name)
    return found


texts = each(text)
_text_map = by_name(text)
_rates = each(shaped({"Path": text, "Rate": _unsigned}, full=True), "[]ThrottleDevice")

_HEALTH: Shape = {
    "Test": texts, "Interval": number, "Timeout": number, "StartPeriod": number, "StartInterval": number,
    "Retries": number,
}  # fmt: skip
_MOUNT: Shape = {
    "Type": text, "Source": text, "Target": text, "ReadOnly": flag, "Consistency": text,
    "BindOptions": shaped({
        "Propagation": text, "NonRecursive": flag, "CreateMountpoint": flag, "ReadOnlyNonRecursive": flag,
        "ReadOnlyForceRecursive": flag,
    }),
    "VolumeOptions": shaped({
        "NoCopy": flag, "Labels": _text_map, "Subpath": text,
        "DriverConfig": shaped({"Name": text, "Options": _text_map}),
    }),
    "ImageOptions": shaped({"Subpath": text}),
    "TmpfsOptions": shaped({"SizeBytes": number, "Mode": _uint32, "Options": each(texts, "[][]string")}),
}  # fmt: skip
_DEVICE_REQUEST: Shape = {
    "Driver": text, "Count": number, "DeviceIDs": texts, "Capabilities": each(texts, "[][]string"),
    "Options": _text_map,
}  # fmt: skip
_ENDPOINT: Shape = {
    "IPAMConfig": shaped({"IPv4Address": text, "IPv6Address": text, "LinkLocalIPs": texts}), "Links": texts,
    "Aliases": texts, "MacAddress": text, "DriverOpts": _text_map, "GwPriority": number,
}  # fmt: skip

HOST_CONFIG: Shape = {
    "Binds": texts, "ContainerIDFile": text, "LogConfig": shaped({"Type": text, "Config": _text_map}),
    "NetworkMode": text,
    "PortBindings": by_name(
        each(shaped({"HostIp": text, "HostPort": text}, full=True), "[]PortBinding"), "map[Port][]PortBinding"
    ),
    "RestartPolicy": shaped({"Name": text, "MaximumRetryCount": number}), "AutoRemove": flag, "VolumeDriver": text,
    "VolumesFrom": texts, "ConsoleSize": _console, "Annotations": _text_map, "CapAdd": _words, "CapDrop": _words,
    "CgroupnsMode": text, "Dns": texts, "DnsOptions": texts, "DnsSearch": texts, "ExtraHosts": texts, "GroupAdd": texts,
    "IpcMode": text, "Cgroup": text, "Links": texts, "OomScoreAdj": number, "PidMode": text, "Privileged": flag,
    "PublishAllPorts": flag, "ReadonlyRootfs": flag, "SecurityOpt": texts, "StorageOpt": _text_map, "Tmpfs": _text_map,
    "UTSMode": text, "UsernsMode": text, "ShmSize": number, "Sysctls": _text_map, "Runtime": text, "Isolation": text,
    "CpuShares": number, "Memory": number, "NanoCpus": number, "CgroupParent": text, "BlkioWeight": _uint16,
    "BlkioWeightDevice": each(shaped({"Path": text, "Weight": _uint16}, full=True), "[]WeightDevice"),
    "BlkioDeviceReadBps": _rates, "BlkioDeviceWriteBps": _rates, "BlkioDeviceReadIOps": _rates,
    "BlkioDeviceWriteIOps": _rates, "CpuPeriod": number, "CpuQuota": number, "CpuRealtimePeriod": number,
    "CpuRealtimeRuntime": number, "CpusetCpus": text, "CpusetMems": text,
    "Devices": each(
        shaped({"PathOnHost": text, "PathInContainer": text, "CgroupPermissions": text}, full=True), "[]DeviceMapping"
    ),
    "DeviceCgroupRules": texts, "DeviceRequests": each(shaped(_DEVICE_REQUEST), "[]DeviceRequest"),
    "MemoryReservation": number, "MemorySwap": number, "KernelMemory": number, "KernelMemoryTCP": number, "MemorySwappiness": number, "OomKillDisable": flag,
    "PidsLimit": number, "Ulimits": each(shaped({"Name": text, "Hard": number, "Soft": number}, full=True), "[]Ulimit"),
    "CpuCount": number, "CpuPercent": number, "IOMaximumIOps": _unsigned, "IOMaximumBandwidth": _unsigned,
    "Mounts": each(shaped(_MOUNT), "[]Mount"), "MaskedPaths": texts, "ReadonlyPaths": texts, "Init": flag,
}  # fmt: skip

EXEC: Shape = {
    "User": text, "Privileged": flag, "Tty": flag, "ConsoleSize": _console, "AttachStdin": flag, "AttachStderr": flag,
    "AttachStdout": flag, "DetachKeys": text, "Env": texts, "WorkingDir": text, "Cmd": texts, "Detach": flag,
}  # fmt: skip
EXEC_START: Shape = {"Detach": flag, "Tty": flag, "ConsoleSize": _console}

CONNECT: Shape = {"Container": text, "EndpointConfig": shaped(_ENDPOINT)}
DISCONNECT: Shape = {"Container": text, "Force": flag}

CREATE: Shape = {
    "Hostname": text, "Domainname": text, "User": text, "AttachStdin": flag, "AttachStdout": flag, "AttachStderr": flag,
    "ExposedPorts": by_name(_nothing, "map[Port]struct {}"), "Tty": flag, "OpenStdin": flag, "StdinOnce": flag,
    "Env": texts, "Cmd": _words, "Healthcheck": shaped(_HEALTH), "ArgsEscaped": flag, "Image": text,
    "Volumes": by_name(_nothing, "map[string]struct {}"), "WorkingDir": text, "Entrypoint": _words,
    "NetworkDisabled": flag, "MacAddress": text, "OnBuild": texts, "Labels": _text_map, "StopSignal": text,
    "StopTimeout": number, "Shell": _words, "HostConfig": shaped(HOST_CONFIG),
    "NetworkingConfig": shaped({
        "EndpointsConfig": by_name(shaped(_ENDPOINT), "map[string]EndpointSettings"),
    }),
}  # fmt: skip
