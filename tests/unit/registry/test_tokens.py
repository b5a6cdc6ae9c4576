"""Tokens: what is asked of which server, what its answer is worth, and where secrets never go."""

from __future__ import annotations

import base64
import functools
import json

import pytest

from ketch_wire.faults import EngineFailure, Unauthorized
from ketchd.registry import tokens
from ketchd.registry.challenge import Challenge
from ketchd.registry.tokens import Credentials, Token, TokenCache

CHALLENGE = Challenge("bearer", {"realm": "https://auth.example/token", "service": "reg.example"})
PLAIN = Challenge("bearer", {"realm": "http://auth.example/token", "service": "s"})
NOBODY, ME = Credentials(), Credentials("me", "p:w")
SCOPES = ("repository:a/b:pull",)


def test_an_auth_config_is_read_in_every_form() -> None:
    """Name and password, the joined form, an identity token under its own key or as a password."""
    joined = base64.b64encode(b"me:p:w\0\0").decode()

    assert Credentials.read({"username": "me", "password": "p:w"}) == ME
    assert Credentials.read({"auth": joined, "email": "x"}) == ME
    assert Credentials.read({"username": "<token>", "password": "t"}) == Credentials(identity_token="t")
    assert Credentials.read({"identitytoken": "t"}) == Credentials(identity_token="t")
    assert Credentials.read({"IdentityToken": "t", "ServerAddress": "h"}) == Credentials(
        identity_token="t", server="h"
    )
    assert Credentials.read({"registrytoken": "t"}).registry_token == "t"
    assert Credentials.read(None).is_anonymous and Credentials.read({"auth": "§", "username": 3}).is_anonymous


def test_secrets_are_not_printed() -> None:
    """In no log line and no traceback."""
    secret = Credentials("me", "sesame", "sesame", "sesame")

    assert "sesame" not in repr(secret) + repr(tokens.requests(CHALLENGE, SCOPES, secret, secure=True))
    assert "sesame" not in repr(Token("sesame", 1.0, "sesame"))


def test_anonymous_asks_without_authorization() -> None:
    """For what everybody may have."""
    (asked,) = tokens.requests(CHALLENGE, SCOPES, NOBODY, secure=True)

    assert asked.method == "GET" and not asked.headers
    assert asked.url == "https://auth.example/token?service=reg.example&scope=repository%3Aa%2Fb%3Apull"


def test_a_password_goes_as_basic_and_then_as_a_form() -> None:
    """The second for servers that know only OAuth 2."""
    first, second = tokens.requests(CHALLENGE, SCOPES, ME, secure=True, offline=True)

    assert first.headers == {"Authorization": "Basic " + base64.b64encode(b"me:p:w").decode()}
    assert "account=me" in first.url and "offline_token=true" in first.url and "client_id=docker" in first.url
    assert second.method == "POST" and second.form is not None
    assert second.form["grant_type"] == "password" and second.form["access_type"] == "offline"


def test_an_identity_token_is_exchanged() -> None:
    """By POST, with the scopes in one field."""
    (asked,) = tokens.requests(CHALLENGE, (*SCOPES, "b:c:pull"), Credentials(identity_token="t"), secure=True)

    assert asked.form == {
        "grant_type": "refresh_token",
        "refresh_token": "t",
        "client_id": "docker",
        "service": "reg.example",
        "scope": "repository:a/b:pull b:c:pull",
    }


def test_a_realm_with_a_query_keeps_it() -> None:
    """What is asked is appended."""
    (asked,) = tokens.requests(Challenge("bearer", {"realm": "https://a/t?x=1"}), SCOPES, NOBODY, secure=True)

    assert asked.url.startswith("https://a/t?x=1&scope=")


def test_secrets_do_not_go_to_a_realm_in_plain_text() -> None:
    """Unless the registry itself is reached unverified; and anonymous questions may."""
    assert tokens.requests(PLAIN, SCOPES, NOBODY, secure=True)
    assert tokens.requests(PLAIN, SCOPES, ME, secure=False)
    with pytest.raises(EngineFailure, match="plain text"):
        tokens.requests(PLAIN, SCOPES, ME, secure=True)


