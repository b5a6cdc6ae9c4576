"""hosts and resolv.conf as dockerd 28 writes them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ketchd.network.files import (
    change_hosts,
    host_servers,
    nameservers,
    only_loopback,
    outside_servers,
    render_embedded_resolv_conf,
    render_hostname,
    render_hosts,
    render_resolv_conf,
)

LOCAL = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
HOST = "# comment\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fd00::1\nsearch corp.example lan\noptions edns0 trust-ad\n"


def test_hosts() -> None:
    """Local names, what was asked for, then the container's own, one line an address."""
    text = render_hosts("web", "example.com", ["172.17.0.2", "172.18.0.2"], [("db", "10.0.0.5")], None)
    assert text == LOCAL + (
        "10.0.0.5\tdb\n172.17.0.2\tweb.example.com web\n172.18.0.2\tweb.example.com web\n"
    )
    assert render_hosts("web.example.com", "", "10.0.0.2", [], None).endswith("\tweb.example.com web\n")
    assert render_hosts("web", "", "172.17.0.2", [], None) == LOCAL + "172.17.0.2\tweb\n"
    assert render_hosts("web", "", None, [], None) == LOCAL


def test_hosts_of_a_container_that_moves() -> None:
    """Its own addresses come and go, what it wrote there stays."""
    before = render_hosts("web", "", ["10.0.0.2"], [("db", "10.0.0.9")], None)
    after = render_hosts("web", "", ["10.0.0.2", "10.1.0.2"], [("db", "10.0.0.9")], None)
    assert change_hosts(before, before, after) == after
    assert change_hosts(before + "10.5.5.5 mine\n", before, after) == (
        before + "10.5.5.5 mine\n10.1.0.2\tweb\n"
    )
    assert change_hosts(after + "10.5.5.5 mine", after, before) == before + "10.5.5.5 mine\n"
    assert change_hosts("", before, after) == "10.1.0.2\tweb\n"


def test_hosts_of_the_host() -> None:
    """With the host's network its own file, and what was asked for."""
    text = render_hosts("x", "", None, [("db", "10.0.0.5")], "127.0.0.1 localhost")
    assert text == "127.0.0.1 localhost\n10.0.0.5\tdb\n"


def test_resolv_conf_leaves_out_what_a_container_cannot_reach() -> None:
    text = render_resolv_conf(HOST, [], [], [])
    assert nameservers(text) == ["192.0.2.1"]
    assert "search corp.example lan\n" in text and "options edns0 trust-ad\n" in text


def test_resolv_conf_without_any_server_left() -> None:
    assert nameservers(render_resolv_conf("nameserver ::1\n", [], [], [])) == ["8.8.8.8", "8.8.4.4"]
    assert nameservers(render_resolv_conf("", [], [], [])) == ["8.8.8.8", "8.8.4.4"]


def test_resolv_conf_as_asked() -> None:
    """What was asked for takes the place of the host's; a dot is no search domain."""
    text = render_resolv_conf(HOST, ["127.0.0.5"], ["."], ["ndots:2"])
    assert nameservers(text) == ["127.0.0.5"] and "options ndots:2\n" in text
    assert "search" not in text


def test_resolv_conf_of_the_host() -> None:
    assert render_resolv_conf(HOST, [], [], [], keep_loopback=True) == HOST
    assert nameservers(render_resolv_conf(HOST, [], ["x"], [], keep_loopback=True))[0] == "127.0.0.53"


def test_resolv_conf_on_a_user_network() -> None:
    text = render_embedded_resolv_conf(HOST, "127.0.0.11", [], [])
    assert nameservers(text) == ["127.0.0.11"] and "options edns0 trust-ad ndots:0\n" in text
    assert "options ndots:3\n" in render_embedded_resolv_conf("", "127.0.0.11", [], ["ndots:3"])


def test_a_stub_is_seen() -> None:
    assert only_loopback("nameserver 127.0.0.53\n") and not only_loopback(HOST) and not only_loopback("")


@given(st.text())
def test_any_host_file_gives_a_file(text: str) -> None:
    """Whatever the host's file holds: at least one server, no line of it that means something else."""
    made = render_resolv_conf(text, [], [], [])
    assert nameservers(made) and made.endswith("\n")
    assert all(line.startswith(("#", "nameserver ", "search ", "options ")) for line in made.split("\n")[:-1])


def test_hostname() -> None:
    assert render_hostname("web") == "web\n"


def test_servers_of_the_host() -> None:
    """Asked from the host, so its loopback ones count; without any, those that a container on the default network gets too."""
    assert host_servers("nameserver 127.0.0.53\nnameserver ::1\n") == ["127.0.0.53", "::1"]
    assert host_servers("search a.b\n") == outside_servers("search a.b\n") == ["8.8.8.8", "8.8.4.4"]
