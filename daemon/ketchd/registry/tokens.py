"""Credentials and tokens: what to ask a token server, and how long to keep its answer. Pure; time is passed in.

Source: distribution's spec/auth/{token,oauth,scope}.md; docker/cli's config file format.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from ketch_wire.faults import EngineFailure, InvalidInput, Unauthorized
from ketchd.model.times import parse_timestamp
from ketchd.registry.challenge import Challenge
from ketchd.registry.sayings import answered, said

CLIENT_ID = "docker"
ANSWER_LIMIT = 1024 * 1024
_SHORTEST_SECONDS = 60
_SLACK_SECONDS = 10
_LONGEST_SECONDS = 3600
_IDENTITY_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one request may show to one registry. Never printed, never sent to another host."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    @staticmethod
    def read(raw: Mapping[str, Any] | None) -> Credentials:
        """An AuthConfig of the Engine API (`X-Registry-Auth`, a config.json entry). Nonsense is anonymous."""
        found = {key.lower(): value for key, value in (raw or {}).items() if isinstance(value, str)}
        username, password = found.get("username", ""), found.get("password", "")
        if not username and not password and found.get("auth"):
            username, password = _split_auth(found["auth"])
        identity = found.get("identitytoken", "")
        if username == _IDENTITY_USER:
            username, password, identity = "", "", identity or password
        return Credentials(
            username, password, identity, found.get("registrytoken", ""), found.get("serveraddress", "")
        )

    @property
    def is_anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.username or self.password or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """The Authorization header's value; empty without a name and password."""
        if not (self.username or self.password):
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def key(self) -> str:
        """Tells credentials apart in a cache without keeping them there."""
        parts = (self.username, self.password, self.identity_token, self.registry_token)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _split_auth(text: str) -> tuple[str, str]:
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=None).decode().rstrip("\0")
    except (binascii.Error, ValueError):
        return "", ""
    username, _, password = decoded.partition(":")
    return username, password


def scope(path: str, *actions: str) -> str:
    """`repository:PATH:pull,push`: the actions sorted, each once."""
    return f"repository:{path}:{','.join(sorted(set(actions)))}"


def merge(scopes: Iterable[str]) -> tuple[str, ...]:
    """Scopes in a stable order, the actions of one resource together."""
    actions: dict[str, set[str]] = {}
    for item in scopes:
        resource, _, words = item.rpartition(":")
        if resource:
            actions.setdefault(resource, set()).update(word for word in words.split(",") if word)
    return tuple(f"{resource}:{','.join(sorted(actions[resource]))}" for resource in sorted(actions))


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request to a token server. form: the fields of a POST; None for a GET."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)


def requests(
    challenge: Challenge,
    scopes: Sequence[str],
    credentials: Credentials,
    *,
    secure: bool,
    offline: bool = False,
) -> list[TokenRequest]:
    """What to ask, the second only if the server does not know the first kind (404, 405).

    secure: the registry itself is verified; then nothing secret goes to a realm in plain text. offline: a login, which
    wants an identity token. Raises EngineFailure (the realm is no URL, or not safe for these credentials).
    """
    parts = urlsplit(challenge.realm)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise EngineFailure(f"the registry names an invalid token server {challenge.realm[:200]!r}")
    if parts.scheme == "http" and secure and not credentials.is_anonymous:
        raise EngineFailure(
            f"the registry asks for credentials to be sent to {parts.netloc} in plain text: refused"
        )
    service = challenge.parameters.get("service", "")
    if credentials.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
        return [_post(challenge.realm, form, service, scopes)]
    fields = [("service", service)] if service else []
    if credentials.username:
        fields.append(("account", credentials.username))
    if offline:
        fields += [("client_id", CLIENT_ID), ("offline_token", "true")]
    fields += [("scope", item) for item in scopes]
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in fields)
    url = challenge.realm + ("&" if parts.query else "?") + query if query else challenge.realm
    headers = {"Authorization": credentials.basic} if credentials.basic else {}
    wanted = [TokenRequest("GET", url, headers)]
    if credentials.basic:
        form = {"grant_type": "password", "username": credentials.username, "password": credentials.password}
        if offline:
            form["access_type"] = "offline"
        wanted.append(_post(challenge.realm, form, service, scopes))
    return wanted


