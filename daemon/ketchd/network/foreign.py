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

CHAINS = ("FORWARD", "INPUT")


def _comment(bridge: str) -> str:
    return f"ketch:{bridge}"


def passages(bridge: str, networks: Sequence[NetworkRules]) -> dict[str, list[str]]:
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


def open_(chain: str, matches: Sequence[str], bridge: str) -> str:
    """Commands that let `matches` through."""
    return "".join(
        f'insert rule ip filter {chain} {match} counter accept comment "{_comment(bridge)}"\n'
        for match in matches
    )


def close(chain: str, listed: str, bridge: str) -> str:
    """Commands that take our rules away again; empty when there are none."""
    return "".join(
        f"delete rule ip filter {chain} handle {rule['handle']}\n"
        for rule in (one.get("rule", {}) for one in _objects(listed))
        if rule.get("comment") == _comment(bridge) and isinstance(rule.get("handle"), int)
    )
