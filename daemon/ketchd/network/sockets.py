"""Host ports held by real sockets: what another program has is `address already in use` here, and ours is there.

A socket is handed to the container's shim, so that its port stays held while ketchd is dead. Nothing is ever accepted on it:
nft translates the connections before they get here. An IPv6 one is bound and does not listen: without a translation a client
must be refused at once, not left waiting.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure
from ketchd.network import ports
from ketchd.network.ports import PortTable, Wanted

_REASONS = {
    errno.EADDRINUSE: "address already in use",
    errno.EADDRNOTAVAIL: "cannot assign requested address",
    errno.EACCES: "permission denied",
    errno.EPROTONOSUPPORT: "protocol not supported",
}


@dataclass(slots=True)
class ReservedPort:
    """One binding of a published port, and the socket that holds it. Close the socket once the shim has its copy."""

    socket: socket.socket
    proto: str
    host_ip: str
    host_port: int
    container_port: int

    def to_record(self) -> dict[str, Any]:
        """For the container's record."""
        return {
            "proto": self.proto,
            "host_ip": self.host_ip,
            "host_port": self.host_port,
            "container_port": self.container_port,
        }


def bind(proto: str, host_ip: str, port: int) -> socket.socket:
    """Hold one port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
    kind, number = {
        "tcp": (socket.SOCK_STREAM, 0),
        "udp": (socket.SOCK_DGRAM, 0),
        "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    }[proto]
    holder = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    try:
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            # A connection that ended a moment ago does not hold the port; a listener does.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host_ip, port))
        if kind == socket.SOCK_STREAM and family == socket.AF_INET:
            holder.listen(1)
    except BaseException:
        holder.close()
        raise
    return holder


def reserve(
    wanted: Wanted, table: PortTable, container_id: str, ephemeral: tuple[int, int], after: int,
    explain: Callable[[str], str],
) -> list[ReservedPort]:  # fmt: skip
    """Hold one port for `wanted`, on each of its addresses, and note it in `table`.

    explain: makes the whole sentence of why it failed. Raises EngineFailure; nothing stays held then.
    """
    fixed = wanted.low != 0 and wanted.low == wanted.high
    why = ports.all_allocated(wanted.host_ips[0])
    for port in ports.candidates(wanted, ephemeral, after):
        taken = next((ip for ip in wanted.host_ips if not table.is_free(wanted.proto, ip, port)), None)
        if taken is not None:
            if fixed:
                why = ports.already_allocated(taken, port)
            continue
        held: list[ReservedPort] = []
        for host_ip in wanted.host_ips:
            try:
                holder = bind(wanted.proto, host_ip, port)
            except OSError as error:
                for one in held:
                    one.socket.close()
                held = []
                reason = _REASONS.get(error.errno or 0, error.strerror or "failed")
                if fixed or error.errno != errno.EADDRINUSE:
                    raise EngineFailure(
                        explain(ports.cannot_bind(wanted.proto, host_ip, port, reason))
                    ) from error
                break
            held.append(ReservedPort(holder, wanted.proto, host_ip, port, wanted.container_port))
        if held:
            for one in held:
                table.hold(one.proto, one.host_ip, one.host_port, container_id)
            return held
    raise EngineFailure(explain(why))


def ephemeral_range() -> tuple[int, int]:
    """net.ipv4.ip_local_port_range."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999


def host_has_ipv6() -> bool:
    """Whether `::` can be bound here."""
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
        return True
    except OSError:
        return False
