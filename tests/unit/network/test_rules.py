"""Packet rules as text: one element a port, networks apart, nothing of a user's choosing between the quotes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.network import foreign, rules
from ketchd.network.rules import Forward, NetworkRules, check_bridge_name, forwards, ruleset

DEFAULT = NetworkRules("ketch0", "172.17.0.0/16")
SHOP = NetworkRules("br-shop", "172.18.0.0/16", resolver=("172.18.0.1", 4053, 4054))
VAULT = NetworkRules("br-vault", "172.19.0.0/16", internal=True)
WEB = Forward("tcp", "0.0.0.0", 8080, "172.17.0.2", 80)
LOCAL = Forward("udp", "127.0.0.1", 53, "172.17.0.3", 53)


def test_the_whole_set() -> None:
    """What every part is for, said by rules.py's docstring, is there."""
    text = ruleset("ketch0", [DEFAULT, SHOP, VAULT], [WEB, LOCAL])
    assert text.startswith(
        "add table inet ketch-ketch0\ndelete table inet ketch-ketch0\ntable inet ketch-ketch0 {\n"
    )
    for line in (
        'elements = { "ketch0", "br-shop", "br-vault" }',
        "elements = { tcp . 8080 : 172.17.0.2 . 80 }",
        "elements = { udp . 127.0.0.1 . 53 : 172.17.0.3 . 53 }",
        'iifname "br-shop" ip daddr 127.0.0.11 udp dport 53 dnat ip to 172.18.0.1:4053',
        'iifname "br-shop" ip daddr 127.0.0.11 tcp dport 53 dnat ip to 172.18.0.1:4054',
        'ip saddr 172.17.0.0/16 oifname != "ketch0" masquerade',
        'iifname "br-vault" oifname != "br-vault" drop',
        'oifname "br-vault" iifname != "br-vault" drop',
        'iifname "ketch0" oifname "ketch0" accept',
        "table bridge ketch-ketch0 {",
    ):
        assert line in text, line
    assert "172.19.0.0/16 oifname" not in text  # an internal network is not masqueraded


def test_without_names_there_is_no_second_table() -> None:
    """And no hole in the guard."""
    text = ruleset("ketch0", [DEFAULT], [])
    assert "table bridge ketch-ketch0 {" not in text and "127.0.0.11" not in text
    assert "iifname @bridges ip daddr 127.0.0.0/8 drop" in text
    assert "bridge" not in rules.without_bridge_family(text).replace("@bridges", "").replace(
        "set bridges", ""
    )


def test_icc_off() -> None:
    """Neighbours are not let through."""
    text = ruleset("ketch0", [NetworkRules("ketch0", "172.17.0.0/16", icc=False, masquerade=False)], [])
    assert (
        'iifname "ketch0" oifname "ketch0" accept' not in text
        and 'oifname != "ketch0" masquerade' not in text
    )


def test_changes_of_the_maps() -> None:
    """Ports of both maps in one transaction."""
    assert rules.add_ports("ketch0", [WEB, LOCAL]) == (
        "add element inet ketch-ketch0 ports { udp . 127.0.0.1 . 53 : 172.17.0.3 . 53 }\n"
        "add element inet ketch-ketch0 ports_any { tcp . 8080 : 172.17.0.2 . 80 }\n"
    )
    assert (
        rules.remove_ports("ketch0", [WEB]) == "delete element inet ketch-ketch0 ports_any { tcp . 8080 }\n"
    )


def test_ipv6_bindings_are_not_translated() -> None:
    records = [
        {"proto": "tcp", "host_ip": ip, "host_port": 80, "container_port": 8080} for ip in ("0.0.0.0", "::")
    ]
    assert forwards(records, "172.17.0.2") == [Forward("tcp", "0.0.0.0", 80, "172.17.0.2", 8080)]


@given(st.text(max_size=20))
def test_bridge_names_need_no_quoting(name: str) -> None:
    """A name that passes is a link's name and ends no nft string."""
    try:
        check_bridge_name(name)
    except InvalidInput:
        return
    assert name.isascii() and 0 < len(name) <= 15 and not set(name) & set('"\\*/; \n{}')


@pytest.mark.parametrize("name", ["", "a" * 16, 'x"', "a b", "a/b", "veth*", "-x", "..", "x\n"])
def test_bridge_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidInput, match="invalid bridge name"):
        check_bridge_name(name)


CHAIN = json.dumps(
    {
        "nftables": [
            {"metainfo": {}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "policy": "drop"}},
            {"rule": {"handle": 4, "comment": "ketch:ketch0"}},
            {"rule": {"handle": 5, "comment": "ketch:other"}},
            {"rule": {"handle": 6}},
        ]
    }
)


def test_passages_through_foreign_chains() -> None:
    """Ours are known by their comment; another instance's and other programs' rules stay."""
    assert (
        foreign.drops(CHAIN) and not foreign.drops(CHAIN.replace("drop", "accept")) and not foreign.drops("")
    )
    assert foreign.close("FORWARD", CHAIN, "ketch0") == "delete rule ip filter FORWARD handle 4\n"
    assert foreign.is_open(CHAIN, ["one"], "ketch0") and not foreign.is_open(CHAIN, ["one", "two"], "ketch0")
    wanted = foreign.passages([DEFAULT, SHOP])
    assert len(wanted["FORWARD"]) == 4 and len(wanted["INPUT"]) == 2
    assert foreign.open_("FORWARD", ['iifname "ketch0"'], "ketch0") == (
        'insert rule ip filter FORWARD iifname "ketch0" counter accept comment "ketch:ketch0"\n'
    )


LISTED = """table inet ketch-ketch0 {
	set bridges {
		type ifname
		elements = { "ketch0",
			"br-shop" }
	}

	map ports {
		type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service%s
	}

	chain guard {
		ip daddr 127.0.0.11 th dport 53 meta l4proto { tcp, udp } accept
	}
}
"""


def test_a_listed_table_is_taken_apart() -> None:
    """Elements in any order and number leave the same text; an anonymous set of a rule is the rule's."""
    element = "tcp . 127.0.0.1 . 8080 : 172.17.0.2 . 80"
    text, found = rules.without_elements(LISTED % f"\n\t\telements = {{ {element} }}")
    assert found == {"bridges": {'"ketch0"', '"br-shop"'}, "ports": {element}}
    again, without = rules.without_elements(LISTED % "")
    assert again == text and without == {"bridges": {'"ketch0"', '"br-shop"'}}
    assert "{ tcp, udp } accept" in text
