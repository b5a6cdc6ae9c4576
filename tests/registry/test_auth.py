"""Authentication against Debian's docker-registry: htpasswd, tokens of a server of our own, identity tokens, logins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientResponse
from registry.conftest import Engine, need

from ketch_testing.machine import free_port, registry
from ketch_testing.rooms import image_of, layer_of
from ketch_testing.tokenserver import TokenServer
from ketch_wire.faults import EngineFailure, Fault, NotFound, Unauthorized
from ketchd.registry.exchange import Request
from ketchd.registry.tokens import Credentials

ME, WRONG, NOBODY = Credentials("me", "sesame"), Credentials("me", "wrong"), Credentials()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """docker-registry with htpasswd."""
    need("docker-registry", "htpasswd")
    with registry(tmp_path / "registry", users={"me": "sesame"}) as host:
        yield host


@pytest.fixture
async def built(engine: Engine) -> AsyncIterator[Engine]:
    """An engine with a small image, `built:latest`."""
    layer = await layer_of(engine.rooms, {"a": b"content"})
    await image_of(engine.rooms, [layer], "built:latest")
    yield engine


def named(engine: Engine, name: str) -> str:
    engine.tag(engine.rooms.images.resolve("built:latest"), name)
    return name


async def test_basic(built: Engine, guarded: str) -> None:
    """Right, wrong and no credentials, for push, pull and login."""
    name = named(built, f"{guarded}/me/app:1")

    with pytest.raises(EngineFailure, match=r"^no basic auth credentials$"):
        await built.push(name)
    with pytest.raises(Unauthorized, match="unauthorized: authentication required"):
        await built.push(name, WRONG)
    await built.push(name, ME)
    with pytest.raises(EngineFailure) as caught:
        await built.pull(name)
    assert caught.value.message == (
        f'Head "http://{guarded}/v2/me/app/manifests/1": no basic auth credentials'
    )
    with pytest.raises(EngineFailure, match="unauthorized: authentication required"):
        await built.pull(name, WRONG)
    await built.pull(name, ME)
    login = built.rooms.registry.login
    assert await login(replace(ME, server=guarded)) == ""
    assert await login(replace(ME, server=f"https://{guarded}/v1/")) == ""
    with pytest.raises(Unauthorized) as refused:
        await login(replace(WRONG, server=guarded))
    attempt = f"login attempt to http://{guarded}/v2/ failed with status: 401 Unauthorized"
    assert refused.value.message == attempt


async def test_a_token_server_that_moved(built: Engine, tokened: str, tokens: TokenServer) -> None:
    """Nobody answers where tokens were had: the registry knows where they are had now."""
    name = named(built, f"{tokened}/me/app:1")
    await built.push(name, ME)
    exchange = built.rooms.registry.exchange
    for base, known in exchange._challenges.items():
        gone = {**known.parameters, "realm": f"http://127.0.0.1:{free_port()}/token"}
        exchange._challenges[base] = replace(known, parameters=gone)
    asked = len(tokens.asked)
    await built.pull(name, ME)
    assert len(tokens.asked) > asked
    with pytest.raises(Unauthorized) as refused:
        await built.push(name, WRONG)
    assert refused.value.message == "unauthorized: incorrect username or password"


async def test_tokens(built: Engine, tokened: str, tokens: TokenServer) -> None:
    """Asked for what is needed, kept for the next request, never the password to the registry."""
    name = named(built, f"{tokened}/me/app:1")

    await built.push(name, ME)
    assert [asked.scopes for asked in tokens.asked] == [["repository:me/app:pull,push"]]
    await built.pull(name, ME)
    assert tokens.asked[-1].scopes == ["repository:me/app:pull"] and tokens.asked[-1].user == "me"
    count = len(tokens.asked)
    await built.pull(name, ME)
    assert len(tokens.asked) == count

    with pytest.raises(Fault, match="unauthorized: incorrect username or password"):
        await built.pull(name, WRONG)
    with pytest.raises(NotFound) as caught:
        await built.pull(name)
    assert caught.value.message.startswith(
        f"pull access denied for {tokened}/me/app, repository does not exist or may require 'docker login': denied: "
    )


async def test_anybody_may_pull_what_is_public(built: Engine, tokened: str, tokens: TokenServer) -> None:
    """With an anonymous token."""
    await built.push(named(built, f"{tokened}/open/app:1"), ME)

    await built.pull(f"{tokened}/open/app:1")

    assert tokens.asked[-1].user == ""
    with pytest.raises(EngineFailure, match="denied"):
        await built.push(f"{tokened}/open/app:1")


async def test_a_mount_asks_for_both_repositories(built: Engine, tokened: str, tokens: TokenServer) -> None:
    """Push of the one, pull of the other."""
    await built.push(named(built, f"{tokened}/me/app:1"), ME)
    await built.push(named(built, f"{tokened}/me/other:1"), ME)

    assert any(status == "Mounted from me/app" for status in built.statuses())
    assert any(
        asked.scopes == ["repository:me/app:pull", "repository:me/other:pull,push"] for asked in tokens.asked
    )


async def test_identity_tokens(built: Engine, tokened: str, tokens: TokenServer) -> None:
    """A login gets one; it stands for the password afterwards."""
    identity = await built.rooms.registry.login(replace(ME, server=tokened))
    assert identity in tokens.refresh_tokens
    shown = Credentials.read({"username": "<token>", "password": identity})
    name = named(built, f"{tokened}/me/app:1")

    await built.push(name, shown)

    assert tokens.asked[-1].grant == "refresh_token" and tokens.asked[-1].method == "POST"
    with pytest.raises(
        Unauthorized, match=r'^Get "http://.*/v2/": unauthorized: incorrect username or password$'
    ):
        await built.rooms.registry.login(replace(WRONG, server=tokened))


async def test_a_ready_token_is_used_as_it_is(built: Engine, tokened: str, tokens: TokenServer) -> None:
    """`registrytoken`: nobody is asked."""
    name = named(built, f"{tokened}/me/app:1")
    await built.push(name, ME)
    from ketch_testing.tokenserver import Asked

    token = tokens.answer(Asked("GET", "me", ["repository:me/app:pull"]), offline=False)["token"]
    count = len(tokens.asked)

    await built.pull(name, Credentials(registry_token=token))

    assert len(tokens.asked) == count


async def test_a_token_that_ran_out_is_replaced(built: Engine, tokened: str, tokens: TokenServer) -> None:
    """The registry says 401; one new token is fetched and the request is sent again."""
    name = named(built, f"{tokened}/me/app:1")
    await built.push(name, ME)
    await built.pull(name, ME)
    cache = built.rooms.registry.exchange._tokens._tokens
    for key, token in list(cache.items()):
        cache[key] = replace(token, text="out.of.date")
    count = len(tokens.asked)

    await built.pull(name, ME)

    assert len(tokens.asked) == count + 1


async def test_a_token_that_runs_out_during_a_push_is_replaced(
    built: Engine, tokened: str, tokens: TokenServer
) -> None:
    """Between any two requests, also where a body has to be sent again."""
    name = named(built, f"{tokened}/me/app:1")
    cache = built.rooms.registry.exchange._tokens._tokens
    sent = built.rooms.registry.exchange._follow
    methods: list[str] = []

    async def spoiling(request: Request, authorization: str) -> ClientResponse:
        if (
            request.method != "GET"
            and not authorization.endswith("out.of.date")
            and request.method not in methods
        ):
            methods.append(request.method)
            authorization = "Bearer out.of.date"
            for key, token in list(cache.items()):
                cache[key] = replace(token, text="out.of.date")
        return await sent(request, authorization)

    built.rooms.registry.exchange._follow = spoiling  # type: ignore[method-assign]
    await built.push(name, ME)

    assert set(methods) == {"HEAD", "POST", "PUT"}
    await built.pull(name, ME)
