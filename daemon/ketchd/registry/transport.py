"""One HTTP request to a registry: the connection pool, TLS, proxies, time limits, and failures in Go's words.

Knows nothing of authorisation, redirects and retries: those are the client's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from ketch_wire.faults import EngineFailure
from ketchd.registry.endpoints import Endpoint, Settings, proxy_for
from ketchd.registry.trust import Trust

USER_AGENT = "docker/28.2.2 ketch"
CONNECT_SECONDS = 30.0
HEADER_SECONDS = 60.0
IDLE_SECONDS = 60.0
READ_BUFFER = 512 * 1024
_LINE_LIMIT = 64 * 1024
_ADDRESS = re.compile(r"Connect call failed \('([^']+)', (\d+)")


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
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        try:
            request = self._open_session().request(
                method,
                URL(url, encoded=True),
                headers=sent,
                data=body,
                allow_redirects=False,
                ssl=context if context is not None else True,
                proxy=proxy_for(url, self._settings.environment),
            )
            if body is None:
                async with asyncio.timeout(CONNECT_SECONDS + (answer_seconds or HEADER_SECONDS)):
                    return await request
            return await request
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(reason(error), dialled=not isinstance(error, _UNDIALLED)) from error

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
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS
                ),
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
                max_line_size=_LINE_LIMIT,
                max_field_size=_LINE_LIMIT,
            )
        return self._session


_UNDIALLED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientProxyConnectionError,
    aiohttp.InvalidURL,
)


def reason(error: BaseException) -> str:
    """A failed connection or a broken answer, as Go words it: dockerd's users and scripts know these lines."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate_reason(error.certificate_error, error.host)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {error.host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return _tls_reason(error.os_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return _dial_reason(error)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "dial tcp: i/o timeout"
    if isinstance(error, (TimeoutError, aiohttp.ServerTimeoutError)):
        return "net/http: request canceled (Client.Timeout or context cancellation while the registry was silent)"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "unexpected EOF"
    if isinstance(error, ssl.SSLError):
        return _tls_reason(error)
    if isinstance(error, aiohttp.ClientOSError) and isinstance(error.__cause__, ssl.SSLError):
        return _tls_reason(error.__cause__)
    if isinstance(error, OSError) and error.errno:
        return _errno_words(error.errno)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"proxyconnect tcp: {error.status} {error.message}"
    if isinstance(error, aiohttp.ClientResponseError):
        return "net/http: HTTP/1.x transport connection broken: malformed HTTP response"
    return str(error)[:200] or type(error).__name__


def _dial_reason(error: aiohttp.ClientConnectorError) -> str:
    inner = error.os_error
    match = _ADDRESS.search(str(inner))
    place = f"{match[1]}:{match[2]}" if match else f"{error.host}:{error.port}"
    if isinstance(inner, ssl.SSLError):
        return _tls_reason(inner)
    if isinstance(inner, TimeoutError) or inner.errno == errno.ETIMEDOUT:
        return f"dial tcp {place}: i/o timeout"
    return f"dial tcp {place}: connect: {_errno_words(inner.errno or 0)}"


def _errno_words(number: int) -> str:
    return os.strerror(number).lower() if number else "connection failed"


def _certificate_reason(error: BaseException, host: str) -> str:
    prefix = "tls: failed to verify certificate: x509: "
    if isinstance(error, ssl.CertificateError):
        code = getattr(error, "verify_code", 0)
        if code in (62, 64):
            return f"{prefix}certificate is not valid for {host}"
        if code in (9, 10):
            return f"{prefix}certificate has expired or is not yet valid"
        if code in (2, 18, 19, 20, 21):
            return f"{prefix}certificate signed by unknown authority"
        return prefix + str(getattr(error, "verify_message", error))
    return prefix + str(error)[:200]


def _tls_reason(error: BaseException) -> str:
    text = (getattr(error, "reason", None) or str(error)).upper()
    if any(word in text for word in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")):
        return "http: server gave HTTP response to HTTPS client"
    if "ALERT" in text:
        words = text.partition("ALERT_")[2].split()[0].rstrip(")").lower().replace("_", " ")
        return f"remote error: tls: {words}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return _errno_words(error.errno)
    return f"tls: {str(error)[:200]}"
