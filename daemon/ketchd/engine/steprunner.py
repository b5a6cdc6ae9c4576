"""RUN of a build: one contained process over an overlay of the step's layers, its output streamed, nothing recorded.

The same shim, sandbox and network as a container's; it is no container, so `ps` does not list it. A step whose ketchd dies
ends with it: its shim is told to, and the next start sweeps its directories.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure
from ketch_wire.launch import LaunchPlan, LayerMount, LogPlan, MountPlan, ProcessPlan, RootPlan
from ketchd.containers import launching
from ketchd.containers.record import new_id
from ketchd.engine import networks as networking
from ketchd.engine.outputs import reading_output
from ketchd.engine.rooms import Rooms
from ketchd.engine.start import running_donor, shared_user_namespace
from ketchd.model.digest import Digest
from ketchd.network import hostfiles
from ketchd.network.definition import BRIDGE
from ketchd.network.files import (
    EMBEDDED_SERVER,
    render_embedded_resolv_conf,
    render_hostname,
    render_hosts,
    render_resolv_conf,
)
from ketchd.sandbox import defaults, seccomp

# In the step's run directory: where the sweep of a killed step finds its cgroup.
CGROUP_PARENT = "cgroup-parent"
Output = Callable[[int, bytes], Awaitable[None]]


class StepRunner:
    """Runs build steps. Satisfies `ketchd.build`'s StepRunner protocol."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def run(
        self,
        *,
        root_layers: Sequence[Digest],
        upper: Path,
        work: Path,
        process: ProcessPlan,
        network: str,
        extra_hosts: Sequence[str],
        output: Output,
        mounts: Sequence[MountPlan] = (),
        resources: Mapping[str, Any] | None = None,
        shm_size: int = 0,
    ) -> int:
        """Run `process` and return its exit code; `output(1|2, bytes)` gets what it writes, and is waited for.

        network: HostConfig.NetworkMode. resources: HostConfig's names (Memory, CgroupParent …). shm_size: bytes, 0 for the
        daemon's default.

        Raises LaunchFailed; NotFound (network, container), Conflict (a container that does not run). Cancelled: the process is killed, its network released.
        """
        rooms = self._rooms
        step_id = new_id()
        donor = None
        if network.startswith("container:"):
            donor = running_donor(rooms, network, "network", joining=step_id)
        elif network in ("", "default"):
            network = BRIDGE
        elif network not in (BRIDGE, "none", "host"):
            network = networking.find(rooms, network).name
        state_dir = rooms.data_root / "stage" / f"step-{step_id}"
        run_dir = rooms.run_dir(step_id)
        async with AsyncExitStack() as undo:
            undo.callback(shutil.rmtree, state_dir, True)
            state_dir.mkdir(parents=True, mode=0o710)
            undo.callback(shutil.rmtree, run_dir, True)
            run_dir.mkdir(parents=True, mode=0o700)
            undo.push_async_callback(rooms.networks.release, step_id)
            hostname = donor.config["Hostname"] if donor else step_id[:12]
            lease = None
            if (
                donor is None
                and network not in ("none", "host")
                and (network != BRIDGE or rooms.networks.has_default)
            ):
                lease = rooms.networks.reserve(
                    step_id, network, names=[hostname], upstream=rooms.defaults.dns
                )
            files = {
                name: (rooms.container_dir(donor.id) / name).read_bytes().decode(errors="surrogateescape") for name in networking.NETWORK_FILES
            } if donor else {
                "hosts": render_hosts(
                    hostname=hostname, domainname="", address=lease.address if lease else None,
                    extra=[(name, address) for name, _, address in (item.partition(":") for item in extra_hosts)],
                    host_file=hostfiles.for_containers("/etc/hosts") if network == "host" else None,
                ),
                "hostname": render_hostname(hostname),
                "resolv.conf": render_embedded_resolv_conf(
                    hostfiles.for_containers("/etc/resolv.conf"), server=EMBEDDED_SERVER,
                    search=rooms.defaults.dns_search, options=rooms.defaults.dns_options,
                ) if lease and lease.has_names else render_resolv_conf(
                    hostfiles.for_containers("/etc/resolv.conf"), dns=rooms.defaults.dns,
                    search=rooms.defaults.dns_search, options=rooms.defaults.dns_options,
                    keep_loopback=network == "host",
                ),
            }  # fmt: skip
            for name, content in files.items():
                (state_dir / name).write_bytes(content.encode(errors="surrogateescape"))
            init = await rooms.layers.compose(list(root_layers))
            undo.callback(rooms.cgroups.remove, step_id)
            limits = resources or {}
            parent = limits.get("CgroupParent") or rooms.cgroup_parent
            (run_dir / CGROUP_PARENT).write_text(parent)
            cgroup = rooms.cgroups.plan(step_id, parent, limits)
            plan = LaunchPlan(
                id=step_id,
                root=RootPlan(
                    (LayerMount("directory", str(init)), *rooms.layers.mounts(list(root_layers))), str(upper), str(work)
                ),
                process=replace(
                    process, capabilities=defaults.DEFAULT_CAPABILITIES,
                    seccomp=seccomp.program(rooms.defaults.seccomp, defaults.DEFAULT_CAPABILITIES),
                    no_new_privileges=rooms.defaults.no_new_privileges,
                    rlimits={**rooms.defaults.ulimits, **process.rlimits},
                ),
                run_dir=str(run_dir),
                state_dir=str(state_dir),
                namespaces={kind: "new" for kind in ("mount", "pid", "uts", "ipc", "cgroup")}
                | {"network": "host" if network == "host" else "new"}
                | ({kind: f"pid:{donor.pid}" for kind in ("network", "uts")} if donor else {}),
                hostname=hostname,
                mounts=(
                    *defaults.default_mounts(
                        privileged=False, shm_size=shm_size or rooms.defaults.shm_size, ipc_mode="private",
                        cgroup_version=rooms.cgroups.version, shm_source="", cgroup_join=cgroup.join,
                    ),
                    *(
                        MountPlan(f"/etc/{name}", "bind", str(state_dir / name), ("bind", "rprivate"))
                        for name in ("resolv.conf", "hostname", "hosts")
                    ),
                    *mounts,
                ),
                devices=defaults.DEFAULT_DEVICES,
                masked_paths=defaults.MASKED_PATHS,
                readonly_paths=defaults.READONLY_PATHS,
                cgroup=cgroup,
                log=LogPlan(driver="none"),
                netlink=tuple(rooms.networks.netlink_messages(lease)),
                transient=True,
            )  # fmt: skip
            if network != "host":
                owner = 0
                if donor and rooms.id_map is not None:
                    owner = shared_user_namespace(rooms.id_map, {"network": donor.pid})
                plan = launching.remap(plan, rooms.id_map, rooms.data_root, owner)
            return await self._carry_out(plan, lease, output)

    async def _carry_out(self, plan: LaunchPlan, lease: object, output: Output) -> int:
        rooms = self._rooms
        link = None

        async def on_pid(pid: int, network_pid: int) -> None:
            if lease is not None:
                await rooms.networks.connect(lease, network_pid)  # type: ignore[arg-type]

        try:
            async with reading_output(partial(_read_frames, output=output), multiplexed=True) as (
                stream,
                reading,
            ):
                link = await rooms.shims.start(plan, attachments=[stream], port_fds=[], on_pid=on_pid)
                ended = await link.wait()
                link = None
                await reading
                if ended is None:
                    raise EngineFailure("the shim of the build step is gone, and with it the exit code")
                return ended.code
        finally:
            if link is not None:
                await asyncio.shield(_kill(link))


async def _kill(link: object) -> None:
    await link.signal(signal.SIGKILL)  # type: ignore[attr-defined]
    await link.wait()  # type: ignore[attr-defined]


async def _read_frames(stream: socket.socket, output: Output) -> None:
    """stdcopy frames until the shim closes its end."""
    loop = asyncio.get_running_loop()
    rest = bytearray()
    while received := await loop.sock_recv(stream, 262144):
        rest += received
        while len(rest) >= 8:
            length = int.from_bytes(rest[4:8], "big")
            if len(rest) < 8 + length:
                break
            await output(rest[0], bytes(rest[8 : 8 + length]))
            del rest[: 8 + length]
