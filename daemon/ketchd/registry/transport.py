"""One HTTP request to a registry: the connection pool, TLS, proxies, time limits, and failures in Go's words.

Knows nothing of authorisation, redirects and retries: those are the client's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from ketch_wire.faults import EngineFailure
from ketchd.dialling import UNDIALLED, reason
from ketchd.registry.caller import user_agent
from ketchd.registry.endpoints import Endpoint, Settings, proxy_for
from ketchd.registry.trust import Trust

CONNECT_SECONDS = 30.0
HEADER_SECONDS = 60.0
IDLE_SECONDS = 60.0
STORING_SECONDS = (
    600.0  # of silence after a body: registries on object storage copy a large blob before they answer
)
READ_BUFFER = 128 * 1024
_LINE_LIMIT = 64 * 1024


class Unreachable(EngineFailure):
    """No usable answer came: the message says why, as Go would. dialled: a connection had been made."""

    def __init__(self, message: str, *, dialled: bool) -> None:
        super().__init__(message)
        self.dialled = dialled


class Transport:
    """The daemon's connections to registries. Made inside the loop at the first request; `close` ends them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self.trust = Trust(settings.certificate_directories)

    async def open(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any = None,
        *,
        answer_seconds: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one request and return as soon as the answer's headers are there. The caller closes it.

        answer_seconds: the longest wait for the headers. Raises Unreachable. Cancelled: the connection is dropped.
        """
        context = await self.trust.context(endpoint) if url.startswith("https:") else None
        sent = {"User-Agent": user_agent(), "Accept-Encoding": "identity", **headers}
        try:
            request = self._open_session().request(
                method,
                URL(url, encoded=True),
                headers=sent,
                data=body,
                allow_redirects=False,
                ssl=context if context is not None else True,
                proxy=proxy_for(url, self._settings.environment),
                timeout=_timeout(IDLE_SECONDS if body is None else STORING_SECONDS),
            )
            if body is None:
                async with asyncio.timeout(CONNECT_SECONDS + (answer_seconds or HEADER_SECONDS)):
                    return await request
            return await request
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(reason(error), dialled=not isinstance(error, UNDIALLED)) from error

    async def close(self) -> None:
        """End every connection. May be called twice."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
                max_line_size=_LINE_LIMIT,
                max_field_size=_LINE_LIMIT,
            )
        return self._session


def _timeout(idle_seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=idle_seconds)
