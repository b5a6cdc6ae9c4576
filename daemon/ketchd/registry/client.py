"""RegistryClient: what journeys ask of registries: repositories, logins, searches. One per daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from ketch_wire.faults import EngineFailure, Unauthorized
from ketchd.model.reference import HUB, Reference
from ketchd.registry import endpoints, retries
from ketchd.registry.endpoints import HUB_INDEX, Endpoint, Settings
from ketchd.registry.errors import Refused
from ketchd.registry.exchange import Exchange, Request, Tell, read_bounded
from ketchd.registry.repository import Repository
from ketchd.registry.tokens import Credentials
from ketchd.registry.transport import Transport, Unreachable

_PING_SECONDS = 15.0
_RESOLVE_SECONDS = 10.0
_SEARCH_LIMIT = 4 * 1024 * 1024


class RegistryClient:
    """Shared by every journey; makes no connection before the first request. `close` ends them all."""

    def __init__(self, settings: Settings, *, policy: retries.Policy | None = None) -> None:
        self.settings = settings
        policy = policy or retries.Policy(attempts=settings.attempts)
        self._transport = Transport(settings)
        self.exchange = Exchange(self._transport, policy)

    def reload(self, settings: Settings) -> None:
        """Other settings for the journeys that begin from now on; those under way go on with the endpoints that they have.

        Certificate directories and environment stay as they were.
        """
        self.settings = settings
        self.exchange.policy = replace(self.exchange.policy, attempts=settings.attempts)

    async def close(self) -> None:
        """End every connection. May be called twice."""
        await self._transport.close()

    async def endpoints(self, domain: str, *, push: bool = False) -> list[Endpoint]:
        """The places to ask for a repository of `domain`, in order. Raises InvalidInput (a configuration file)."""
        hosts = await self._transport.trust.hosts(domain)
        insecure = await self._is_insecure(domain)
        found = endpoints.choose(domain, self.settings, hosts, insecure=insecure, push=push)
        # Of a registry that may be asked both ways, the way that worked is kept; TLS is never given up for plain text.
        for scheme in ("https:", "http:"):
            spoken = [
                endpoint
                for endpoint in found
                if endpoint.own and endpoint.base.startswith(scheme) and self.exchange.has_spoken(endpoint)
            ]
            if spoken:
                return [endpoint for endpoint in found if not endpoint.own or endpoint is spoken[0]]
        return found

    async def repository(
        self, reference: Reference, credentials: Credentials, *, push: bool = False, tell: Tell | None = None
    ) -> Repository:
        """The repository of `reference` as one journey sees it. tell: hears of waits (`Retrying in 5 seconds`)."""
        found = await self.endpoints(reference.domain, push=push)
        return Repository(self.exchange, reference, credentials, found, push=push, tell=tell)

    async def login(self, credentials: Credentials) -> str:
        """Check credentials with their server; returns an identity token if it gave one, else an empty text.

        Raises Unauthorized, Unreachable, EngineFailure, InvalidInput.
        """
        host = endpoints.server_host(credentials.server)
        last: Exception | None = None
        for endpoint in await self.endpoints(host, push=True):
            try:
                return await self._login(endpoint, credentials)
            except Unreachable as fault:
                last = fault
                if self.exchange.has_spoken(endpoint):
                    break
        raise last or EngineFailure(f"no endpoint is configured for {host}")

    async def _login(self, endpoint: Endpoint, credentials: Credentials) -> str:
        url = f"{endpoint.base}/"
        request = Request(endpoint, "GET", url, answer_seconds=_PING_SECONDS)
        challenge = await self.exchange.challenge(request)
        if challenge is None:
            return ""
        if challenge.scheme == "bearer":
            try:
                token = await self.exchange.fetch_token(endpoint, challenge, (), credentials, offline=True)
            except Unauthorized as fault:
                raise Unauthorized(f'Get "{url}": {fault.message}') from fault
            # The token itself must be good for the registry too.
            credentials, refresh = Credentials(registry_token=token.text), token.refresh
        else:
            refresh = ""
        try:
            async with self.exchange.send(request, credentials):
                return refresh
        except Refused as fault:
            if fault.http_status == 401 and challenge.scheme == "basic":
                raise Unauthorized(f"login attempt to {url} failed with status: 401 Unauthorized") from fault
            if fault.http_status in (401, 403):
                raise Unauthorized(f'Get "{url}": {fault.message}') from fault
            raise

    async def search(self, term: str, limit: int, credentials: Credentials) -> list[dict[str, Any]]:
        """What Docker Hub, or the registry that `term` names, finds: its rows as they come.

        Raises Refused, Unreachable, EngineFailure. Source: docker/index v1 search.
        """
        first, slash, rest = term.partition("/")
        host, words = HUB, term
        if slash and (first == "localhost" or "." in first or ":" in first):
            host, words = first, rest
        if host == HUB:
            found = [Endpoint(f"https://{HUB_INDEX}/v1", HUB)]
            words = words.removeprefix("library/")
        else:
            found = [
                Endpoint(endpoint.base.removesuffix("/v2") + "/v1", endpoint.host, endpoint.verify)
                for endpoint in await self.endpoints(host)
                if endpoint.own
            ]
        last: Exception | None = None
        for endpoint in found:
            url = f"{endpoint.base}/search?q={quote(words, safe='')}&n={limit}"
            request = Request(endpoint, "GET", url, headers={"X-Docker-Token": "true"})
            try:
                async with self.exchange.send(request, credentials) as response:
                    return _rows(await read_bounded(response, _SEARCH_LIMIT, "the search result"))
            except Refused as fault:
                raise EngineFailure(f"Unexpected status code {fault.http_status}") from fault
            except Unreachable as fault:
                last = fault
        raise last or EngineFailure(f"no endpoint is configured for {host}")

    async def _is_insecure(self, domain: str) -> bool:
        name = endpoints.hostname(domain)
        addresses: list[str] = []
        if domain != HUB and not name.replace(".", "").isdigit() and ":" not in name:
            with contextlib.suppress(OSError, TimeoutError, UnicodeError):
                async with asyncio.timeout(_RESOLVE_SECONDS):
                    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
                addresses = [str(entry[4][0]) for entry in found]
        return endpoints.is_insecure(domain, addresses, self.settings.insecure)


def _rows(content: bytes) -> list[dict[str, Any]]:
    try:
        results = json.loads(content)["results"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise EngineFailure("the search result cannot be read") from error
    return [row for row in results or () if isinstance(row, dict)]
