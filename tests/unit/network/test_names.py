"""Names of containers: whom one may find, and what the DNS server says."""

from __future__ import annotations

import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketchd.network.leases import EndpointLease
from ketchd.network.names import NameTable
from ketchd.network.resolver import answer


def lease(container: str, network: str, address: str, *names: str, **given: object) -> EndpointLease:
    values = {
        "container_id": container, "network_id": f"id-{network}", "network_name": network, "endpoint_id": container + network,
        "address": address, "prefix": 24, "gateway": "10.0.0.1", "mac": "", "bridge": "br", "has_names": True,
        "names": names or (container,), **given,
    }  # fmt: skip
    return EndpointLease(**values)  # type: ignore[arg-type]


TABLE = NameTable(
    [
        lease("web", "front", "10.0.0.2", "web", "WWW"),
        lease("web", "back", "10.1.0.2", "web", position=1),
        lease("db", "back", "10.1.0.3", "db", "data", upstream=("9.9.9.9",)),
        lease("twin", "back", "10.1.0.4", "twin", "data"),
        lease("vault", "inner", "10.2.0.2", "vault", internal=True),
        lease("long", "back", "10.1.0.5", "l" * 64),
        lease("shop", "back", "10.1.0.6", links=("DB:Store", "twin:db", "gone:x")),
        lease("plain", "bridge", "172.17.0.2", "plain", has_names=False),
    ]
)


@pytest.mark.parametrize(
    ("asker", "name", "expected"),
    [
        ("web", "db", ["10.1.0.3"]), ("web", "DB.", ["10.1.0.3"]), ("web", "db.back", ["10.1.0.3"]),
        ("web", "db.front", None), ("web", "data", ["10.1.0.3", "10.1.0.4"]), ("db", "www", None), ("db", "web", ["10.1.0.2"]),
        ("web", "www", ["10.0.0.2"]), ("web", "vault", None), ("web", "plain", None), ("plain", "web", None),
        ("nobody", "web", None), ("web", "", None),
        ("shop", "store", ["10.1.0.3"]), ("shop", "DB", ["10.1.0.4"]), ("shop", "x", None), ("web", "store", None),
    ],
)  # fmt: skip
def test_whom_a_name_means(asker: str, name: str, expected: list[str] | None) -> None:
    """Those who share a user-defined network, and nobody else."""
    assert TABLE.addresses(asker, name) == expected


def test_strangers_are_nobody() -> None:
    assert TABLE.asker("id-back", "10.1.0.3") == "db" and TABLE.asker("id-front", "10.1.0.3") is None


def test_reverse_and_outside() -> None:
    assert TABLE.name_of("web", "3.0.1.10.in-addr.arpa.") == "db.back"
    assert (
        TABLE.name_of("vault", "3.0.1.10.in-addr.arpa") is None
        and TABLE.name_of("web", "x.in-addr.arpa") is None
    )
    assert TABLE.may_ask_outside("web") and not TABLE.may_ask_outside("vault")
    assert TABLE.servers("db") == ["9.9.9.9"] and TABLE.servers("web") == []


def ask(name: str, kind: str, asker: str) -> tuple[str, list[str]] | None:
    made = answer(dns.message.make_query(name, kind), TABLE, asker)
    if made is None:
        return None
    made = dns.message.from_wire(made.to_wire())
    return dns.rcode.to_text(made.rcode()), sorted(item.to_text() for rrset in made.answer for item in rrset)


def test_answers() -> None:
    """Ours are answered, AAAA with nothing, others' left to others, inside networks stay inside, a name too long for DNS is none."""
    assert ask("db", "A", "web") == ("NOERROR", ["10.1.0.3"])
    assert ask("db", "AAAA", "web") == ("NOERROR", []) and ask("db", "MX", "web") == ("NOERROR", [])
    assert ask("data", "A", "web") == ("NOERROR", ["10.1.0.3", "10.1.0.4"])
    assert ask("example.com", "A", "web") is None
    assert ask("example.com", "A", "vault") == ("NXDOMAIN", [])
    assert ask("3.0.1.10.in-addr.arpa", "PTR", "web") == ("NOERROR", ["db.back."])
    assert ask("5.0.1.10.in-addr.arpa", "PTR", "web") == ("NXDOMAIN", [])


@given(st.text(max_size=60), st.sampled_from(["web", "db", "vault", "nobody"]))
def test_any_name_can_be_asked(name: str, asker: str) -> None:
    """An answer or None, never an exception."""
    TABLE.addresses(asker, name)
    TABLE.name_of(asker, name + ".in-addr.arpa")
