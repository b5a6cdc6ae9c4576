"""What the daemon's own settings give to a container that says nothing of its own. Pure.

Some are written into its HostConfig at create (`complete`), as dockerd does, and stay when the setting changes; the rest are
looked up at each start and exec. Source: moby daemon/daemon_unix.go adaptContainerSettings, oci_linux.go, container_operations.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SHM_SIZE = 64 * 1024 * 1024
Ulimits = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class DaemonDefaults:
    """shm_size: bytes. ulimits: (soft, hard) by name. ipc_mode, cgroupns_mode: "" for what the host offers.

    seccomp: "" for the built-in policy, `unconfined`, or a profile's text. init: whether containers get one; not beside
    processes of another pid namespace. runtime: a name for ketch itself. host_gateways: addresses that `host-gateway` is.
    """

    init: bool = False
    shm_size: int = SHM_SIZE
    dns: Sequence[str] = ()
    dns_options: Sequence[str] = ()
    dns_search: Sequence[str] = ()
    ulimits: Ulimits = field(default_factory=dict)
    ipc_mode: str = ""
    cgroupns_mode: str = ""
    no_new_privileges: bool = False
    seccomp: str = ""
    runtime: str = "runc"
    host_gateways: Sequence[str] = ()

    def complete(self, host: dict[str, Any], *, cgroup_version: int) -> None:
        """Fill the gaps of a HostConfig that are settled at create."""
        host["IpcMode"] = host["IpcMode"] or self.ipc_mode or "private"
        host["CgroupnsMode"] = (
            host["CgroupnsMode"] or self.cgroupns_mode or ("private" if cgroup_version == 2 else "host")
        )
        host["ShmSize"] = host["ShmSize"] or self.shm_size
        host["Runtime"] = host["Runtime"] or self.runtime
        mine = {one["Name"] for one in host["Ulimits"] or ()}
        more = [
            {"Name": name, "Hard": hard, "Soft": soft}
            for name, (soft, hard) in self.ulimits.items()
            if name not in mine
        ]
        if more:
            host["Ulimits"] = [*(host["Ulimits"] or ()), *more]

    def wants_init(self, host: Mapping[str, Any]) -> bool:
        """Whether the container's first process is our init."""
        asked = self.init if host["Init"] is None else host["Init"]
        return bool(asked) and not host["PidMode"]

    def resolving(self, host: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """(servers, search domains, options) of its resolv.conf, each the container's own or else the daemon's."""
        return (
            host["Dns"] or self.dns,
            host["DnsSearch"] or self.dns_search,
            host["DnsOptions"] or self.dns_options,
        )


BUILT_IN = DaemonDefaults()
