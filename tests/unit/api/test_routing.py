"""Routes, versions, query parameters and filters, as Docker's clients send them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from ketch_wire.faults import Fault, InvalidInput
from ketchd.api.routing import Call, Route, Router, split_version


async def handler(call: Call) -> Any:
    return call


ROUTES = [
    Route("GET", "/images/json", handler),
    Route("GET", "/images/{name:.+}/json", handler),
    Route("POST", "/images/{name:.+}/push", handler),
    Route("DELETE", "/images/{name:.+}", handler),
]


def call(query: str) -> Call:
    request = SimpleNamespace(rel_url=URL(f"/x?{query}"), headers={})
    return Call(cast(Any, request), {}, (1, 50))


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/images/json", None),
        ("GET", "/images/a/json", "a"),
        ("GET", "/images/docker.io/me/x:tag/json", "docker.io/me/x:tag"),
        ("POST", "/images/docker.io/me/x/push", "docker.io/me/x"),
        ("DELETE", "/images/a/b", "a/b"),
    ],
)
def test_a_suffix_wins_over_a_bare_name(method: str, path: str, name: str | None) -> None:
    found = Router(ROUTES).find(method, path)
    assert found is not None
    assert found[1].get("name") == name


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/images/json"), ("GET", "/nothing"), ("GET", ""), ("GET", "images")]
)
def test_unknown_routes_are_not_found(method: str, path: str) -> None:
    assert Router(ROUTES).find(method, path) is None


def test_versions_are_a_prefix() -> None:
    assert split_version("/v1.41/info") == ((1, 41), "/info")
    assert split_version("/info") == ((1, 50), "/info")
    assert split_version("/v1.22/images/json") == ((1, 22), "/images/json")


@pytest.mark.parametrize(
    ("version", "words"), [("1.10", "is too old"), ("1.99", "is too new"), ("1.4.1", "invalid version")]
)
def test_versions_outside_are_refused(version: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        split_version(f"/v{version}/info")


@pytest.mark.parametrize("text", ["", "0", "no", "False", "NONE"])
def test_false_is_spelled_in_five_ways(text: str) -> None:
    assert call(f"all={text}").query_bool("all") is False


@pytest.mark.parametrize("text", ["1", "True", "yes", "whatever"])
def test_everything_else_is_true(text: str) -> None:
    assert call(f"all={text}").query_bool("all") is True


@pytest.mark.parametrize("encoded", ['{"label":{"a=b":true,"c":true,"d":false}}', '{"label":["a=b","c"]}'])
def test_filters_come_as_map_or_list(encoded: str) -> None:
    assert call(str(URL("").with_query(filters=encoded).query_string)).filters() == {"label": ["a=b", "c"]}


@pytest.mark.parametrize("encoded", ["[", "[]", '{"a":1}', '"x"'])
def test_malformed_filters_are_refused(encoded: str) -> None:
    with pytest.raises(InvalidInput, match="invalid filter"):
        call(str(URL("").with_query(filters=encoded).query_string)).filters()


def test_an_empty_filter_parameter_is_none() -> None:
    assert call("filters=").filters() == {}


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=8),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=8,
    )
)
def test_filters_are_read_or_refused(sent: Any) -> None:
    """Whatever JSON comes: a mapping of lists of text, or a fault."""
    try:
        found = call(str(URL("").with_query(filters=json.dumps(sent)).query_string)).filters()
    except Fault:
        return
    assert all(isinstance(one, str) for values in found.values() for one in values)
