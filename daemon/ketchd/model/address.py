"""Addresses of hosts, as text. Pure."""

from __future__ import annotations

import ipaddress


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address, without brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
