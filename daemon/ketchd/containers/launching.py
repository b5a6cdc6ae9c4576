"""From a container's record to its LaunchPlan: every decision about the sandbox, as data. Pure but for the table of host devices.

Source: Docker Engine's defaults (Engine API HostConfig; runtime-spec config-linux.md).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ketch_wire.faults import InvalidInput
from ketch_wire.launch import (
    CgroupPlan,
    DevicePlan,
    LaunchPlan,
    LayerMount,
    MountPlan,
    ProcessPlan,
    RootPlan,
)
from ketchd.containers import logdrivers
from ketchd.containers.daemondefaults import BUILT_IN, DaemonDefaults
from ketchd.containers.mountpoints import MountPoint
from ketchd.containers.record import ContainerRecord
from ketchd.containers.settings import command_line
from ketchd.containers.shims import ClientStream
from ketchd.containers.subids import IdMap
from ketchd.sandbox import defaults, devices, seccomp

__all__ = ["ClientStream", "exec_process", "plan", "wanted_ports"]

# Its dots become slashes: nothing of it may lead elsewhere.
_SYSCTL = re.compile(r"[a-z0-9_]+([./][a-zA-Z0-9_:@-]+)+")
_CGROUP = "/sys/fs/cgroup"  # one mount on version 2, one a controller on version 1
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def wanted_ports(record: ContainerRecord) -> list[dict[str, Any]]:
    """Port bindings to make: {proto, host_ip, host_port (text, may be "" or a range), container_port}.

    A binding counts only for an exposed port, as in dockerd; PublishAllPorts maps the rest.
    """
    exposed, wanted = record.config["ExposedPorts"] or {}, []
    bindings = record.host_config["PortBindings"]
    for key in exposed:
        number, _, proto = key.partition("/")
        asked = bindings.get(key)
        if not asked and record.host_config["PublishAllPorts"]:
            asked = [{"HostIp": "", "HostPort": ""}]
        for one in asked or []:
            wanted.append(
                {
                    "proto": proto,
                    "host_ip": one["HostIp"],
                    "host_port": one["HostPort"],
                    "container_port": int(number),
                }
            )
    return wanted


def environment(
    record: ContainerRecord, *, tty: bool, extra: Sequence[str] = (), linked: Sequence[str] = ()
) -> tuple[str, ...]:
    """PATH, HOSTNAME and TERM first, what its links tell, then the container's; the last of a name wins, `NAME` alone takes it away."""
    values: dict[str, str | None] = {}
    base = [DEFAULT_PATH, f"HOSTNAME={record.config['Hostname']}", *(["TERM=xterm"] if tty else [])]
    for entry in [*base, *linked, *record.config["Env"], *extra]:
        name, sign, value = entry.partition("=")
        values[name] = value if sign else None
    return tuple(f"{name}={value}" for name, value in values.items() if value is not None)


def check(host: Mapping[str, Any]) -> None:
    """Refuse at the create what a start would refuse. Raises InvalidInput."""
    capabilities(host)
    security(host)
    rlimits(host)
    _sysctls(host)


def capabilities(host: Mapping[str, Any]) -> tuple[str, ...]:
    """The capability set after --privileged, --cap-add and --cap-drop. Raises InvalidInput."""
    for key in ("CapAdd", "CapDrop"):
        for word in host[key] or []:
            name = word.upper().removeprefix("CAP_")
            if name != "ALL" and f"CAP_{name}" not in defaults.ALL_CAPABILITIES:
                raise InvalidInput(f'invalid {key}: unknown capability: "CAP_{name[:40]}"')
    if host["Privileged"]:
        return defaults.ALL_CAPABILITIES
    add = {name.upper().removeprefix("CAP_") for name in host["CapAdd"] or []}
    drop = {name.upper().removeprefix("CAP_") for name in host["CapDrop"] or []}
    chosen = {name.removeprefix("CAP_") for name in defaults.DEFAULT_CAPABILITIES}
    if "ALL" in add:
        chosen = {name.removeprefix("CAP_") for name in defaults.ALL_CAPABILITIES}
    if "ALL" in drop:
        chosen = set()
    chosen = (chosen | (add - {"ALL"})) - (drop - {"ALL"} - (add if "ALL" in drop else set()))
    return tuple(name for name in defaults.ALL_CAPABILITIES if name.removeprefix("CAP_") in chosen)


