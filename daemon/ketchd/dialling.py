"""A failed connection or a broken answer, as Go words it: dockerd's users and scripts know these lines."""

from __future__ import annotations

import errno
import os
import re
import ssl
from pathlib import Path

import aiohttp

from ketchd.model.address import is_address

_ADDRESS = re.compile(r"Connect call failed \('([^']+)', (\d+)")
# The failures before which no byte of the request went out: it may be sent again.
UNDIALLED = (
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
        return f"dial tcp: {unknown_host(error.host, _resolv_conf())}"
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


def unknown_host(name: str, resolv_conf: str) -> str:
    """A name that has no address. resolv_conf: the text of that file, whose first server was asked. Pure.

    Source: Go's net, dnsReadConfig and DNSError.
    """
    server = "127.0.0.1"  # resolv.conf(5): without any
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and is_address(words[1]):
            server = words[1]
            break
    place = f"[{server}]:53" if ":" in server else f"{server}:53"
    return f"lookup {name} on {place}: no such host"


def _resolv_conf() -> str:
    try:
        return Path("/etc/resolv.conf").read_text(errors="replace")
    except OSError:
        return ""


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
