"""Registries' errors in dockerd's words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketchd.dialling import unknown_host
from ketchd.registry.challenge import Challenge
from ketchd.registry.errors import refusal


def body(code: str, message: str = "") -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}, {"code": "OTHER"}]}).encode()


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (404, body("MANIFEST_UNKNOWN", "manifest unknown"), "manifest unknown: manifest unknown"),
        (403, body("DENIED"), "denied: requested access to the resource is denied"),
        (401, body("UNAUTHORIZED"), "unauthorized: authentication required"),
        (401, b"", "unauthorized: authentication required"),
        (401, b"<html>", "unauthorized: authentication required"),
        (429, body("TOOMANYREQUESTS", "slow down"), "toomanyrequests: slow down"),
        (429, b"", "toomanyrequests: too many requests"),
        (500, b"", "received unexpected HTTP status: 500 Internal Server Error"),
        (502, b"<html>", "received unexpected HTTP status: 502 Bad Gateway"),
        (404, b"nope", 'error parsing HTTP 404 response body: not found: "nope"'),
        (403, b'{"details": "not you"}', "denied: not you"),
        (
            403,
            b"<html>\n<head><title>403\n Forbidden</title></head>",
            'error parsing HTTP 403 response body: forbidden: "403 Forbidden"',
        ),
        (
            401,
            b'{"details": "incorrect username or password"}',
            "unauthorized: incorrect username or password",
        ),
    ],
)
def test_wording(status: int, content: bytes, message: str) -> None:
    """The first error counts; without one the status speaks."""
    assert refusal(status, content).message == message


def test_oauth_errors_stand_in_the_challenge() -> None:
    """That is how Docker Hub says that a repository is private or absent."""
    asked = [Challenge("bearer", {"error": "insufficient_scope"})]

    assert refusal(401, body("UNAUTHORIZED"), asked).code_name == "DENIED"
    assert refusal(500, b"", asked).code_name == ""


@given(st.integers(400, 599), st.binary(max_size=200))
def test_any_answer_is_one_line(status: int, content: bytes) -> None:
    """Whatever a registry sends, a user reads one short line."""
    message = refusal(status, content).message

    assert "\n" not in message and 0 < len(message) < 2000


def test_a_message_is_made_one_line() -> None:
    """Line breaks and control characters do not reach a terminal."""
    assert refusal(400, body("X", "a\n\x1b[31mb")).message == "x: a [31mb"


@pytest.mark.parametrize(
    ("resolv_conf", "server"),
    [
        ("nameserver 192.0.2.7\nnameserver 192.0.2.8\n", "192.0.2.7:53"),
        ("# nameserver 192.0.2.1\nsearch a.example\nnameserver\nnameserver x\n nameserver 2001:db8::1\n", "[2001:db8::1]:53"),
        ("nameserver fe80::1%eth0\n", "[fe80::1%eth0]:53"),
        ("", "127.0.0.1:53"),
    ],
)  # fmt: skip
def test_a_name_without_address_names_who_was_asked(resolv_conf: str, server: str) -> None:
    """The first server of the host's resolv.conf, as Go's resolver tells it."""
    assert unknown_host("r.invalid", resolv_conf) == f"lookup r.invalid on {server}: no such host"
