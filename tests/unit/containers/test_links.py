"""What a link tells: variables, names in the hosts file, and the file after the other one has moved."""

from __future__ import annotations

from ketchd.containers import links


def test_variables_of_a_link() -> None:
    """TCP's ports first, each in order; a range for successive ones; the other's variables without what a build sets."""
    config = {
        "ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "8081/tcp": {}},
        "Env": ["A=", "B=x=y", "PATH=/bin", "C"],
    }
    assert links.variables("web", "my-db", "10.0.0.2", config) == [
        "MY_DB_PORT=tcp://10.0.0.2:8080",
        "MY_DB_PORT_8080_TCP=tcp://10.0.0.2:8080", "MY_DB_PORT_8080_TCP_ADDR=10.0.0.2", "MY_DB_PORT_8080_TCP_PORT=8080",
        "MY_DB_PORT_8080_TCP_PROTO=tcp",
        "MY_DB_PORT_8081_TCP=tcp://10.0.0.2:8081", "MY_DB_PORT_8081_TCP_ADDR=10.0.0.2", "MY_DB_PORT_8081_TCP_PORT=8081",
        "MY_DB_PORT_8081_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://10.0.0.2:53", "MY_DB_PORT_53_UDP_ADDR=10.0.0.2", "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_PORT_8080_TCP_START=tcp://10.0.0.2:8080", "MY_DB_PORT_8080_TCP_PORT_START=8080",
        "MY_DB_PORT_8080_TCP_END=tcp://10.0.0.2:8081", "MY_DB_PORT_8080_TCP_PORT_END=8081",
        "MY_DB_NAME=/web/my-db", "MY_DB_ENV_A=", "MY_DB_ENV_B=x=y",
    ]  # fmt: skip
    assert links.variables("web", "db", "10.0.0.2", {"ExposedPorts": None, "Env": []}) == ["DB_NAME=/web/db"]


def test_a_range_is_of_one_protocol() -> None:
    """A name server's two ports are none, nor is what follows in another protocol."""
    keys = ["54/udp", "53/udp", "53/tcp", "55/tcp", "56/tcp", "57/tcp", "9/sctp"]
    told = links.variables("web", "dns", "10.0.0.2", {"ExposedPorts": {key: {} for key in keys}, "Env": []})
    assert told[0] == "DNS_PORT=tcp://10.0.0.2:53"
    assert [one for one in told if "_START=" in one or "_END=" in one] == [
        "DNS_PORT_55_TCP_START=tcp://10.0.0.2:55", "DNS_PORT_55_TCP_PORT_START=55",
        "DNS_PORT_55_TCP_END=tcp://10.0.0.2:57", "DNS_PORT_55_TCP_PORT_END=57",
        "DNS_PORT_53_UDP_START=udp://10.0.0.2:53", "DNS_PORT_53_UDP_PORT_START=53",
        "DNS_PORT_53_UDP_END=udp://10.0.0.2:54", "DNS_PORT_53_UDP_PORT_END=54",
    ]  # fmt: skip


def test_names_and_links_as_they_are_shown() -> None:
    assert links.host_names("data", "db", "abc") == "data abc db"
    assert links.host_names("db", "db", "abc") == "db abc"
    assert links.shown("web", [{"id": "1", "name": "db", "alias": "data"}]) == ["/db:/web/data"]
    assert links.shown("web", []) is None


def test_a_hosts_file_follows() -> None:
    """The line of that alias and no other; what the container wrote there itself stays."""
    before = "127.0.0.1\tlocalhost\n10.0.0.2\tdata abc db\n10.0.0.3\tdatabase x\n10.0.0.9 data\n"
    after = "127.0.0.1\tlocalhost\n10.0.0.7\tdata abc db\n10.0.0.3\tdatabase x\n10.0.0.9 data\n"
    assert links.moved(before, "data", "10.0.0.7") == after
    assert links.without(before, "data") == "127.0.0.1\tlocalhost\n10.0.0.3\tdatabase x\n10.0.0.9 data\n"


def test_whose_links_they_are() -> None:
    """Those of a user-defined network are its endpoint's."""
    modes = ["", "default", "bridge", "none", "host", "container:x", "mine"]
    assert [mode for mode in modes if links.has_names_of_its_own(mode)] == ["mine"]
