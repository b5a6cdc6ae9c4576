"""WWW-Authenticate: what a registry asks for. Pure.

Source: RFC 9110 section 11; distribution-spec's token authentication.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

LENGTH_LIMIT = 16 * 1024
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SPACE = re.compile(r"[ \t]*")
_NAME = re.compile(_TOKEN)
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s",]*))', re.DOTALL)
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme (lower case) with its parameters (keys lower case)."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def realm(self) -> str:
        """Where to ask for a token (Bearer), or the realm's name (Basic)."""
        return self.parameters.get("realm", "")


def parse(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of every WWW-Authenticate header, in order; what cannot be read is left out."""
    found: list[Challenge] = []
    for header in headers:
        found += _parse_one(header[:LENGTH_LIMIT])
    return found


def prefer(challenges: Iterable[Challenge]) -> Challenge | None:
    """The one to answer: Bearer before Basic; None when there is neither."""
    offered = {challenge.scheme: challenge for challenge in reversed(list(challenges))}
    bearer = offered.get("bearer")
    return bearer if bearer is not None and bearer.realm else offered.get("basic")


def _parse_one(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    scheme: str | None = None
    parameters: dict[str, str] = {}
    at = 0
    while at < len(header):
        at = _skip(header, at)
        if scheme is not None and (match := _PARAMETER.match(header, at)):
            quoted, plain = match[2], match[3]
            value = _ESCAPED.sub(r"\1", quoted) if quoted is not None else plain or ""
            parameters.setdefault(match[1].lower(), value)
            at = match.end()
        elif match := _NAME.match(header, at):
            if scheme is not None:
                found.append(Challenge(scheme, parameters))
            scheme, parameters = match[0].lower(), {}
            at = match.end()
            after = _SPACE.match(header, at)
            assert after is not None
            if token := _TOKEN68.match(header, after.end()):  # `Negotiate abc==`
                at = token.end()
        else:
            at += 1
    if scheme is not None:
        found.append(Challenge(scheme, parameters))
    return found


def _skip(header: str, at: int) -> int:
    while at < len(header) and header[at] in " \t,":
        at += 1
    return at
