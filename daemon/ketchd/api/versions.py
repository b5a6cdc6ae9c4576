"""What older API versions mean by their requests, and how they have their answers. Pure.

Source: Engine API, version history; moby api/server/router/container and daemon/inspect_linux.go, versions 20.10 and 28.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.containers import fields

Version = tuple[int, int]
PLAIN_ERRORS_BEFORE: Version = (1, 24)
_COUNTERS = [f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")]


# What stood beside HostConfig before it had a place there. Source: moby 20.10 runconfig/config_unix.go.
_MOVED = ("Memory", "MemorySwap", "CpuShares", "CpusetCpus", "VolumeDriver")
_CPU_SHARES = (2, 262144)


def update_request(sent: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """An update without what a client of `version` does not mean by it."""
    return {
        key: value
        for key, value in _limits(sent, version).items()
        if version >= (1, 40) or key.lower() != "pidslimit"
    }


def _limits(sent: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """A HostConfig without the kernel memory that a client of `version` does not mean."""
    other = {"kernelmemory"} if version >= (1, 42) else {"kernelmemorytcp"} if version < (1, 40) else set()
    return {key: value for key, value in sent.items() if key.lower() not in other}


def create_request(body: Mapping[str, Any], version: Version, cgroup_version: int) -> Mapping[str, Any]:
    """A create request of `version` as the newest one would say it. Raises InvalidInput."""
    body = {
        key: _limits(value, version) if key.lower() == "hostconfig" and isinstance(value, dict) else value
        for key, value in _gathered(body).items()
    }
    if version >= (1, 44) or not body:
        return body
    body = fields.decode(body, fields.CREATE)
    names = list((body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {})
    if len(names) > 1:
        raise InvalidInput(f"Container cannot be connected to network endpoints: {', '.join(names)}")
    host = dict(body.get("HostConfig") or {})
    if version < (1, 19) and host.get("CpuShares", 0) > 0:
        host["CpuShares"] = min(max(host["CpuShares"], _CPU_SHARES[0]), _CPU_SHARES[1])
    if version < (1, 25):
        host["AutoRemove"] = False  # its client removes it
    if version < (1, 40):
        host["IpcMode"] = host.get("IpcMode") or "shareable"
        for mount in host.get("Mounts") or ():
            mount.get("BindOptions", {}).pop("NonRecursive", None)
    if version < (1, 41) and cgroup_version == 1:
        host["CgroupnsMode"] = host.get("CgroupnsMode") or "host"
    return {**body, "HostConfig": host}


def _gathered(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """`body` with its settings of the host in HostConfig, as dockerd takes them in any version: before 1.18 they stood beside it.

    Beside a HostConfig that is an object only some of them count, and go behind its own. Raises InvalidInput.
    """
    outer = fields.decode(body, fields.HOST_CONFIG)
    cpuset = next((value for key, value in body.items() if key.lower() == "cpuset" and value is not None), "")
    if not outer and not cpuset:
        return body
    inner = next(
        (value for key, value in body.items() if key.lower() == "hostconfig" and value is not None), None
    )
    if inner is None:
        host: dict[str, Any] = outer
        if not outer:
            return body
    else:
        host = fields.decode(inner, fields.HOST_CONFIG, "HostConfig")
        host |= {key: outer[key] for key in _MOVED if key in outer and not host.get(key)}
    if cpuset and not host.get("CpusetCpus"):
        host["CpusetCpus"] = fields.text(cpuset, "Cpuset")
    return {**{key: value for key, value in body.items() if key.lower() != "hostconfig"}, "HostConfig": host}


def container(shown: dict[str, Any], config: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """An inspected container as `version` knows it. config: the record's, with the keys that inspect leaves out when empty."""
    if version >= (1, 21):
        return shown
    host = shown["HostConfig"]
    old = {
        **shown["Config"],
        "MacAddress": config["MacAddress"] or "",
        "NetworkDisabled": bool(config["NetworkDisabled"]),
        "ExposedPorts": config["ExposedPorts"],
        "VolumeDriver": host["VolumeDriver"],
    }
    rest = {key: value for key, value in shown.items() if key not in ("Mounts", "Config", "NetworkSettings")}
    network = {key: value for key, value in shown["NetworkSettings"].items() if key != "Networks"}
    if version == (1, 20):
        return {**rest, "Mounts": shown["Mounts"], "Config": old, "NetworkSettings": network}
    old |= {
        "Memory": host["Memory"], "MemorySwap": host["MemorySwap"], "CpuShares": host["CpuShares"],
        "Cpuset": host["CpusetCpus"],
    }  # fmt: skip
    return {
        **rest,
        "Volumes": {point["Destination"]: point["Source"] for point in shown["Mounts"]},
        "VolumesRW": {point["Destination"]: point["RW"] for point in shown["Mounts"]},
        "Config": old,
        "NetworkSettings": network,
    }


def stats(shown: dict[str, Any], version: Version) -> dict[str, Any]:
    """A stats object: before 1.21 the interfaces are summed up."""
    if version >= (1, 21) or "networks" not in shown:
        return shown
    interfaces = shown["networks"].values()
    rest = {key: value for key, value in shown.items() if key != "networks"}
    return {**rest, "network": {key: sum(one[key] for one in interfaces) for key in _COUNTERS}}
