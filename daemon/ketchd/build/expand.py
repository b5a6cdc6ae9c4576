"""Variable expansion in Dockerfile words: quotes, escapes, ${NAME:-word} and its relatives. Pure.

Source: Dockerfile reference, "Environment replacement"; buildkit frontend/dockerfile/shell (the legacy builder's subset is the same).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ketch_wire.faults import InvalidInput

_SPECIAL = frozenset("@*#")
_DEPTH_LIMIT = 50


@dataclass(slots=True)
class Expansion:
    """What expanding gave: the text, and its parts where unquoted blanks split it."""

    text: str = ""
    parts: list[str] = field(default_factory=list)


def expand(text: str, env: Mapping[str, str], escape: str = "\\") -> str:
    """`text` with variables replaced and quotes removed. Raises InvalidInput: `failed to process "…": why`."""
    return _run(text, env, escape).text


def expand_words(text: str, env: Mapping[str, str], escape: str = "\\") -> list[str]:
    """As `expand`, split at blanks that stand outside quotes, those of unquoted values included. Raises InvalidInput."""
    return _run(text, env, escape).parts


def expand_body(text: str, env: Mapping[str, str], escape: str = "\\") -> str:
    """A heredoc's body: variables replaced, quotes are text. Raises InvalidInput."""
    return _run(text, env, escape, raw_quotes=True).text


def _run(text: str, env: Mapping[str, str], escape: str, *, raw_quotes: bool = False) -> Expansion:
    machine = _Expander(text, env, escape, raw_quotes)
    try:
        return machine.whole()
    except _Bad as bad:
        raise InvalidInput(f'failed to process "{text}": {bad}') from None


class _Bad(Exception):
    pass


