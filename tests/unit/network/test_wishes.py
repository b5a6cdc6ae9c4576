"""Requests to create a network: dockerd's defaults, options and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import Fault, Forbidden, InvalidInput, NotFound, Unsupported
from ketchd.network.definition import Network, show
from ketchd.network.wishes import parse


def wish(**body: Any) -> Network:
    return parse({"Name": "shop", **body}, network_id="ab" * 32, created_ns=0, default_mtu=1500)


def ipam(**config: Any) -> dict[str, Any]:
    return {"Driver": "default", "Options": {}, "Config": [config]}


def test_defaults() -> None:
    """What the CLI sends for `network create shop`."""
    made = wish(
        Driver="bridge", Scope="", IPAM={"Driver": "default", "Options": {}, "Config": []}, Options={}
    )
    assert (made.name, made.driver, made.link, made.subnet, made.mtu) == (
        "shop",
        "bridge",
        "br-abababababab",
        "",
        1500,
    )
    assert made.icc and made.masquerade and not made.internal and made.has_names and not made.chosen


def test_addresses_and_options() -> None:
    made = wish(
        IPAM=ipam(Subnet="10.5.0.0/16", IPRange="10.5.8.0/24", AuxiliaryAddresses={"router": "10.5.0.9"}),
        Options={
            "com.docker.network.bridge.name": "br-mine", "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
        },
        Internal=True, Labels={"a": "b"},
    )  # fmt: skip
    assert (made.subnet, made.gateway, made.ip_range, made.chosen) == (
        "10.5.0.0/16",
        "10.5.0.1",
        "10.5.8.0/24",
        True,
    )
    assert (made.link, made.icc, made.mtu, made.host_ip, made.internal) == (
        "br-mine",
        False,
        1400,
        "127.0.0.1",
        True,
    )
    assert Network.from_json(made.to_json()) == made
    shown = show(made, "now")
    assert shown["IPAM"]["Config"] == [
        {"Subnet": "10.5.0.0/16", "IPRange": "10.5.8.0/24", "Gateway": "10.5.0.1", "AuxiliaryAddresses": {"router": "10.5.0.9"}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "fault", "text"),
    [
        ({"Name": "bridge"}, Forbidden, "operation is not permitted on predefined bridge network"),
        ({"Name": " "}, InvalidInput, "network name"),
        ({"Driver": "host"}, Forbidden, 'only one instance of "host" network is allowed'),
        ({"Driver": "overlay"}, Forbidden, "not a swarm manager"),
        ({"Driver": "macvlan"}, NotFound, "could not find plugin macvlan"),
        ({"EnableIPv6": True}, Unsupported, "IPv6"),
        ({"ConfigOnly": True}, Unsupported, "config-only"),
        ({"IPAM": ipam(Subnet="nonsense")}, InvalidInput, "invalid subnet nonsense: invalid CIDR block notation"),
        ({"IPAM": ipam(Subnet="10.0.0.5/8")}, InvalidInput, r"invalid subnet 10.0.0.5/8: it should be 10.0.0.0/8"),
        ({"IPAM": ipam(Subnet="10.0.0.0/8", Gateway="11.0.0.1")}, InvalidInput, "invalid gateway 11.0.0.1"),
        ({"IPAM": ipam(Subnet="10.0.0.0/16", IPRange="10.1.0.0/24")}, InvalidInput, "invalid ip-range"),
        ({"IPAM": ipam(Gateway="11.0.0.1")}, InvalidInput, "a subnet is needed"),
        ({"IPAM": ipam(Subnet="fd00::/64")}, Unsupported, "IPv6"),
        ({"IPAM": ipam(Subnet="10.0.0.0/31")}, InvalidInput, "no room"),
        ({"IPAM": {"Driver": "dhcp"}}, NotFound, "IPAM driver"),
        ({"Options": {"com.docker.network.bridge.name": 'x"; drop'}}, InvalidInput, "invalid bridge name"),
        ({"Options": {"com.docker.network.driver.mtu": "1"}}, InvalidInput, "MTU"),
        ({"Options": {"com.docker.network.driver.mtu": "x"}}, InvalidInput, 'value: x .strconv.Atoi: parsing "x": invalid'),
        ({"Options": {"com.docker.network.bridge.enable_icc": "maybe"}}, InvalidInput, "enable_icc value: maybe .strconv"),
    ],
)  # fmt: skip
def test_refusals(body: dict[str, Any], fault: type[Fault], text: str) -> None:
    with pytest.raises(fault, match=text):
        wish(**body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("mtu", ["67", "65536", "-1500", f"{1500:020}9", "1" * 5000])
def test_an_mtu_that_no_link_has(mtu: str) -> None:
    with pytest.raises(InvalidInput, match=f"^invalid MTU number: {mtu[:20]}$"):
        wish(Options={"com.docker.network.driver.mtu": mtu})


@given(json_values, json_values)
def test_any_addresses_are_taken_or_refused(config: Any, options: Any) -> None:
    """A network or a fault, whatever a client sends."""
    for body in (
        {"IPAM": config}, {"IPAM": {"Config": config}}, {"IPAM": ipam(Subnet=config, Gateway=options)}, {"Options": options},
        {"IPAM": ipam(Subnet="10.0.0.0/8", AuxiliaryAddresses=options)}, {"Labels": config},
    ):  # fmt: skip
        try:
            wish(**body)
        except Fault:
            pass
