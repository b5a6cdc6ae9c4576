"""Who a name is: what the embedded DNS server knows of containers, and whom it tells. Pure.

A container is found by its name, its aliases, its short id and its host name by those who share a user-defined network with
it, and by `NAME.NETWORK`; by the alias of a link, whoever has the link. Source: moby libnetwork/resolver.go, sandbox_dns_unix.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address

from ketchd.network.leases import EndpointLease

TTL_SECONDS = 600


class NameTable:
    """The endpoints of every user-defined network, as questions need them. Made anew when an endpoint comes or goes."""

    def __init__(self, leases: Iterable[EndpointLease]) -> None:
        self._askers: dict[tuple[str, str], str] = {}
        self._networks: dict[str, list[EndpointLease]] = {}
        self._addresses: dict[tuple[str, str], list[str]] = {}
        self._owners: dict[tuple[str, str], EndpointLease] = {}
        for lease in leases:
            self._networks.setdefault(lease.container_id, []).append(lease)
            if not lease.has_names:
                continue
            self._askers[lease.network_id, lease.address] = lease.container_id
            self._owners[lease.network_id, lease.address] = lease
            for name in {one.lower() for one in lease.names}:
                self._addresses.setdefault((lease.network_id, name), []).append(lease.address)
        for held in self._networks.values():
            held.sort(key=lambda lease: lease.position)

    def asker(self, network_id: str, address: str) -> str | None:
        """The container that asks from `address` on the network; None for a stranger."""
        return self._askers.get((network_id, address))

    def addresses(self, container_id: str, name: str) -> list[str] | None:
        """Whom the container means by `name`; None when nobody of its networks is called that."""
        wanted = name.lower().rstrip(".")
        held = self._networks.get(container_id, [])
        for lease in held:
            target = _links(lease).get(wanted, "")
            if found := self._addresses.get((lease.network_id, target)):
                return list(found)
        for lease in held:
            if wanted in _links(lease):
                continue
            candidates = [wanted]
            suffix = "." + lease.network_name.lower()
            if wanted.endswith(suffix):
                candidates.append(wanted.removesuffix(suffix))
            for candidate in candidates:
                if found := self._addresses.get((lease.network_id, candidate)):
                    return list(found)
        return None

    def name_of(self, container_id: str, reverse: str) -> str | None:
        """The name behind `4.3.2.1.in-addr.arpa`, as `NAME.NETWORK`; None when it is nobody of the container's networks."""
        labels = reverse.lower().rstrip(".").removesuffix(".in-addr.arpa").split(".")
        try:
            address = str(IPv4Address(".".join(reversed(labels))))
        except AddressValueError:
            return None
        for lease in self._networks.get(container_id, []):
            if (owner := self._owners.get((lease.network_id, address))) is not None and owner.names:
                return f"{owner.names[0]}.{owner.network_name}"
        return None

    def may_ask_outside(self, container_id: str) -> bool:
        """Whether one of its networks leads anywhere: questions of a container on internal ones alone stay inside."""
        return any(not lease.internal for lease in self._networks.get(container_id, []))

    def servers(self, container_id: str) -> list[str]:
        """The servers that the container asked for (`--dns`); empty for the host's."""
        return next(
            (list(lease.upstream) for lease in self._networks.get(container_id, []) if lease.upstream), []
        )


def _links(lease: EndpointLease) -> dict[str, str]:
    """Alias -> name."""
    found = (one.lower().partition(":") for one in lease.links)
    return {alias: name for name, _, alias in found}
