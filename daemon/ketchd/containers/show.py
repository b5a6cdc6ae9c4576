"""A container as inspect and list show it. Pure: time is passed in. Source: Engine API 1.50, ContainerInspect and ContainerList."""

from __future__ import annotations

import shlex
from typing import Any

from ketchd.containers import endpoints
from ketchd.containers.health import status_words
from ketchd.containers.lifecycle import State
from ketchd.containers.mountpoints import MountPoint, render
from ketchd.containers.record import ContainerRecord
from ketchd.containers.shapes import shown
from ketchd.model.times import ZERO_TIME, rfc3339

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def human_duration(seconds: float) -> str:
    """Docker's words: `Less than a second`, `5 seconds`, `About a minute`, `3 weeks`."""
    whole = int(seconds)
    for limit, text in (
        (1, "Less than a second"), (2, "1 second"), (_MINUTE, f"{whole} seconds"), (2 * _MINUTE, "About a minute"),
        (_HOUR, f"{whole // _MINUTE} minutes"), (2 * _HOUR - _HOUR // 2, "About an hour"),
        (2 * _DAY, f"{round(whole / _HOUR)} hours"), (14 * _DAY, f"{whole // _DAY} days"),
        (60 * _DAY, f"{whole // (7 * _DAY)} weeks"), (730 * _DAY, f"{whole // (30 * _DAY)} months"),
    ):  # fmt: skip
        if whole < limit:
            return text
    return f"{whole // (365 * _DAY)} years"


def status_text(record: ContainerRecord, now_ns: int) -> str:
    """`Up 5 seconds`, `Exited (0) 3 minutes ago` …"""
    state = record.shown_state
    code = 255 if record.exit_code is None else record.exit_code
    if state in (State.RUNNING, State.PAUSED):
        text = f"Up {human_duration((now_ns - record.started_ns) / 1e9)}"
        return text + (" (Paused)" if state is State.PAUSED else status_words(record.health))
    if state is State.RESTARTING:
        return f"Restarting ({code}) {human_duration((now_ns - record.finished_ns) / 1e9)} ago"
    if state is State.REMOVING:
        return "Removal In Progress"
    if state is State.DEAD:
        return "Dead"
    if state is State.CREATED or not record.finished_ns:
        return "Created"
    return f"Exited ({code}) {human_duration((now_ns - record.finished_ns) / 1e9)} ago"


def inspect_state(record: ContainerRecord) -> dict[str, Any]:
    """The State object."""
    state = record.shown_state
    health = {} if record.health is None else {"Health": record.health}
    return {
        "Status": state.value,
        "Running": record.is_running,
        "Paused": state is State.PAUSED,
        "Restarting": state is State.RESTARTING,
        "OOMKilled": record.oom_killed,
        "Dead": state is State.DEAD,
        "Pid": record.pid,
        "ExitCode": (0 if record.has_process else 255) if record.exit_code is None else record.exit_code,
        "Error": record.error,
        "StartedAt": rfc3339(record.started_ns) if record.started_ns else ZERO_TIME,
        "FinishedAt": rfc3339(record.finished_ns) if record.finished_ns else ZERO_TIME,
        **health,
    }


def _endpoints(record: ContainerRecord, network_ids: dict[str, str]) -> dict[str, Any]:
    """Network name -> endpoint, for every network the container is on or wants to be on. network_ids: name -> id."""
    stored = [record.endpoint, *record.endpoints] if record.has_process and record.endpoint else []
    leases = {one["network_id"]: one for one in stored}
    names = {network_id: name for name, network_id in network_ids.items()}
    shown: dict[str, Any] = {}
    for key, settings in record.networking.items():
        network_id = network_ids.get(key) or next((one for one in names if one.startswith(key)), "")
        name = names.get(network_id, key)
        lease = leases.get(network_id)
        is_user_defined = name not in ("bridge", "host", "none")
        aliases = settings["Aliases"] or ()
        known_by = endpoints.dns_names(record.name, record.id, record.config["Hostname"], aliases)
        shown[name] = endpoints.show(settings, lease, network_id, known_by if is_user_defined else ())
    return shown


def port_map(record: ContainerRecord) -> dict[str, Any]:
    """NetworkSettings.Ports: null for exposed but unpublished ones, {} when it does not run or nothing outside reaches it."""
    endpoints = [] if record.endpoint is None else [record.endpoint, *record.endpoints]
    if not record.has_process or not any(one["default_route"] for one in endpoints):
        return {}
    ports: dict[str, Any] = dict.fromkeys(record.config["ExposedPorts"] or {})
    for one in record.published:
        key = f"{one['container_port']}/{one['proto']}"
        ports[key] = [*(ports.get(key) or []), {"HostIp": one["host_ip"], "HostPort": str(one["host_port"])}]
    return ports


def network_settings(record: ContainerRecord, network_ids: dict[str, str]) -> dict[str, Any]:
    """The NetworkSettings object. network_ids: name -> id."""
    networks = _endpoints(record, network_ids)
    first = networks.get("bridge", {})  # the fields of old belong to the default network, as in dockerd
    return {
        "Bridge": "", "SandboxID": record.id if record.has_process else "",
        "SandboxKey": f"/proc/{record.pid}/ns/net" if record.has_process else "",
        "Ports": port_map(record), "HairpinMode": False, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None, "SecondaryIPv6Addresses": None, "EndpointID": first.get("EndpointID", ""),
        "Gateway": first.get("Gateway", ""), "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
        "IPAddress": first.get("IPAddress", ""), "IPPrefixLen": first.get("IPPrefixLen", 0), "IPv6Gateway": "",
        "MacAddress": first.get("MacAddress", ""), "Networks": networks,
    }  # fmt: skip


def inspect(
    record: ContainerRecord,
    *,
    container_dir: str,
    driver: str,
    network_ids: dict[str, str],
    exec_ids: list[str],
) -> dict[str, Any]:
    """The whole object."""
    points = [MountPoint.from_record(stored) for stored in record.mounts]
    return {
        "Id": record.id,
        "Created": rfc3339(record.created_ns),
        "Path": record.path,
        "Args": record.args,
        "State": inspect_state(record),
        "Image": record.image_id,
        "ResolvConfPath": f"{container_dir}/resolv.conf",
        "HostnamePath": f"{container_dir}/hostname",
        "HostsPath": f"{container_dir}/hosts",
        "LogPath": f"{container_dir}/{record.id}-json.log"
        if record.host_config["LogConfig"]["Type"] in ("json-file", "")
        else "",
        "Name": "/" + record.name,
        "RestartCount": record.restart_count,
        "Driver": driver,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": exec_ids or None,
        "HostConfig": shown(record.host_config),
        "GraphDriver": {
            "Data": {"UpperDir": f"{container_dir}/upper", "WorkDir": f"{container_dir}/work"},
            "Name": driver,
        },
        "Mounts": [render(p) for p in points if p.destination not in (record.host_config["Tmpfs"] or {})],
        "Config": {**shown(record.config), "Env": record.config["Env"] or None},
        "NetworkSettings": network_settings(record, network_ids),
    }


def add_short_id_to_aliases(shown: dict[str, Any]) -> None:
    """Before API 1.45 the aliases on user-defined networks end in the short id and the host name. Source: the API's history."""
    for name, endpoint in shown["NetworkSettings"]["Networks"].items():
        if name not in ("bridge", "host", "none"):
            names = [*(endpoint["Aliases"] or ()), shown["Id"][:12], shown["Config"]["Hostname"]]
            endpoint["Aliases"] = list(dict.fromkeys(names))


def summary(
    record: ContainerRecord, *, now_ns: int, network_ids: dict[str, str], image_shown: str
) -> dict[str, Any]:
    """One row of the list."""
    ports: list[dict[str, Any]] = []
    for key, bindings in port_map(record).items():
        number, _, proto = key.partition("/")
        for one in bindings or [None]:
            port: dict[str, Any] = {"IP": one["HostIp"]} if one else {}
            port["PrivatePort"] = int(number)
            if one:
                port["PublicPort"] = int(one["HostPort"])
            ports.append({**port, "Type": proto})
    points = [MountPoint.from_record(stored) for stored in record.mounts]
    return {
        "Id": record.id,
        "Names": ["/" + record.name],
        "Image": image_shown,
        "ImageID": record.image_id,
        "Command": shlex.join([record.path, *record.args]) if record.args else record.path,
        "Created": record.created_ns // 1_000_000_000,
        "Ports": ports,
        "Labels": record.config["Labels"] or {},
        "State": record.shown_state.value,
        "Status": status_text(record, now_ns),
        "HostConfig": {"NetworkMode": record.host_config["NetworkMode"]},
        "NetworkSettings": {"Networks": network_settings(record, network_ids)["Networks"]},
        "Mounts": [render(p) for p in points if p.destination not in (record.host_config["Tmpfs"] or {})],
    }
