"""An answer's JSON: one line of UTF-8, and what the quick encoder refuses is written all the same."""

from __future__ import annotations

from typing import Any

import pytest

from ketchd.api.routing import json_reply


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"a": [1, None, True], "é": "ü"}, '{"a":[1,null,true],"é":"ü"}\n'.encode()),
        ({"name": b"\x80".decode(errors="surrogateescape")}, b'{"name":"\x80"}\n'),
        ({"limit": 1 << 70}, b'{"limit":1180591620717411303424}\n'),
        ([("a", 1)], b'[["a",1]]\n'),
    ],
    ids=["text", "a file's name that is no text", "more than 64 bits", "tuples"],
)
def test_what_is_written(value: Any, body: bytes) -> None:
    reply = json_reply(value)

    assert reply.body == body
    assert reply.headers["Content-Type"] == "application/json"
