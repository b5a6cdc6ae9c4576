"""Published ports: what was asked becomes one host port, on every address, that nobody else has."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.network import ports, sockets
from ketchd.network.leases import EndpointLease
from ketchd.network.ports import PortTable, Wanted
from ketchd.network.publishing import Publishing
from ketchd.network.sockets import reserve

addresses = st.sampled_from(["0.0.0.0", "127.0.0.1", "10.0.0.1", "::", "::1"])


def binding(host_port: str, host_ip: str = "", proto: str = "tcp", inner: int = 80) -> dict[str, object]:
    return {"proto": proto, "host_ip": host_ip, "host_port": host_port, "container_port": inner}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8080", (8080, 8080)), ("8000-8010", (8000, 8010)), ("0", (0, 0)), ("1-65535", (1, 65535)), ("80-80", (80, 80))],
)  # fmt: skip
def test_ranges(text: str, expected: tuple[int, int]) -> None:
    assert ports.parse_range(text) == expected


@given(st.text(max_size=12))
def test_ranges_of_nonsense_are_refused(text: str) -> None:
    """A range or InvalidInput, nothing else."""
    try:
        low, high = ports.parse_range(text)
    except InvalidInput:
        return
    assert 0 <= low <= high <= 65535


@pytest.mark.parametrize("text", ["90-80", "0-5", "-1", "70000", "80-", "-80", "a", "1-2-3", "８０"])
def test_ranges_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"hostPort"):
        ports.parse_range(text)


@pytest.mark.parametrize(
    ("host_ip", "default_ip", "ipv6", "expected"),
    [
        ("", "", True, ("0.0.0.0", "::")), ("", "", False, ("0.0.0.0",)), ("0.0.0.0", "", True, ("0.0.0.0",)),
        ("127.0.0.1", "10.0.0.1", True, ("127.0.0.1",)), ("", "10.0.0.1", True, ("10.0.0.1",)), ("[::1]", "", True, ("::1",)),
    ],
)  # fmt: skip
def test_addresses_of_a_binding(host_ip: str, default_ip: str, ipv6: bool, expected: tuple[str, ...]) -> None:
    """A blank one means both families where the host has them."""
    wanted = ports.parse(binding("80", host_ip), default_ip=default_ip, has_ipv6=ipv6)
    assert wanted.host_ips == expected


@pytest.mark.parametrize(
    "wrong", [binding("80", "nowhere"), binding("80", proto="icmp"), binding("80", inner=0)]
)
def test_bindings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        ports.parse(wrong, default_ip="", has_ipv6=True)


@given(st.integers(0, 65535))
def test_any_free_port_comes_from_the_ephemeral_range(after: int) -> None:
    """Each of the range once, the one behind the last first."""
    found = list(ports.candidates(Wanted("tcp", ("0.0.0.0",), 0, 0, 80), (40000, 40099), after))
    assert sorted(found) == list(range(40000, 40100))
    if 40000 <= after < 40099:
        assert found[0] == after + 1


@given(addresses, addresses)
def test_two_holders_of_a_port(first: str, second: str) -> None:
    """They may both have it only on two particular addresses, or in two families."""
    table = PortTable()
    table.hold("tcp", first, 80, "one")
    unspecified = {"0.0.0.0", "::"}
    same_family = (":" in first) == (":" in second)
    conflict = same_family and (first == second or first in unspecified or second in unspecified)
    assert table.is_free("tcp", second, 80) is not conflict
    assert table.is_free("udp", second, 80) and table.is_free("tcp", second, 81)
    table.let_go("tcp", first, 80, "another")  # not its own: stays held
    assert table.is_free("tcp", first, 80) is False
    table.let_go("tcp", first, 80, "one")
    table.let_go("tcp", first, 80, "one")
    assert table.is_free("tcp", second, 80)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lease(container_id: str) -> EndpointLease:
    return EndpointLease(
        container_id=container_id, network_id="n", network_name="bridge", endpoint_id=f"{container_id}-endpoint",
        address="172.17.0.2", prefix=16, gateway="172.17.0.1", mac="02:42:ac:11:00:02", bridge="ketch0",
    )  # fmt: skip


def test_dockers_words_for_a_port_of_another_container() -> None:
    publishing, port = Publishing(), free_port()
    held = publishing.reserve(lease("a"), [binding(str(port), "127.0.0.1")], endpoint_name="a", default_ip="")
    try:
        with pytest.raises(EngineFailure) as caught:
            publishing.reserve(
                lease("b"), [binding(str(port), "127.0.0.1")], endpoint_name="b", default_ip=""
            )
        assert caught.value.message.endswith(
            "driver failed programming external connectivity on endpoint b (b-endpoint): "
            f"Bind for 127.0.0.1:{port} failed: port is already allocated"
        )
    finally:
        held[0].socket.close()
    publishing.let_go("a")
    publishing.let_go("a")
    publishing.reserve(lease("b"), [binding(str(port), "127.0.0.1")], endpoint_name="b", default_ip="")[
        0
    ].socket.close()


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_dockers_words_for_a_port_of_the_host(proto: str) -> None:
    """Another program's port is in use, ours is in use for other programs; nothing stays held of a failure."""
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    publishing, other = Publishing(), free_port()
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if proto == "tcp":
            holder.listen(1)
        port = holder.getsockname()[1]
        wanted = [binding(str(other), "127.0.0.1", proto), binding(str(port), "127.0.0.1", proto)]
        with pytest.raises(
            EngineFailure, match=rf"listen {proto}4 127.0.0.1:{port}: bind: address already in use"
        ):
            publishing.reserve(lease("a"), wanted, endpoint_name="a", default_ip="")
    held = publishing.reserve(lease("a"), wanted, endpoint_name="a", default_ip="")
    try:
        with socket.socket(socket.AF_INET, kind) as late:
            if proto == "tcp":
                late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="Address already in use"):
                late.bind(("127.0.0.1", port))
                late.listen()
    finally:
        for one in held:
            one.socket.close()


def test_a_range_takes_the_first_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        held = reserve(
            Wanted("tcp", ("127.0.0.1",), port, min(port + 20, 65535), 80), PortTable(), "a", (1, 2), 0, str
        )
        try:
            assert held[0].host_port > port
        finally:
            held[0].socket.close()


def test_who_needs_a_certain_port_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order: any free one, and one out of a range, leave it to who asked for it. What comes back is in order."""
    port = next(
        one for one in iter(free_port, None) if one < 65530 and all(is_bindable(one + n) for n in range(4))
    )
    monkeypatch.setattr(sockets, "ephemeral_range", lambda: (port, port + 3))
    publishing = Publishing()
    wanted = ["", f"{port}-{port + 1}", str(port + 1), str(port + 2)]
    held = publishing.reserve(
        lease("a"), [binding(one, "127.0.0.1") for one in wanted], endpoint_name="a", default_ip=""
    )
    try:
        assert [one.host_port for one in held] == [port + 3, port, port + 1, port + 2]
    finally:
        for one in held:
            one.socket.close()


def is_bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_an_address_of_another_host() -> None:
    with pytest.raises(EngineFailure, match="bind: cannot assign requested address"):
        reserve(Wanted("tcp", ("203.0.113.7",), 8080, 8080, 80), PortTable(), "a", (1, 2), 0, str)
