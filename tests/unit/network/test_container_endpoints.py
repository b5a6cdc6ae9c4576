"""Wanted endpoints: which networks, in which order, and the one that leads outside."""

from __future__ import annotations

from typing import Any

import pytest

from ketch_wire.faults import Fault, InvalidInput, Unsupported
from ketchd.containers import endpoints


def test_the_mode_comes_first() -> None:
    """Whatever the order of the request; `default` is the bridge; null settings are settings."""
    made = endpoints.normalise("front", {"back": None, "front": {"aliases": ["a"]}})
    assert list(made) == ["front", "back"] and made["front"]["Aliases"] == ["a"]
    assert list(endpoints.normalise("bridge", {"default": {}})) == ["bridge"]
    assert (
        list(endpoints.normalise("none", {})) == ["none"]
        and endpoints.wanted(endpoints.normalise("none", {})) == []
    )
    assert endpoints.normalise("container:x", {}) == {}


def test_addresses_macs_and_names() -> None:
    made = endpoints.normalise(
        "shop",
        {"shop": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}, "GwPriority": 5}},
        mac="02:00:00:00:00:01",
    )
    (one,) = endpoints.wanted(made)
    assert (one.address, one.mac, one.priority) == ("10.0.0.9", "02:00:00:00:00:01", 5)
    assert endpoints.dns_names("web", "c" * 64, "web", ["www", "web"]) == ["web", "www", "c" * 12]


@pytest.mark.parametrize(
    ("mode", "sent", "fault"),
    [
        ("bridge", {"bridge": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}}, InvalidInput),
        ("bridge", {"bridge": {"Aliases": ["a"]}}, InvalidInput),
        ("host", {"shop": {}}, InvalidInput),
        ("container:x", {"shop": {}}, InvalidInput),
        ("shop", {"shop": {"MacAddress": "nonsense"}}, InvalidInput),
        ("shop", {"shop": {"MacAddress": "02-42:00-00-00-01"}}, InvalidInput),
        ("shop", {"shop": {"Links": [""]}}, InvalidInput),
        ("shop", {"shop": {"Links": ["a:b:c"]}}, InvalidInput),
        ("shop", {"shop": {"IPAMConfig": {"IPv4Address": "nonsense"}}}, InvalidInput),
        ("shop", {"shop": {"IPAMConfig": {"IPv6Address": "fd00::1"}}}, Unsupported),
    ],
)  # fmt: skip
def test_refusals(mode: str, sent: dict[str, Any], fault: type[Fault]) -> None:
    with pytest.raises(fault):
        endpoints.normalise(mode, sent)


@pytest.mark.parametrize("text", ["02:42:AA:bb:00:01", "02-42-aa-bb-00-01", "0242.aabb.0001"])
def test_forms_of_a_mac(text: str) -> None:
    """Every one that Go's net.ParseMAC takes for Ethernet."""
    assert endpoints.check("shop", {"MacAddress": text})["MacAddress"] == "02:42:aa:bb:00:01"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("db:data", ("db", "data")), ("db", ("db", "db")), ("/db:/web/data", ("db", "data"))],
)
def test_links(text: str, expected: tuple[str, str]) -> None:
    """`NAME:ALIAS`, `NAME`, and as inspect shows them."""
    assert endpoints.parse_link(text) == expected
    assert endpoints.of("shop", endpoints.check("shop", {"Links": [text]})).links == (expected,)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], None), ([("a", 0, True)], None), ([("b", 0, False), ("a", 0, False)], 1),
        ([("b", 1, False), ("a", 0, False)], 0), ([("a", 9, True), ("b", 0, False)], 1),
    ],
)  # fmt: skip
def test_who_leads_outside(candidates: list[tuple[str, int, bool]], expected: int | None) -> None:
    """The highest priority, then the first name; an internal network never."""
    assert endpoints.leading(candidates) == expected
