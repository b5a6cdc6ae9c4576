"""Subnets that nobody else has, addresses that come round last."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput, Unavailable
from ketchd.network.addresses import (
    DEFAULT_POOLS,
    Pool,
    check_address,
    choose_address,
    choose_subnet,
    first_usable,
    mac_of,
    overlapping,
    parse_pool,
)

networks = st.builds(
    lambda number, prefix: IPv4Network((number, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
subnets = st.builds(
    lambda number, prefix: IPv4Network((number, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(24, 30),
)


EVERY = [subnet for pool in DEFAULT_POOLS for subnet in pool.base.subnets(new_prefix=pool.size)]


def test_pools_are_dockers() -> None:
    pools = [str(subnet) for subnet in EVERY]
    assert pools[0] == "172.17.0.0/16" and pools[14] == "172.31.0.0/16"
    assert pools[15] == "192.168.0.0/20" and pools[-1] == "192.168.240.0/20" and len(pools) == 31


@given(st.lists(networks, max_size=12))
def test_a_chosen_subnet_touches_nothing(taken: list[IPv4Network]) -> None:
    """Whatever the routing table: the subnet is free, or there is none and every pool is touched."""
    try:
        chosen = choose_subnet(taken)
    except Unavailable:
        assert all(overlapping(pool, taken) for pool in EVERY)
        return
    assert overlapping(chosen, taken) is None and chosen in EVERY


@given(
    st.lists(
        st.builds(
            lambda low, prefix: IPv4Network((0x0A000000 + low, prefix), strict=False),
            st.integers(0, 4095),
            st.integers(18, 32),
        )
    )
)
def test_the_first_free_subnet_is_chosen(taken: list[IPv4Network]) -> None:
    """As if each were looked at in turn."""
    pool = Pool(IPv4Network("10.0.0.0/20"), 26)
    free = (one for one in pool.base.subnets(new_prefix=26) if overlapping(one, taken) is None)
    expected = next(free, None)
    try:
        assert choose_subnet(taken, [pool]) == expected
    except Unavailable:
        assert expected is None


def test_a_wide_route_is_passed_at_once() -> None:
    """Four million subnets lie behind it: looked at one by one they would keep the network thread from its work for seconds."""
    pool = Pool(IPv4Network("10.0.0.0/8"), 30)
    assert str(choose_subnet([IPv4Network("10.0.0.0/9")], [pool])) == "10.128.0.0/30"
    with pytest.raises(Unavailable):
        choose_subnet([IPv4Network("10.0.0.0/8")], [pool])


def test_a_default_route_is_not_in_the_way() -> None:
    assert str(choose_subnet([IPv4Network("0.0.0.0/0"), IPv4Network("172.17.5.0/24")])) == "172.18.0.0/16"


def test_pools_of_ones_own() -> None:
    """Subnets of the size that is asked for, one pool after the other; a pool without room for one is none."""
    pools = [parse_pool("10.9.0.7/25", 26), parse_pool("10.8.0.0/24", 24)]
    assert pools[0] == Pool(IPv4Network("10.9.0.0/25"), 26)
    taken: list[IPv4Network] = []
    for expected in ("10.9.0.0/26", "10.9.0.64/26", "10.8.0.0/24"):
        taken.append(choose_subnet(taken, pools))
        assert str(taken[-1]) == expected
    with pytest.raises(Unavailable):
        choose_subnet(taken, pools)
    for base, size in (("10.0.0.0/16", 8), ("10.0.0.0/16", 31), ("fd00::/64", 80), ("x", 24)):
        with pytest.raises(InvalidInput, match="invalid default address pool"):
            parse_pool(base, size)


@given(subnets, st.data())
def test_addresses_are_free_and_of_the_subnet(subnet: IPv4Network, data: st.DataObject) -> None:
    """A taken address is never given; with every one taken there is a fault, not a wrong address."""
    hosts = [int(one) for one in subnet.hosts()]
    taken = data.draw(st.sets(st.sampled_from(hosts)))
    after = data.draw(st.integers(0, 2**32 - 1))
    try:
        chosen = choose_address(subnet, taken, after)
    except Unavailable:
        assert taken == set(hosts)
        return
    assert int(chosen) in hosts and int(chosen) not in taken


@given(subnets)
def test_what_is_given_back_is_given_last(subnet: IPv4Network) -> None:
    """Taking and giving back goes through the whole subnet before an address returns."""
    size = len(list(subnet.hosts()))
    last, seen = 0, []
    for _ in range(size):
        chosen = choose_address(subnet, set(), last)
        last = int(chosen)
        seen.append(chosen)
    assert len(set(seen)) == size
    assert choose_address(subnet, set(), last) == seen[0]


def test_a_range_narrows_the_choice() -> None:
    subnet, span = IPv4Network("10.0.0.0/24"), IPv4Network("10.0.0.128/30")
    found = {str(choose_address(subnet, set(), after, span)) for after in range(2**8)}
    assert found == {"10.0.0.128"}
    taken = {int(IPv4Address(f"10.0.0.{n}")) for n in range(128, 132)}
    with pytest.raises(Unavailable, match="no available IPv4 addresses"):
        choose_address(subnet, taken, 0, span)


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        ("10.0.1.1", InvalidInput), ("10.0.0.0", Unavailable), ("10.0.0.255", Unavailable), ("fd00::1", InvalidInput),
        ("10.0.0.5", Unavailable), ("nonsense", InvalidInput),
    ],
)  # fmt: skip
def test_addresses_that_cannot_be_asked_for(wanted: str, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        check_address(IPv4Network("10.0.0.0/24"), {int(IPv4Address("10.0.0.5"))}, wanted)


def test_mac_follows_the_address() -> None:
    assert mac_of(IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"
    assert first_usable(IPv4Network("172.17.0.0/16")) == IPv4Address("172.17.0.1")
