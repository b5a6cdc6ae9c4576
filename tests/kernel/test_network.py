"""Bridges, addresses and published ports for real, each scenario in a network namespace of its own."""

from __future__ import annotations

import os
import shutil

import pytest

from ketch_testing.netns import in_own_network

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="ip is not installed (apt-get install iproute2)"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (apt-get install nftables)"),
]


@pytest.mark.parametrize(
    "scenario",
    [
        "connects", "publishes", "publishes_udp", "reapplies", "restores", "one_a_bridge", "without_a_default_bridge",
        "lets_nobody_through_loopback", "through_a_drop_policy", "through_a_later_drop_policy", "names", "names_in_a_storm", "internal_stays_inside", "several_networks",
        "neighbours_do_not_reach_loopback", "networks_come_back", "forgets_connections", "heals_the_bridge", "heals_at_its_start", "one_change_at_a_time", "subnets_out_of_pools",
        "names_after_a_restart", "many_of_one_name", "leads_no_port_to_another", "forgets_what_nobody_answered",
        "keeps_its_address_while_in_use", "uses_a_bridge_of_others", "addresses_of_a_part", "heals_with_what_runs",
    ],
)  # fmt: skip
def test_network(scenario: str) -> None:
    """Each says in its first line what it shows (network_scenarios.py)."""
    in_own_network(f"kernel.network_scenarios:{scenario}")
