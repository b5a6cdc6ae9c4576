"""Passages through chains of other programs that drop what nobody allowed. Pure.

In nftables every base chain of a hook is asked and one `drop` is final, so our own `accept` cannot overrule `iptables -P FORWARD
DROP` of a dockerd beside us, or ufw's INPUT. A rule of ours at the top of that chain can; it carries a comment by which it is
found again, and is plain enough for iptables-nft to show.
Source: nft(8), "Verdict statement"; libnftables-json(5).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ketchd.network.rules import NetworkRules

TABLE = "filter"
CHAINS = ("FORWARD", "INPUT")


def _comment(bridge: str) -> str:
    return f"ketch:{bridge}"


def passages(networks: Sequence[NetworkRules]) -> dict[str, list[str]]:
    """Chain -> what is to be accepted there."""
    forward = [f'{side} "{one.bridge}"' for one in networks for side in ("iifname", "oifname")]
    into = [
        f'iifname "{one.bridge}" ip daddr {one.resolver[0]} {proto} dport {port}'
        for one in networks
        if one.resolver is not None
        for proto, port in (("udp", one.resolver[1]), ("tcp", one.resolver[2]))
    ]
    return {"FORWARD": forward, "INPUT": into}


def _objects(listed: str) -> Iterable[dict[str, Any]]:
    try:
        found = json.loads(listed)["nftables"]
    except (ValueError, KeyError, TypeError):
        return []
    return [one for one in found if isinstance(one, dict)]


def drops(listed: str) -> bool:
    """Whether a chain, as `nft -j list chain` prints it, drops by default."""
    return any(one.get("chain", {}).get("policy") == "drop" for one in _objects(listed))


def is_open(listed: str, matches: Sequence[str], bridge: str) -> bool:
    """Whether our rules are there already, one a match.

    By number: what nft prints of a rule is not what was written. Rules of another set of matches have another number, but for
    the DNS server's ports, which are new with each start of ketchd; that begins with `apply`, which renews them in any case.
    """
    return len(_ours(listed, bridge)) == len(matches)


def _ours(listed: str, bridge: str) -> list[int]:
    return [
        rule["handle"]
        for rule in (one.get("rule", {}) for one in _objects(listed))
        if rule.get("comment") == _comment(bridge) and isinstance(rule.get("handle"), int)
    ]


def open_(chain: str, matches: Sequence[str], bridge: str) -> str:
    """Commands that let `matches` through."""
    return "".join(
        f'insert rule ip {TABLE} {chain} {match} counter accept comment "{_comment(bridge)}"\n'
        for match in matches
    )


def close(chain: str, listed: str, bridge: str) -> str:
    """Commands that take our rules away again; empty when there are none."""
    return "".join(f"delete rule ip {TABLE} {chain} handle {handle}\n" for handle in _ours(listed, bridge))
