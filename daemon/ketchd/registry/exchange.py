"""Exchange: authorised requests to registries, and what the daemon remembers of them between journeys.

A request is sent as far as is known; on 401 the challenge is answered once. Redirects of GET and HEAD are followed, without
credentials as soon as they leave the origin. Every other status of 400 and more is a `Refused`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from ketch_wire.faults import EngineFailure, Unauthorized
from ketchd.dialling import reason
from ketchd.registry import caller, endpoints, errors, retries, tokens
from ketchd.registry import challenge as challenges
from ketchd.registry.challenge import Challenge
from ketchd.registry.endpoints import Endpoint
from ketchd.registry.errors import Refused
from ketchd.registry.tokens import Credentials, Token, TokenCache
from ketchd.registry.transport import HEADER_SECONDS, Transport, Unreachable

_REDIRECTS = (301, 302, 303, 307, 308)
_HOPS = 10
TOKEN_SECONDS = 15.0
_Result = TypeVar("_Result")
Tell = Callable[[str], None]


@dataclass(slots=True)
class Request:
    """One request. url: without credentials. scopes: what a token must allow. body: makes it anew for every attempt."""

    endpoint: Endpoint
    method: str
    url: str
    scopes: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Any] | None = None
    answer_seconds: float | None = None


class NoCredentials(EngineFailure):
    """The registry wants a name and a password, and there are none."""

    WORDS = "no basic auth credentials"


class Exchange:
    """Shared by every journey. Holds tokens (no passwords), challenges, and which endpoints have spoken the protocol."""

    def __init__(self, transport: Transport, policy: retries.Policy) -> None:
        self._transport = transport
        self.policy = policy
        self._tokens = TokenCache()
        self._challenges: dict[str, Challenge] = {}
        self._spoken: set[str] = set()
        self.listing = asyncio.Lock()  # one list of referrers is changed at a time

    def has_spoken(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint has ever given an HTTP answer."""
        return endpoint.base in self._spoken

    @contextlib.asynccontextmanager
    async def send(self, request: Request, credentials: Credentials) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send `request` and have its answer, below 400, for the body's time.

        Raises Refused, Unreachable, Unauthorized, EngineFailure.
        """
        response = await self._answered(request, credentials)
        try:
            yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(_said(request, reason(error)), dialled=True) from error
        finally:
            # A body that was not read to its end would be read now, however long it is: close instead.
            if response.content.is_eof() or response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _answered(self, request: Request, credentials: Credentials) -> aiohttp.ClientResponse:
        own = credentials if request.endpoint.own else Credentials()
        known = self._challenges.get(request.endpoint.base)
        authorization = ""
        # A registry that wants a name for one thing may give another to anybody: without one, ask and see.
        if known is not None and (known.scheme != "basic" or own.basic):
            try:
                authorization = await self._authorization(request, known, request.scopes, own)
            except Unreachable:
                # Tokens may be had elsewhere by now: ask and see.
                self._challenges.pop(request.endpoint.base, None)
        response = await self._follow(request, authorization)
        if response.status == 401:
            body, offered = await _drain(response)
            again = await self._answer(request, own, authorization, challenges.prefer(offered))
            if not again:
                raise errors.refusal(401, body, offered)
            response = await self._follow(request, again)
        if response.status < 400:
            return response
        body, offered = await _drain(response)
        after = retries.retry_after(response.headers.get("Retry-After"), time.time())
        raise errors.refusal(response.status, body, offered, after)

    async def _answer(
        self, request: Request, own: Credentials, sent: str, challenge: Challenge | None
    ) -> str:
        """What to send instead of `sent`, which was refused; empty when there is nothing else."""
        if challenge is None:
            return ""
        scopes = list(request.scopes)
        if sent:
            # What was known is out of date: ask anew, for what the registry says too.
            self._tokens.drop(challenge, tokens.merge(scopes), own)
            scopes += challenge.parameters.get("scope", "").split()
        self._challenges[request.endpoint.base] = challenge
        authorization = await self._authorization(request, challenge, scopes, own)
        return "" if authorization == sent else authorization

    async def challenge(self, request: Request) -> Challenge | None:
        """What the registry asks for when nothing is shown; None when it asks for nothing.

        Raises Unreachable, Refused (another error than 401, or nothing that we could answer).
        """
        response = await self._follow(request, "")
        if response.status < 400:
            response.close()
            return None
        body, offered = await _drain(response)
        chosen = challenges.prefer(offered) if response.status == 401 else None
        if chosen is None:
            raise errors.refusal(response.status, body, offered)
        self._challenges[request.endpoint.base] = chosen
        return chosen

    async def _follow(self, request: Request, authorization: str) -> aiohttp.ClientResponse:
        """The answer to `request`, behind redirects if it is a GET or HEAD."""
        url = request.url
        meta = caller.meta_headers() if request.endpoint.own else {}
        headers = {**meta, **dict(request.endpoint.headers), **request.headers}
        if authorization:
            headers["Authorization"] = authorization
        for _ in range(_HOPS):
            inside = endpoints.same_origin(url, request.endpoint.base)
            sent = headers if inside else _without_secrets(headers, request.endpoint)
            body = request.body() if request.body is not None else None
            try:
                response = await self._transport.open(
                    request.endpoint if inside else _stranger(request.endpoint, url),
                    request.method, url, sent, body, answer_seconds=request.answer_seconds,
                )  # fmt: skip
            except Unreachable as fault:
                raise Unreachable(
                    self._explain(request, url, fault),
                    dialled=fault.dialled or self.has_spoken(request.endpoint),
                ) from fault
            if inside:
                self._spoken.add(request.endpoint.base)
            if response.status not in _REDIRECTS or request.method not in ("GET", "HEAD"):
                return response
            location = response.headers.get("Location", "")
            response.close()
            if not location:
                raise EngineFailure(f"{endpoints.shown(url)} redirects to nowhere")
            url = endpoints.follow(url, location)
        raise EngineFailure(
            f'{request.method.title()} "{endpoints.shown(request.url)}": stopped after {_HOPS} redirects'
        )

    def _explain(self, request: Request, url: str, fault: Unreachable) -> str:
        """dockerd asks for `/v2/` first, and its users know that line."""
        if not self.has_spoken(request.endpoint) and endpoints.same_origin(url, request.endpoint.base):
            return f'Get "{request.endpoint.base}/": {fault.message}'
        return f'{request.method.title()} "{endpoints.shown(url)}": {fault.message}'

    # -- authorisation

    async def _authorization(
        self, request: Request, challenge: Challenge, scopes: Sequence[str], credentials: Credentials
    ) -> str:
        """The Authorization header for what the registry asked for; empty when there is nothing to show."""
        if challenge.scheme == "basic":
            if credentials.basic:
                return credentials.basic
            if not request.endpoint.own:
                return ""
            raise NoCredentials(
                f'{request.method.title()} "{endpoints.shown(request.url)}": {NoCredentials.WORDS}'
            )
        if credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        wanted = tokens.merge(scopes)
        token = self._tokens.get(challenge, wanted, credentials, time.monotonic())
        if token is None:
            try:
                token = await self.fetch_token(request.endpoint, challenge, wanted, credentials)
            except Unauthorized as fault:
                raise Unauthorized(
                    f'{request.method.title()} "{endpoints.shown(request.url)}": {fault.message}'
                ) from fault
            self._tokens.put(challenge, wanted, credentials, token)
        return token.header

    async def fetch_token(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        scopes: Sequence[str],
        credentials: Credentials,
        *,
        offline: bool = False,
    ) -> Token:
        """Ask the token server of `challenge`. Raises Unauthorized, Unreachable, EngineFailure."""
        status, detail, name, content = 0, "", "", b""
        for wanted in tokens.requests(
            challenge, scopes, credentials, secure=endpoint.is_secure, offline=offline
        ):
            server = _stranger(endpoint, wanted.url)
            name = urlsplit(wanted.url).netloc.rpartition("@")[2]
            body = aiohttp.FormData(dict(wanted.form)) if wanted.form is not None else None
            try:
                response = await self._transport.open(
                    server, wanted.method, wanted.url, wanted.headers, body, answer_seconds=TOKEN_SECONDS
                )
            except Unreachable as fault:
                raise Unreachable(
                    f'{wanted.method.title()} "{endpoints.shown(wanted.url)}": {fault.message}', dialled=True
                ) from fault
            if response.status < 300:
                content = await read_bounded(response, tokens.ANSWER_LIMIT, "the token server's answer")
                return tokens.read_token(content, time.monotonic(), time.time_ns(), name)
            status = response.status
            content, _ = await _drain(response)
            after = retries.retry_after(response.headers.get("Retry-After"), time.time())
            refused = errors.refusal(status, content, retry_after=after)
            if status in retries.TRANSIENT:
                raise refused
            detail = refused.message if refused.code_name and refused.is_told else ""
            if status not in (404, 405):
                break
        raise tokens.denied(status, credentials, detail, name, content)

    # -- again

    async def persist(
        self,
        work: Callable[[], Awaitable[_Result]],
        *,
        tell: Tell | None = None,
        first_contact: bool = False,
    ) -> _Result:
        """Do `work`, again after a while when the registry had a passing trouble. Raises its last fault.

        first_contact: a connection that cannot be made at all is not tried twice.
        """
        failures = 0
        while True:
            try:
                return await work()
            except (Refused, Unreachable) as fault:
                failures += 1
                wait = self.wait_after(fault, failures, first_contact=first_contact)
                if wait is None:
                    raise told_when(fault) from fault.__cause__
            await self.pause(wait, tell)

    def wait_after(
        self,
        fault: Refused | Unreachable,
        failures: int,
        *,
        first_contact: bool = False,
        will_pass: bool = False,
    ) -> float | None:
        """Seconds until the next attempt, or None when there should be none. will_pass: the caller knows a way round the fault."""
        if isinstance(fault, Refused):
            if fault.http_status not in retries.TRANSIENT and not will_pass:
                return None
            return self.policy.wait(failures, random.random(), fault.retry_after)
        if first_contact and not fault.dialled:
            return None
        return self.policy.wait(failures, random.random())

    async def pause(self, seconds: float, tell: Tell | None) -> None:
        """Wait, and say so."""
        if tell is not None:
            tell(f"Retrying in {retries.seconds_words(seconds)}")
        await asyncio.sleep(seconds)


def told_when(fault: Refused | Unreachable) -> Refused | Unreachable:
    """A refusal that asks to wait says so to the user."""
    if isinstance(fault, Refused) and fault.retry_after is not None and "try again" not in fault.message:
        when = time.strftime("%H:%M:%S UTC", time.gmtime(time.time() + fault.retry_after))
        return Refused(
            f"{fault.message} (the registry asks to try again in {retries.seconds_words(fault.retry_after)}, at {when})",
            code=fault.code_name, http_status=fault.http_status, retry_after=fault.retry_after,
        )  # fmt: skip
    return fault


async def read_bounded(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """A small body, whole; the connection is free or closed afterwards.

    Raises EngineFailure when it is larger than `limit` bytes, Unreachable when it breaks off.
    """
    content = await _read(response, limit + 1)
    if len(content) > limit:
        raise EngineFailure(f"{what} is larger than {limit} bytes")
    return content


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The first `limit` bytes of a body at most; the rest is not waited for. Raises Unreachable when it breaks off."""
    content = bytearray()
    try:
        async with asyncio.timeout(HEADER_SECONDS):
            async for piece in response.content.iter_any():
                content += piece
                if len(content) >= limit:
                    break
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unreachable(
            f'{response.method.title()} "{endpoints.shown(str(response.url))}": {reason(error)}', dialled=True
        ) from error
    finally:
        response.close() if not response.content.at_eof() else response.release()
    return bytes(content[:limit])


