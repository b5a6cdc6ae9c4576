"""The door's grammar: routes, what a handler is called with, and the ways to answer.

A route is found by its first path segment, then by pattern; versions are a prefix (`/v1.41/…`) that every route has.
Source: Engine API 1.50, "Versioning" and "Errors".
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from aiohttp import web

from ketch_wire.defaults import API_VERSION, MINIMUM_API_VERSION
from ketch_wire.faults import InvalidInput
from ketchd.api.faultmap import JSON_TYPE
from ketchd.api.jsonfaults import of_json

BODY_LIMIT = 4 * 1024 * 1024  # of JSON documents; archives and contexts are streams
_VERSIONED = re.compile(r"/v([0-9]+)\.([0-9.]+)(/.*)")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_FALSE = frozenset({"", "0", "no", "false", "none"})


def version_pair(text: str) -> tuple[int, int]:
    """`1.41` as (1, 41)."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


NEWEST, OLDEST = version_pair(API_VERSION), version_pair(MINIMUM_API_VERSION)


class Taken(Protocol):
    """A connection that left HTTP behind."""

    response: web.StreamResponse

    def close(self) -> None:
        """Let our end go."""


class Call:
    """One request as a handler sees it. vars: the path's variables. version: the API version spoken."""

    def __init__(
        self, request: web.BaseRequest, variables: Mapping[str, str], version: tuple[int, int]
    ) -> None:
        self.request = request
        self.vars = variables
        self.version = version
        self.taken: Taken | None = None  # set when the handler took the connection out of HTTP
        self._query = request.rel_url.query

    def query(self, name: str, default: str = "") -> str:
        """A query parameter's first value."""
        return self._query.get(name, default)

    def query_list(self, name: str) -> list[str]:
        """Every value of a repeated query parameter."""
        return list(self._query.getall(name, []))

    def query_bool(self, name: str, default: bool = False) -> bool:
        """A query parameter as Docker reads booleans: false for nothing, 0, no, false and none."""
        text = self._query.get(name)
        return default if text is None else text.lower() not in _FALSE

    def query_int(self, name: str, default: int) -> int:
        """A whole number. Raises InvalidInput."""
        text = self._query.get(name, "")
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise InvalidInput(f'strconv.Atoi: parsing "{text[:40]}": invalid syntax') from None

    def filters(self) -> dict[str, list[str]]:
        """The `filters` parameter, in both encodings that clients use. Raises InvalidInput."""
        text = self._query.get("filters", "")
        if not text:
            return {}
        try:
            sent = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidInput("invalid filter") from None
        if not isinstance(sent, dict):
            raise InvalidInput("invalid filter")
        found: dict[str, list[str]] = {}
        for key, values in sent.items():
            if isinstance(values, dict):
                found[key] = [str(value) for value, wanted in values.items() if wanted]
            elif isinstance(values, list) and all(isinstance(value, str) for value in values):
                found[key] = values
            elif values is not None:
                raise InvalidInput("invalid filter")
        return {key: values for key, values in found.items() if values}

    async def json(self, *, any_type: bool = False) -> dict[str, Any]:
        """The body as an object, {} for none; keys as sent. any_type: whatever Content-Type says. Raises InvalidInput."""
        content = await self._body()
        if not content.strip():
            return {}
        kind = self.request.headers.get("Content-Type", "")
        if kind.partition(";")[0].strip().lower() != JSON_TYPE and not any_type:
            raise InvalidInput(f"unsupported Content-Type header ({kind[:80]}): must be 'application/json'")
        text = content.decode("utf-8", "replace")
        try:
            sent = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise InvalidInput(of_json(text, error)) from None
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"invalid JSON: {error}") from None
        if _HALF_PAIR.search(content):
            sent = _whole_characters(sent)
        if sent is None:
            return {}
        if not isinstance(sent, dict):
            raise InvalidInput("invalid JSON: an object is expected")
        return sent

    async def _body(self) -> bytes:
        content = bytearray()
        async for chunk in self.request.content.iter_any():
            content += chunk
            if len(content) > BODY_LIMIT:
                raise InvalidInput(f"request body is larger than {BODY_LIMIT} bytes")
        return bytes(content)

    def registry_auth(self) -> dict[str, Any]:
        """X-Registry-Auth; {} (anonymous) for none or nonsense, as in dockerd."""
        return _decoded(self.request.headers.get("X-Registry-Auth", ""))

    def registry_config(self) -> dict[str, Any]:
        """X-Registry-Config of a build: registry host -> credentials."""
        return _decoded(self.request.headers.get("X-Registry-Config", ""))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        found = {}
        for key, value in pairs:
            _put(found, key, value)
    return found


