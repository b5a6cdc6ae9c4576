"""WWW-Authenticate: real registries' headers, odd but legal ones, and anything at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketchd.registry.challenge import Challenge, parse, prefer

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            [HUB],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (['Basic realm="a \\"quoted\\" one"'], [Challenge("basic", {"realm": 'a "quoted" one'})]),
        (['BASIC Realm="x", charset="UTF-8"'], [Challenge("basic", {"realm": "x", "charset": "UTF-8"})]),
        (["Basic realm=plain"], [Challenge("basic", {"realm": "plain"})]),
        (['Basic , Bearer realm="r"'], [Challenge("basic"), Challenge("bearer", {"realm": "r"})]),
        (["Negotiate", "Basic realm=r"], [Challenge("negotiate"), Challenge("basic", {"realm": "r"})]),
        (["Negotiate abc==, Basic realm=r"], [Challenge("negotiate"), Challenge("basic", {"realm": "r"})]),
        (['Bearer realm = "r" , service = s'], [Challenge("bearer", {"realm": "r", "service": "s"})]),
        ([""], []),
        ([' ,, "'], []),
    ],
)
def test_headers_are_read(headers: list[str], expected: list[Challenge]) -> None:
    """Any case, any spacing, several a header, several headers."""
    assert parse(headers) == expected


def test_bearer_is_answered_before_basic() -> None:
    """Unless it names no place to ask."""
    basic, bearer = Challenge("basic", {"realm": "b"}), Challenge("bearer", {"realm": "https://t/"})

    assert prefer([basic, bearer]) is bearer
    assert prefer([basic, Challenge("bearer")]) is basic
    assert prefer([Challenge("digest")]) is None


@given(st.lists(st.text(max_size=200), max_size=3))
def test_nothing_breaks_the_reader(headers: list[str]) -> None:
    """Whatever a registry sends."""
    for challenge in parse(headers):
        assert challenge.scheme == challenge.scheme.lower() != ""


_VALUES = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=30)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z_-]{0,8}", fullmatch=True), _VALUES, max_size=4))
def test_quoted_values_come_back(parameters: dict[str, str]) -> None:
    """Commas, quotes and backslashes in a quoted value are the value's."""
    quoted = ",".join(
        f'{key}="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for key, value in parameters.items()
    )

    assert parse([f"Bearer {quoted}"]) == [Challenge("bearer", parameters)]
