"""What a server said, as a few words on one line; and how ours says for whom it asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketchd.registry.caller import USER_AGENT, described
from ketchd.registry.sayings import answered, said


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ""),
        (b" \r\n", ""),
        (b"no such user\n here\n", "no such user here"),
        (b"<!DOCTYPE html>\n<html><head><title>Log in &amp; go</title></head><body>x</body>", "Log in & go"),
        (b"<html><style>b{}</style><body><h1>Go</h1> away<!-- x --></body>", "Go away"),
        (b"<HTML><title> </title><p>Nothing here", "Nothing here"),
        (b'{"message": "account suspended"}', "account suspended"),
        (b'{"error": "invalid_grant", "error_description": "bad"}', "invalid_grant: bad"),
        (b"[1]", "[1]"),
        (b"a\x1b[31mb\xff", "a [31mb\ufffd"),
        (b"A" * 5000, "A" * 199 + "…"),
    ],
)
def test_the_gist(body: bytes, words: str) -> None:
    """A page's title, the words of JSON, or the text itself."""
    assert said(body) == words


def test_an_answer_in_a_sentence() -> None:
    """With its phrase where it has one."""
    assert answered(403, b"") == "403 Forbidden"
    assert answered(403, b"no\n") == '403 Forbidden: "no"'
    assert answered(599, b"") == "599"


@given(st.binary(max_size=600))
def test_any_body_is_one_short_line(body: bytes) -> None:
    """Nothing that a terminal would act on."""
    words = said(body)

    assert len(words) <= 200 and all(character.isprintable() for character in words)


@pytest.mark.parametrize(
    ("client", "header"),
    [
        ("", USER_AGENT),
        ("Docker-Client/28.2.2 (linux)", rf"{USER_AGENT} UpstreamClient(Docker-Client/28.2.2 \(linux\))"),
        ("a;b\\c", USER_AGENT + r" UpstreamClient(a\;b\\c)"),
        ("x\x01\udcffy\tz", f"{USER_AGENT} UpstreamClient(x\ufffdy\tz)"),
    ],
)
def test_the_client_is_named_in_a_comment(client: str, header: str) -> None:
    """Which it cannot end. Source: moby's dockerversion/useragent_test.go."""
    assert described(client) == header