def security(host: Mapping[str, Any], daemon: DaemonDefaults = BUILT_IN) -> tuple[bool, bytes, bool]:
    """(no new privileges, seccomp program, system paths unconfined) from SecurityOpt. Raises InvalidInput."""
    no_new, unconfined, program_choice = daemon.no_new_privileges, False, "default"
    for option in host["SecurityOpt"] or []:
        name, _, value = (
            option.replace(":", "=", 1).partition("=") if "=" not in option else option.partition("=")
        )
        if name == "no-new-privileges":
            if value not in ("", "true", "false"):
                raise InvalidInput(f'invalid --security-opt 2: "{option}"')
            no_new = value != "false"
        elif name == "seccomp":
            program_choice = value
        elif name == "systempaths" and value == "unconfined":
            unconfined = True
    if program_choice == "unconfined" or (host["Privileged"] and program_choice == "default"):
        return no_new, b"", unconfined or host["Privileged"]
    if program_choice == "default" and daemon.seccomp:
        program_choice = daemon.seccomp
    return no_new, seccomp.program(program_choice, capabilities(host)), unconfined or host["Privileged"]


def rlimits(host: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Ulimits by name. Raises InvalidInput."""
    limits: dict[str, tuple[int, int]] = {}
    for one in host["Ulimits"] or []:
        name, soft, hard = one["Name"], int(one["Soft"]), int(one["Hard"])
        if name not in defaults.RLIMITS:
            raise InvalidInput(f"invalid ulimit type: {name[:60]}")
        if hard != -1 and (soft == -1 or soft > hard):
            raise InvalidInput(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
        limits[name] = (soft, hard)
    return limits


def mount_plans(
    record: ContainerRecord,
    container_dir: Path,
    donor_shm: str,
    cgroup_version: int,
    cgroup_join: tuple[str, ...] = (),
) -> tuple[MountPlan, ...]:
    """Defaults, then the user's by depth, then the three network files unless the user covers them."""
    host = record.host_config
    points = [MountPoint.from_record(stored) for stored in record.mounts]
    covered = {point.destination for point in points}
    plans = [
        plan
        for plan in defaults.default_mounts(
            privileged=host["Privileged"], shm_size=host["ShmSize"], ipc_mode=host["IpcMode"],
            cgroup_version=cgroup_version, shm_source=donor_shm, cgroup_join=cgroup_join,
        )
        if plan.target not in covered and not (_CGROUP in covered and plan.target.startswith(f"{_CGROUP}/"))
    ]  # fmt: skip
    for point in points:
        if point.type == "tmpfs" or point.tmpfs_options:  # a volume of the local driver may be a tmpfs
            plans.append(MountPlan(point.destination, "tmpfs", "tmpfs", point.tmpfs_options))
            continue
        bind = "bind" if point.non_recursive else "rbind"
        options = (bind, point.propagation or "rprivate", *(() if point.rw else ("ro",)))
        plans.append(MountPlan(point.destination, "bind", point.source, options))
    for name in ("resolv.conf", "hostname", "hosts"):
        target = f"/etc/{name}"
        if target not in covered:
            readonly = ("ro",) if host["ReadonlyRootfs"] else ()
            plans.append(
                MountPlan(target, "bind", str(container_dir / name), ("bind", "rprivate", *readonly))
            )
    return tuple(plans)


def namespaces(record: ContainerRecord, donor_pids: Mapping[str, int]) -> dict[str, str]:
    """new, host or pid:N for each kind."""
    host = record.host_config
    chosen = {"mount": "new", "pid": "new", "network": "new", "uts": "new", "ipc": "new", "cgroup": "new"}
    for kind, mode in (
        ("network", host["NetworkMode"]), ("pid", host["PidMode"]), ("ipc", host["IpcMode"]),
        ("uts", host["UTSMode"]), ("cgroup", host["CgroupnsMode"]),
    ):  # fmt: skip
        if mode == "host":
            chosen[kind] = "host"
    for kind, pid in donor_pids.items():
        chosen[kind] = f"pid:{pid}"
        if kind == "network":
            chosen["uts"] = f"pid:{pid}"
    return chosen


def plan(
    record: ContainerRecord,
    *,
    layers: Sequence[LayerMount],
    init_layer: str,
    container_dir: Path,
    state_dir: Path,
    run_dir: Path,
    cgroup: CgroupPlan,
    netlink: tuple[bytes, ...],
    donor_pids: Mapping[str, int],
    has_journal: bool,
    cgroup_version: int,
    daemon: DaemonDefaults = BUILT_IN,
    linked: Sequence[str] = (),
) -> LaunchPlan:
    """The whole plan. Raises InvalidInput for settings that cannot be."""
    config, host = record.config, record.host_config
    no_new, program, unconfined = security(host, daemon)
    donor_shm = f"/proc/{donor_pids['ipc']}/root/dev/shm" if "ipc" in donor_pids else ""
    argv = command_line(config)
    return LaunchPlan(
        id=record.id,
        root=RootPlan(
            layers=(LayerMount("directory", init_layer), *layers),
            upper=str(container_dir / "upper"),
            work=str(container_dir / "work"),
            readonly=host["ReadonlyRootfs"],
        ),
        process=ProcessPlan(
            argv=tuple(argv),
            env=environment(record, tty=config["Tty"], linked=linked),
            cwd=config["WorkingDir"] or "/",
            user=config["User"],
            groups=tuple(host["GroupAdd"] or ()),
            tty=config["Tty"],
            console_size=(min(host["ConsoleSize"][0], 65535), min(host["ConsoleSize"][1], 65535)),
            open_stdin=config["OpenStdin"],
            stdin_once=config["StdinOnce"],
            capabilities=capabilities(host),
            no_new_privileges=no_new,
            seccomp=program,
            rlimits=rlimits(host),
            oom_score_adj=host["OomScoreAdj"],
            init=daemon.wants_init(host),
        ),
        run_dir=str(run_dir),
        state_dir=str(state_dir),
        namespaces=namespaces(record, donor_pids),
        hostname=config["Hostname"],
        domainname=config["Domainname"],
        mounts=mount_plans(record, container_dir, donor_shm, cgroup_version, cgroup.join),
        devices=_devices(host),
        masked_paths=_paths(unconfined, host["MaskedPaths"], defaults.MASKED_PATHS),
        readonly_paths=_paths(unconfined, host["ReadonlyPaths"], defaults.READONLY_PATHS),
        sysctls=_sysctls(host),
        cgroup=cgroup,
        log=logdrivers.plan(record, str(container_dir / f"{record.id}-json.log"), has_journal=has_journal),
        netlink=netlink,
    )


def settle_paths(host: dict[str, Any]) -> None:
    """Fill in the usual masked and read-only paths, as inspect shows them. A privileged container has none."""
    if host["Privileged"]:
        return
    for key, usual in (("MaskedPaths", defaults.MASKED_PATHS), ("ReadonlyPaths", defaults.READONLY_PATHS)):
        if host[key] is None:
            host[key] = list(usual)


def _paths(unconfined: bool, asked: Sequence[str] | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """An empty list is no path at all, as the CLI says `systempaths=unconfined`; null means the usual ones."""
    if unconfined:
        return ()
    return usual if asked is None else tuple(asked)


def keep_private(plan: LaunchPlan, targets: Collection[str]) -> LaunchPlan:
    """`plan` with the user's mounts on `targets` as if they had no propagation."""
    mounts = tuple(
        replace(one, options=tuple("rprivate" if word == "rslave" else word for word in one.options))
        if one.target in targets
        else one
        for one in plan.mounts
    )
    return replace(plan, mounts=mounts) if targets else plan


def remap(plan: LaunchPlan, ids: IdMap | None, data_root: Path, donor_pid: int = 0) -> LaunchPlan:
    """`plan` in a user namespace: what belongs to the engine is shown with shifted ids, what is the host's is not.

    donor_pid: whose user namespace it is, 0 for one of its own. Namespaces can be joined only from the user namespace that owns them.
    """
    if ids is None:
        return plan
    mounts = tuple(
        replace(one, options=(*one.options, "idmap"))
        if one.type == "bind" and Path(one.source).is_relative_to(data_root)
        else one
        for one in plan.mounts
    )
    # The group range of ping is one of ids that the namespace may not have.
    sysctls = {key: value for key, value in plan.sysctls.items() if key != "net.ipv4.ping_group_range"}
    user = {"user": f"pid:{donor_pid}"} if donor_pid else {}
    return replace(
        plan, uid_map=ids.uids, gid_map=ids.gids, mounts=mounts, sysctls=sysctls, namespaces=plan.namespaces | user
    )  # fmt: skip


def check_remap(host: Mapping[str, Any]) -> None:
    """What a user namespace excludes. Raises InvalidInput. Source: moby daemon_unix.go."""
    if host["UsernsMode"] == "host":
        return
    if host["Privileged"]:
        raise InvalidInput(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when "
            "running privileged mode"
        )
    if host["NetworkMode"] == "host":
        raise InvalidInput("cannot share the host's network namespace when user namespaces are enabled")
    if host["PidMode"] == "host":
        raise InvalidInput("cannot share the host PID namespace when user namespaces are enabled")


def _devices(host: Mapping[str, Any]) -> tuple[DevicePlan, ...]:
    if host["Privileged"]:
        return (*defaults.DEFAULT_DEVICES, *devices.all_host_devices())
    asked: list[DevicePlan] = []
    for one in host["Devices"] or []:
        asked += devices.host_devices(one["PathOnHost"], one.get("PathInContainer") or one["PathOnHost"])
    return (*defaults.DEFAULT_DEVICES, *asked)


def _sysctls(host: Mapping[str, Any]) -> dict[str, str]:
    values: dict[str, str] = {}
    if host["NetworkMode"] != "host" and not host["NetworkMode"].startswith("container:"):
        values = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
    for key, value in (host["Sysctls"] or {}).items():
        network = key.startswith("net.") and host["NetworkMode"] != "host"
        ipc = (
            key.startswith(("kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."))
            and host["IpcMode"] != "host"
        )
        if (not network and not ipc) or not _SYSCTL.fullmatch(key):
            raise InvalidInput(f'sysctl "{key[:80]}" is not in a separate kernel namespace')
        values[key] = value
    return values


def exec_process(
    record: ContainerRecord,
    settings: Mapping[str, Any],
    *,
    console_size: tuple[int, int],
    daemon: DaemonDefaults = BUILT_IN,
    linked: Sequence[str] = (),
) -> ProcessPlan:
    """The process of an exec. Raises InvalidInput."""
    host = record.host_config
    no_new, program, _ = security(host, daemon)
    privileged = settings["Privileged"]
    return ProcessPlan(
        argv=tuple(settings["Cmd"]),
        env=environment(record, tty=settings["Tty"], extra=settings["Env"] or (), linked=linked),
        cwd=settings["WorkingDir"] or record.config["WorkingDir"] or "/",
        user=settings["User"] or record.config["User"],
        groups=tuple(host["GroupAdd"] or ()),
        tty=settings["Tty"],
        console_size=console_size,
        open_stdin=settings["AttachStdin"],
        stdin_once=True,
        capabilities=defaults.ALL_CAPABILITIES if privileged else capabilities(host),
        no_new_privileges=no_new and not privileged,
        seccomp=b"" if privileged else program,
        rlimits=rlimits(host),
        oom_score_adj=host["OomScoreAdj"],
    )