def _post(realm: str, form: dict[str, str], service: str, scopes: Sequence[str]) -> TokenRequest:
    fields = {**form, "client_id": CLIENT_ID}
    if service:
        fields["service"] = service
    if scopes:
        fields["scope"] = " ".join(scopes)
    return TokenRequest("POST", realm, {}, fields)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token. expires: seconds on the clock that `read_token` was given. refresh: an identity token, or empty."""

    text: str = field(repr=False)
    expires: float
    refresh: str = field(default="", repr=False)

    @property
    def header(self) -> str:
        """The Authorization header's value."""
        return f"Bearer {self.text}"


def read_token(content: bytes, now: float, wall_ns: int, server: str = "") -> Token:
    """A token server's answer. now: monotonic seconds; wall_ns: the same moment since the epoch. server: host and port.

    Raises EngineFailure when it holds no token that can be sent.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineFailure(
            f'the token server {server} gave what is not JSON instead of a token: "{said(content)}"'
        ) from error
    text = _string(answer, "token") or _string(answer, "access_token")
    if not text:
        raise EngineFailure(
            f"the token server {server}: authorization server did not include a token in the response"
        )
    if not text.isascii() or not text.isprintable() or " " in text:
        raise EngineFailure(f"the answer of the token server {server} holds no usable token")
    life = answer.get("expires_in") or _SHORTEST_SECONDS
    if not isinstance(life, (int, float)) or isinstance(life, bool) or life < _SHORTEST_SECONDS:
        life = _SHORTEST_SECONDS
    life = min(float(life), _LONGEST_SECONDS)
    try:
        # A server whose clock is wrong must not make us keep a token longer than it said, nor drop it at once.
        age = (wall_ns - parse_timestamp(_string(answer, "issued_at"), wall_ns)) / 1e9
    except InvalidInput:
        age = 0.0
    if not 0 < age < life - _SLACK_SECONDS:
        age = 0.0
    return Token(text, now + life - age - _SLACK_SECONDS, _string(answer, "refresh_token"))


def _string(answer: Any, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    return value if isinstance(value, str) else ""


def denied(
    status: int, credentials: Credentials, detail: str, server: str, body: bytes
) -> Unauthorized | EngineFailure:
    """The fault of a token server that answered `status`. detail: what it said in the protocol's words, as `code: message`, or empty;
    else the line names the `server` (host and port) and shows what it said."""
    asked = f"the token server {server} answered "
    if status in (401, 403) and detail and detail != "unauthorized: authentication required":
        return Unauthorized(detail)
    if status == 401:
        why = "incorrect username or password" if not credentials.is_anonymous else "authentication required"
        return Unauthorized(
            f"unauthorized: {why}" if detail else f"unauthorized: {why} ({asked}{answered(status, body)})"
        )
    return EngineFailure(
        f"{asked}{answered(status, b'')}: {detail}" if detail else asked + answered(status, body)
    )


class TokenCache:
    """Tokens by what they were asked for. Bounded; holds no credentials."""

    LIMIT = 512

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str, tuple[str, ...], str], Token] = {}

    def get(
        self, challenge: Challenge, scopes: Sequence[str], credentials: Credentials, now: float
    ) -> Token | None:
        """A token that is still good at `now`."""
        token = self._tokens.get(_key(challenge, scopes, credentials))
        return token if token is not None and now < token.expires else None

    def put(
        self, challenge: Challenge, scopes: Sequence[str], credentials: Credentials, token: Token
    ) -> None:
        """Keep it."""
        if len(self._tokens) >= self.LIMIT:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[_key(challenge, scopes, credentials)] = token

    def drop(self, challenge: Challenge, scopes: Sequence[str], credentials: Credentials) -> None:
        """The registry did not take it. May be called twice."""
        self._tokens.pop(_key(challenge, scopes, credentials), None)


def _key(
    challenge: Challenge, scopes: Sequence[str], credentials: Credentials
) -> tuple[str, str, tuple[str, ...], str]:
    return (challenge.realm, challenge.parameters.get("service", ""), tuple(scopes), credentials.key)