@pytest.mark.parametrize("realm", ["", "ftp://x/t", "/token", "javascript:alert(1)"])
def test_a_realm_must_be_a_url(realm: str) -> None:
    """Of a web server."""
    with pytest.raises(EngineFailure, match="invalid token server"):
        tokens.requests(Challenge("bearer", {"realm": realm}), SCOPES, NOBODY, secure=True)


def answer(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_an_answer_lives_as_long_as_it_says() -> None:
    """At least a minute, at most an hour, from when it was issued, less some slack."""
    wall = 1_700_000_000 * 10**9

    assert tokens.read_token(answer(token="t"), 1000, wall).expires == 1050
    assert tokens.read_token(answer(access_token="t", expires_in=300), 1000, wall).expires == 1290
    assert tokens.read_token(answer(token="t", expires_in=5), 1000, wall).expires == 1050
    assert tokens.read_token(answer(token="t", expires_in=10**9), 1000, wall).expires == 4590
    issued = answer(token="t", expires_in=300, issued_at="2023-11-14T22:12:20Z")  # a minute before
    assert tokens.read_token(issued, 1000, wall).expires == 1230
    wrong_clock = answer(token="t", expires_in=300, issued_at="2001-01-01T00:00:00Z")
    assert tokens.read_token(wrong_clock, 1000, wall).expires == 1290
    assert tokens.read_token(answer(token="t", refresh_token="r"), 0, wall).refresh == "r"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"token":3}', b'{"token":"a\\nb"}', b"[" * 100000])
def test_an_answer_without_a_usable_token_is_a_fault(content: bytes) -> None:
    """Not a header with a line break in it."""
    with pytest.raises(EngineFailure):
        tokens.read_token(content, 0, 0)


def test_a_refusal_says_why() -> None:
    """In the server's words, else in dockerd's with the server's name, its status and what it said."""
    denied = functools.partial(tokens.denied, server="auth.example:5001")
    told = denied(401, ME, "unauthorized: no", body=b"{}")
    assert isinstance(told, Unauthorized) and told.message == "unauthorized: no"
    own = denied(401, ME, "unauthorized: authentication required", body=b"{}")
    assert own.message == "unauthorized: incorrect username or password"
    empty = denied(401, NOBODY, "", body=b"")
    assert isinstance(empty, Unauthorized) and empty.message == (
        "unauthorized: authentication required (the token server auth.example:5001 answered 401 Unauthorized)"
    )
    page = denied(403, ME, "", body=b"<html><title>Blocked: by policy</title>")
    assert isinstance(page, EngineFailure)
    assert page.message == 'the token server auth.example:5001 answered 403 Forbidden: "Blocked: by policy"'
    odd = denied(400, ME, "denied: not you", body=b"<p>: x")
    assert odd.message == "the token server auth.example:5001 answered 400 Bad Request: denied: not you"


def test_scopes_are_stable() -> None:
    """Sorted, merged by resource, so that equal wants are equal keys."""
    assert tokens.scope("a/b", "push", "pull", "pull") == "repository:a/b:pull,push"
    assert tokens.merge(["repository:b:pull", "repository:a:push", "repository:a:pull", "junk"]) == (
        "repository:a:pull,push",
        "repository:b:pull",
    )


def test_the_cache_tells_wants_and_people_apart() -> None:
    """And forgets what has run out."""
    cache, token = TokenCache(), Token("t", 100.0)
    cache.put(CHALLENGE, SCOPES, ME, token)

    assert cache.get(CHALLENGE, SCOPES, ME, 99.0) is token
    assert cache.get(CHALLENGE, SCOPES, ME, 100.0) is None
    assert cache.get(CHALLENGE, SCOPES, NOBODY, 1.0) is None
    assert cache.get(CHALLENGE, ("repository:a/b:push",), ME, 1.0) is None
    assert cache.get(PLAIN, SCOPES, ME, 1.0) is None
    cache.drop(CHALLENGE, SCOPES, ME)
    cache.drop(CHALLENGE, SCOPES, ME)
    assert cache.get(CHALLENGE, SCOPES, ME, 1.0) is None
    for number in range(TokenCache.LIMIT + 10):
        cache.put(CHALLENGE, (f"r:{number}:pull",), ME, token)
    assert cache.get(CHALLENGE, ("r:0:pull",), ME, 1.0) is None