async def _drain(response: aiohttp.ClientResponse) -> tuple[bytes, list[Challenge]]:
    """The body of an error, as far as it is of interest, and the challenges of its headers."""
    offered = challenges.parse(response.headers.getall("WWW-Authenticate", []))
    try:
        body = await _read(response, errors.BODY_LIMIT)
    except Unreachable:
        body = b""
    return body, offered


def _said(request: Request, why: str) -> str:
    return f'{request.method.title()} "{endpoints.shown(request.url)}": {why}'


def _without_secrets(headers: Mapping[str, str], endpoint: Endpoint) -> dict[str, str]:
    private = {"authorization", "cookie", *(name.lower() for name, _ in endpoint.headers)}
    return {
        name: value
        for name, value in headers.items()
        if name.lower() not in private and not name.lower().startswith(caller.META)
    }


def _stranger(endpoint: Endpoint, url: str) -> Endpoint:
    """Another host that the registry sends us to: its own certificates, verified unless the registry itself is not."""
    host = url.partition("://")[2].partition("/")[0].partition("?")[0]
    if host == endpoint.host or endpoints.same_origin(url, endpoint.base):
        return endpoint
    scheme = url.partition(":")[0]
    return Endpoint(f"{scheme}://{host}", host, verify=endpoint.verify, own=False)
