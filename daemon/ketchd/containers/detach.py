"""Detach keys: `ctrl-p,ctrl-q` as the bytes to look for. Pure. Source: docker attach, --detach-keys."""

from __future__ import annotations

from ketch_wire.faults import InvalidInput

DEFAULT = b"\x10\x11"
_CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"


def detach_keys(text: str) -> bytes:
    """The key sequence; the default for "". Raises InvalidInput."""
    if not text:
        return DEFAULT
    keys = bytearray()
    for word in text.split(","):
        if len(word) == 1 and word.isascii():
            keys += word.encode()
        elif word.startswith("ctrl-") and len(word) == 6 and word[5] in _CONTROL:
            keys.append(_CONTROL.index(word[5]))
        else:
            raise InvalidInput(f"Invalid detach keys ({text[:60]}) provided")
    return bytes(keys)