def _put(found: dict[str, Any], key: str, value: Any) -> None:
    """Of a key that is there twice the last wins, but two objects are one: Go's decoder fills the same struct again."""
    before = found.get(key)
    if isinstance(before, dict) and isinstance(value, dict):
        for inner, one in value.items():
            _put(before, inner, one)
    else:
        found[key] = value


def _no_number(word: str) -> Any:
    where = "in numeric literal" if word[0] == "-" else "looking for beginning of value"
    raise ValueError(f"invalid character '{word.lstrip('-')[0]}' {where}")


def _whole_characters(value: Any) -> Any:
    """A lone half of a surrogate pair becomes U+FFFD, as in Go."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_characters(one) for one in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(one) for key, one in value.items()}
    return value


def _decoded(text: str) -> dict[str, Any]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_")
        value = json.loads(raw or b"{}")
    except (ValueError, binascii.Error, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. pattern: `/images/{name:.+}/json`; a `{name}` without expression is one segment.

    cancellable: the handler ends when its client goes away. What reads always does; what changes something runs to its
    end unless it says so here.
    """

    method: str
    pattern: str
    handler: Handler
    cancellable: bool = False

    @property
    def ends_with_client(self) -> bool:
        """Whether a vanished client cancels the handler."""
        return self.cancellable or self.method in ("GET", "HEAD")

    def expression(self) -> re.Pattern[str]:
        """The pattern compiled, to be matched against a whole path."""
        parts = re.split(r"\{(\w+)(?::([^}]+))?\}", self.pattern)
        text = re.escape(parts[0])
        for name, inner, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            text += f"(?P<{name}>{inner or '[^/]+'})" + re.escape(literal)
        return re.compile(text, re.DOTALL)


class Router:
    """Every route by method and first path segment, in the order given: a suffix wins over a bare name."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._table: dict[tuple[str, str], list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            segment = route.pattern.split("/", 2)[1]
            self._table.setdefault((route.method, segment), []).append((route.expression(), route))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route of `path` (without version, percent-decoded), and its variables."""
        segments = path.split("/", 2)
        if len(segments) < 2:
            return None
        candidates = self._table.get((method, segments[1]), [])
        if method == "HEAD" and not candidates:
            candidates = self._table.get(("GET", segments[1]), [])
        for expression, route in candidates:
            if (match := expression.fullmatch(path)) is not None:
                return route, match.groupdict()
        return None


class TooOld(InvalidInput):
    """An API version from before the oldest one: its clients read errors as text."""


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """(version, rest) of `/v1.41/info`; the newest for a path without. Raises TooOld, InvalidInput outside what is spoken."""
    match = _VERSIONED.fullmatch(path)
    if match is None:
        return NEWEST, path
    text = f"{match[1]}.{match[2]}"
    try:
        version = version_pair(text)
    except ValueError:
        raise InvalidInput(f"invalid version: {text[:20]}") from None
    if version < OLDEST:
        raise TooOld(
            f"client version {text} is too old. Minimum supported API version is {MINIMUM_API_VERSION}, please upgrade your "
            "client to a newer version"
        )
    if version > NEWEST:
        raise InvalidInput(
            f"client version {text} is too new. Maximum supported API version is {API_VERSION}"
        )
    return version, match[3]


def json_reply(value: Any, status: int = 200) -> web.Response:
    """`value` as JSON, its media type without a charset: clients compare the whole header."""
    try:
        body = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # bytes in a name that are no text, or a number beyond 64 bits
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        body = text.encode("utf-8", "surrogateescape") + b"\n"
    return web.Response(status=status, body=body, headers={"Content-Type": JSON_TYPE})


def no_content() -> web.Response:
    """204."""
    return web.Response(status=204)
