"""Go's path.Match: the wildcards of image references and file names. Pure.

`*` and `?` stop at a slash, `[a-z]` and `[^a-z]` are classes, a backslash takes the next character as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ketch_wire.faults import InvalidInput


@lru_cache(maxsize=256)
def pattern(text: str) -> re.Pattern[str]:
    """`text` as an expression for `fullmatch`. Raises InvalidInput."""
    found, position = "", 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "*":
            found += "[^/]*"
        elif char == "?":
            found += "[^/]"
        elif char == "[":
            part, position = _class(text, position)
            found += part
        else:
            if char == "\\":
                char, position = _escaped(text, position)
            found += re.escape(char)
    return re.compile(found, re.DOTALL)


def matches(text: str, name: str) -> bool:
    """Whether the whole of `name` fits the pattern `text`. Raises InvalidInput."""
    return pattern(text).fullmatch(name) is not None


def _class(text: str, position: int) -> tuple[str, int]:
    """The class that begins behind its `[`, and where it ends."""
    negated = text[position : position + 1] == "^"
    position += negated
    members, first = "", True
    while first or text[position : position + 1] != "]":
        first = False
        low, position = _member(text, position)
        high = low
        if text[position : position + 1] == "-":
            high, position = _member(text, position + 1)
        if low <= high:  # an empty range matches nothing
            members += f"{re.escape(low)}-{re.escape(high)}"
    position += 1
    if not members:
        return ("[^/]" if negated else "(?!)"), position
    return f"(?!/)[{'^' if negated else ''}{members}]", position


def _member(text: str, position: int) -> tuple[str, int]:
    char = text[position : position + 1]
    if char in ("", "-", "]"):
        raise InvalidInput("syntax error in pattern")
    return _escaped(text, position + 1) if char == "\\" else (char, position + 1)


def _escaped(text: str, position: int) -> tuple[str, int]:
    if position >= len(text):
        raise InvalidInput("syntax error in pattern")
    return text[position], position + 1
