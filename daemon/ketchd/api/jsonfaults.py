"""What dockerd says of a body that is no JSON: Go's words, which clients and their tests look for.

Source: encoding/json scanner.go; moby api/server/httputils, ReadJSON.
"""

from __future__ import annotations

import json
import re

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F]{0,4}")
# The beginning of a number that lacks digits behind its last character.
_NUMBER = re.compile(r"(?:^|(?<=[\s:,\[]))(?:-|-?\d+\.|-?\d+(?:\.\d+)?[eE])$")
_BEHIND_A_NUMBER = ("Expecting value", "Expecting ',' delimiter")
_NUMERIC = {
    "-": "in numeric literal", ".": "after decimal point in numeric literal", "e": "in exponent of numeric literal",
}  # fmt: skip
_WORDS = {
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Expecting value": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Invalid control character at": "in string literal",
}


def of_json(text: str, error: json.JSONDecodeError) -> str:
    """The message for `text`, which json.loads refused with `error`."""
    if error.msg == "Extra data":
        return "unexpected content after JSON"
    return "invalid JSON: " + _syntax(text, error)


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    at = error.pos
    words = _WORDS.get(error.msg, "")
    if error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    if error.msg == "Invalid \\uXXXX escape":  # the position is the u's
        at, words = _HEX.match(text, at + 1).end(), "in \\u hexadecimal character escape"  # type: ignore[union-attr]
    elif error.msg.startswith("Invalid \\"):  # the position is the backslash's
        at, words = at + 1, "in string escape code"
    elif error.msg in _BEHIND_A_NUMBER and (number := _NUMBER.search(text[: at + 1])) is not None:
        at = at + 1 + (number[0][-1] in "eE" and text[at + 1 : at + 2] in ("+", "-"))
        words = _NUMERIC[number[0][-1].lower()]
    elif error.msg == "Expecting ',' delimiter":
        words = "after object key:value pair" if _innermost(text[:at]) == "{" else "after array element"
    elif error.msg == "Expecting value":
        for literal in ("true", "false", "null"):
            if text.startswith(literal[0], at):
                same = next(n for n in range(1, len(literal)) if not text.startswith(literal[: n + 1], at))
                at, words = at + same, f"in literal {literal} (expecting {literal[same]!r})"
    while at < len(text) and text[at] in " \t\r\n" and words != "in string literal":
        at += 1
    if at >= len(text):
        return "unexpected EOF"
    return f"invalid character {_quoted(text[at])} {words}" if words else str(error)


def _quoted(character: str) -> str:
    """As Go writes it, in single quotes."""
    if character == "'":
        return "'\\''"
    return character.join("''") if character in '"`' else repr(character)


def _innermost(text: str) -> str:
    """The bracket that is open at the end of `text`."""
    opened: list[str] = []
    for bracket in re.findall(r"[][{}]", _STRING.sub("", text)):
        if bracket in "[{":
            opened.append(bracket)
        elif opened:
            opened.pop()
    return opened[-1] if opened else ""
