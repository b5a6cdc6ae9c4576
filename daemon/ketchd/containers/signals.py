"""Signal names and numbers as the Engine API takes them. Pure."""

from __future__ import annotations

import signal as _signal

from ketch_wire.faults import InvalidInput

_BY_NAME: dict[str, int] = {member.name.removeprefix("SIG"): int(member) for member in _signal.Signals}
_BY_NAME.update({f"RTMIN+{offset}": 34 + offset for offset in range(16)})
_BY_NAME.update({f"RTMAX-{offset}": 64 - offset for offset in range(1, 15)})


def signal_number(text: str) -> int:
    """`TERM`, `sigterm`, `15` -> 15. Raises InvalidInput."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 65:
        return int(text)
    number = _BY_NAME.get(text.upper().removeprefix("SIG"))
    if number is None:
        raise InvalidInput(f"invalid signal: {text[:60]}")
    return number
