"""Which paths a .dockerignore leaves out. Pure.

Source: moby/patternmatcher (the rules dockerd and its client share).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ketch_wire.faults import InvalidInput
from ketchd.model import pathmatch


@dataclass(frozen=True, slots=True)
class _Rule:
    expression: re.Pattern[str]
    excludes: bool


class IgnoreRules:
    """The compiled lines of an ignore file. Paths are relative, slash-separated, clean."""

    def __init__(self, rules: Iterable[_Rule] = ()) -> None:
        self._rules = tuple(rules)
        self.has_exceptions = any(not rule.excludes for rule in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excludes(self, path: str) -> bool:
        """Whether `path` is left out: by a pattern for it or for a directory above it; the last matching pattern decides."""
        excluded = False
        for rule in self._rules:
            if rule.excludes != excluded and rule.expression.match(path):
                excluded = rule.excludes
        return excluded


def parse(text: str) -> list[str]:
    """The patterns of an ignore file, cleaned, `!` kept in front. Raises InvalidInput."""
    patterns = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n")):
        line = line.rstrip("\r")
        if line.startswith("#"):
            continue
        pattern = line.strip()
        if not pattern:
            continue
        negated = pattern.startswith("!")
        if negated:
            pattern = pattern[1:].strip()
        if pattern:
            pattern = posixpath.normpath(pattern)
            if len(pattern) > 1 and pattern.startswith("/"):
                pattern = pattern.lstrip("/")
        elif negated:
            raise InvalidInput(f'illegal exclusion pattern: "!" (.dockerignore:{number + 1})')
        patterns.append("!" + pattern if negated else pattern)
    return patterns


def compile_rules(patterns: Iterable[str]) -> IgnoreRules:
    """Rules of cleaned patterns. Raises InvalidInput on a malformed one."""
    rules = []
    for pattern in patterns:
        negated = pattern.startswith("!")
        body = pattern[1:] if negated else pattern
        if negated and not body:
            raise InvalidInput('illegal exclusion pattern: "!"')
        rules.append(_Rule(re.compile(_expression(body), re.DOTALL), not negated))
    return IgnoreRules(rules)


def _expression(pattern: str) -> str:
    """The pattern anchored at the root, matching the path itself or anything below it."""
    out, position = "", 0
    while position < len(pattern):
        char = pattern[position]
        if char == "*":
            if pattern[position + 1 : position + 2] == "*":
                position += 1
                if pattern[position + 1 : position + 2] == "/":
                    position += 1
                out += ".*" if position + 1 == len(pattern) else "(?:.*/)?"
            else:
                out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[":
            text, position = _class(pattern, position)
            out += text
            continue
        else:
            if char == "\\":
                position += 1
                if position == len(pattern):
                    raise InvalidInput(f"syntax error in pattern: {pattern!r}")
                char = pattern[position]
            out += re.escape(char)
        position += 1
    return rf"\A(?:{out})(?:/.*)?\Z"


def _class(pattern: str, position: int) -> tuple[str, int]:
    """The bracket class at `position` as a regular expression, and where it ends. Raises InvalidInput."""
    end = position + 1
    end += pattern[end : end + 1] == "^"
    first = True
    while first or pattern[end : end + 1] not in ("]", ""):
        end += 2 if pattern[end : end + 1] == "\\" else 1
        first = False
    return pathmatch.pattern(pattern[position : end + 1]).pattern, end + 1


def has_wildcards(pattern: str) -> bool:
    """Whether `*`, `?` or `[` stands in it unescaped."""
    position = 0
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 1
        elif pattern[position] in "*?[":
            return True
        position += 1
    return False