class _Expander:
    def __init__(
        self, text: str, env: Mapping[str, str], escape: str, raw_quotes: bool, depth: int = 0
    ) -> None:
        self._text, self._env, self._escape, self._raw = text, env, escape, raw_quotes
        self._at = 0
        self._depth = depth
        self._parts: list[str] = []
        self._word: str | None = None

    def whole(self) -> Expansion:
        text = self._until("")
        if self._word is not None:
            self._parts.append(self._word)
        return Expansion(text, self._parts)

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _until(self, stop: str) -> str:
        """Expanded text up to the unquoted character `stop`, which is consumed; "" means to the end."""
        out: list[str] = []
        while (char := self._peek()) != "":
            if stop and char in stop:
                self._at += 1
                return "".join(out)
            if char == "'" and not self._raw:
                out.append(self._single())
                self._solid(out[-1])
            elif char == '"' and not self._raw:
                out.append(self._double())
                self._solid(out[-1])
            elif char == "$":
                value = self._dollar()
                out.append(value)
                self._loose(value)
            elif char == self._escape:
                self._at += 1
                following = self._peek()
                if following == "":
                    break  # a trailing escape is dropped, as in dockerd
                self._at += 1
                kept = following
                if self._raw and following not in ("$", self._escape):
                    kept = self._escape + following
                out.append(kept)
                self._solid(kept)
            else:
                self._at += 1
                out.append(char)
                self._loose(char)
        if stop:
            raise _Bad("syntax error: missing '}'")
        return "".join(out)

    def _solid(self, text: str) -> None:
        self._word = (self._word or "") + text

    def _loose(self, text: str) -> None:
        for char in text:
            if char.isspace():
                if self._word is not None:
                    self._parts.append(self._word)
                self._word = None
            else:
                self._word = (self._word or "") + char

    def _single(self) -> str:
        self._at += 1
        end = self._text.find("'", self._at)
        if end < 0:
            raise _Bad("unexpected end of statement while looking for matching single-quote")
        value, self._at = self._text[self._at : end], end + 1
        return value

    def _double(self) -> str:
        self._at += 1
        out: list[str] = []
        while (char := self._peek()) != '"':
            if char == "":
                raise _Bad("unexpected end of statement while looking for matching double-quote")
            if char == "$":
                out.append(self._dollar())
                continue
            self._at += 1
            if char == self._escape:
                following = self._peek()
                if following == "":
                    raise _Bad("unexpected end of statement while looking for matching double-quote")
                if following in ('"', "$", self._escape):
                    out.append(following)
                    self._at += 1
                    continue
            out.append(char)
        self._at += 1
        return "".join(out)

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            return "$" if not name else self._env.get(name, "")
        self._at += 1
        if self._peek() in ("", "}", ":", "{") or not (name := self._name()):
            raise _Bad("syntax error: bad substitution")
        char = self._next()
        if char == "}":
            return self._env.get(name, "")
        if char == ":":
            modifier = self._next()
            if modifier not in ("-", "+", "?"):
                raise _Bad(f"unsupported modifier (:{modifier}) in substitution")
            return self._choose(name, modifier, self._nested("}"), nonempty=True)
        if char in ("-", "+", "?") and char:
            return self._choose(name, char, self._nested("}"), nonempty=False)
        if char in ("#", "%") and char:
            greedy = self._peek() == char
            self._at += greedy
            pattern = self._nested("}", pattern=True)
            return _trim(self._env.get(name, ""), pattern, char, greedy)
        if char == "/":
            everywhere = self._peek() == "/"
            self._at += everywhere
            pattern = self._nested("/", pattern=True)
            replacement = self._nested("}")
            compiled = re.compile(glob(pattern, greedy=True), re.DOTALL)
            return compiled.sub(lambda _: replacement, self._env.get(name, ""), count=0 if everywhere else 1)
        if char == "":
            raise _Bad("syntax error: missing '}'")
        raise _Bad(f"unsupported modifier ({char}) in substitution")

    def _choose(self, name: str, modifier: str, word: str, *, nonempty: bool) -> str:
        value = self._env.get(name)
        present = value is not None and (value != "" or not nonempty)
        if modifier == "+":
            return word if present else ""
        if present:
            return value or ""
        if modifier == "-":
            return word
        raise _Bad(
            f"{name}: {word or ('is not allowed to be empty' if nonempty else 'is not allowed to be unset')}"
        )

    def _nested(self, stop: str, *, pattern: bool = False) -> str:
        """The expanded word inside ${…} up to `stop`; a pattern keeps its escapes."""
        if self._depth > _DEPTH_LIMIT:
            raise _Bad("syntax error: substitutions are nested too deeply")
        inner = _Expander(self._text, self._env, self._escape, self._raw, self._depth + 1)
        inner._at = self._at
        text = inner._pattern(stop) if pattern else inner._until(stop)
        self._at = inner._at
        return text

    def _pattern(self, stop: str) -> str:
        out: list[str] = []
        while (char := self._peek()) != stop:
            if char == "":
                raise _Bad("syntax error: missing '/' in ${}" if stop == "/" else "syntax error: missing '}'")
            if char == "$":
                out.append(self._dollar())
                continue
            self._at += 1
            if char == self._escape and self._peek():
                following = self._next()
                out.append("\\" + following if following in "*?\\" else following)
                continue
            out.append(char)
        self._at += 1
        return "".join(out)

    def _name(self) -> str:
        char = self._peek()
        if char and (char.isdigit() or char in _SPECIAL):
            self._at += 1
            return char
        start = self._at
        while (char := self._peek()) and (
            char == "_" or char.isalpha() or (char.isdigit() and self._at > start)
        ):
            self._at += 1
        return self._text[start : self._at]


def glob(pattern: str, *, greedy: bool) -> str:
    """A shell pattern of `*`, `?` and escapes as a regular expression."""
    out, position = "", 0
    while position < len(pattern):
        char = pattern[position]
        if char == "*":
            out += ".*" if greedy else ".*?"
        elif char == "?":
            out += "."
        else:
            if char == "\\" and position + 1 < len(pattern):
                position += 1
                char = pattern[position]
            out += re.escape(char)
        position += 1
    return out


def _trim(value: str, pattern: str, side: str, greedy: bool) -> str:
    if side == "#":
        match = re.match(glob(pattern, greedy=greedy), value, re.DOTALL)
        return value[match.end() :] if match else value
    starts = range(len(value) + 1) if greedy else range(len(value), -1, -1)
    compiled = re.compile(glob(pattern, greedy=True), re.DOTALL)
    for start in starts:
        if compiled.fullmatch(value, start):
            return value[:start]
    return value
