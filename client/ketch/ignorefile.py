"""`.dockerignore`: which paths of a build context stay at home. Pure.

Patterns are Go's filepath.Match per component, `**` any number of components; anchored at the context's root; the last
that matches a path or a parent of it wins; `!` takes back. Source: Dockerfile reference, moby/patternmatcher.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import NamedTuple

# Special in regular expressions, plain in patterns.
_PLAIN = frozenset(".+()|{}$^")


class BadPattern(ValueError):
    """A line of the file that is no pattern."""


class Pattern(NamedTuple):
    """One line. `text` is cleaned; `takes_back` for `!`."""

    text: str
    takes_back: bool
    matcher: re.Pattern[str]


def read_lines(content: str) -> list[str]:
    """The patterns in a file's text, cleaned, `!` kept in front. Raises BadPattern."""
    found = []
    for line in content.removeprefix("\ufeff").split("\n"):
        if line.startswith("#"):
            continue
        text = line.strip()
        if not text:
            continue
        mark = ""
        if text.startswith("!"):
            mark, text = "!", text[1:].strip()
            if not text:
                raise BadPattern('illegal exclusion pattern: "!"')
        text = posixpath.normpath(text)
        found.append(mark + (text[1:] if len(text) > 1 and text.startswith("/") else text).removeprefix("/"))
    return found


def compile_pattern(line: str) -> Pattern:
    """One cleaned line. Raises BadPattern."""
    takes_back = line.startswith("!")
    text = line[1:] if takes_back else line
    try:
        return Pattern(text, takes_back, re.compile(_expression(text), re.DOTALL))
    except re.error as error:
        raise BadPattern(f"syntax error in pattern: {line!r}: {error}") from error


def _expression(text: str) -> str:
    out, at = "", 0
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == "*":
            if text[at : at + 1] != "*":
                out += "[^/]*"
                continue
            at += 1
            if text[at : at + 1] == "/":
                at += 1
            out += ".*" if at >= len(text) else "(?:.*/)?"
        elif letter == "?":
            out += "[^/]"
        elif letter in _PLAIN:
            out += "\\" + letter
        elif letter == "\\":
            out += re.escape(text[at : at + 1]) if at < len(text) else "\\\\"
            at += 1
        elif letter == "[":
            end = text.find("]", at + 1 + (text[at : at + 1] == "^"))
            if end < 0:
                raise BadPattern(f"syntax error in pattern: {text!r}")
            out += "[" + text[at:end].replace("[", "\\[") + "]"
            at = end + 1
        else:
            out += letter
    return out + r"\Z"


class Ignore:
    """The patterns of one context. Ask from the root downwards, each directory's answer for what is in it."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.patterns = [compile_pattern(line) for line in lines]

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def matches(self, path: str, parent: frozenset[int] = frozenset()) -> frozenset[int]:
        """Which patterns match `path` or a parent of it. `parent`: the answer for its directory."""
        return parent | {
            at for at, pattern in enumerate(self.patterns) if at not in parent and pattern.matcher.match(path)
        }

    def is_out(self, matched: frozenset[int]) -> bool:
        """Whether a path with these matches stays at home: the last one says."""
        return bool(matched) and not self.patterns[max(matched)].takes_back

    def may_return_below(self, directory: str) -> bool:
        """Whether a `!` pattern could match something below a directory that is out."""
        return any(
            _can_match_below(pattern.text, directory) for pattern in self.patterns if pattern.takes_back
        )

    def ignores(self, path: str) -> bool:
        """Whether one path stays at home."""
        matched: frozenset[int] = frozenset()
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            matched = self.matches("/".join(parts[:end]), matched)
        return self.is_out(matched)


def _can_match_below(pattern: str, directory: str) -> bool:
    for wanted, have in zip(pattern.split("/"), directory.split("/"), strict=False):
        if "**" in wanted:
            return True
        if not re.match(_expression(wanted), have):
            return False
    return True
