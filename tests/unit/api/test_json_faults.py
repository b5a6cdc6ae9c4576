"""A body that is no JSON is told in the words of Go's decoder."""

from __future__ import annotations

import json

import pytest

from ketchd.api.jsonfaults import of_json

CASES = {
    "{invalid": "invalid character 'i' looking for beginning of object key string",
    '{"a" 1}': "invalid character '1' after object key",
    '{"a":1 "b"}': "invalid character '\"' after object key:value pair",
    '{"a":"]" [}': "invalid character '[' after object key:value pair",
    '{"a":[1 2]}': "invalid character '2' after array element",
    '[{"a":[]} }': "invalid character '}' after array element",
    '{"a":1,}': "invalid character '}' looking for beginning of object key string",
    "[1,]": "invalid character ']' looking for beginning of value",
    "{\"a\":'x'}": "invalid character '\\'' looking for beginning of value",
    '{"a":tru}': "invalid character '}' in literal true (expecting 'e')",
    '{"a":nil}': "invalid character 'i' in literal null (expecting 'u')",
    '{"a":"\n"}': "invalid character '\\n' in string literal",
    '{"a":"\\q"}': "invalid character 'q' in string escape code",
    '{"a":"\\u1x"}': "invalid character 'x' in \\u hexadecimal character escape",
    '{"a":-}': "invalid character '}' in numeric literal",
    "{ -1}": "invalid character '-' looking for beginning of object key string",
    "[1.]": "invalid character ']' after decimal point in numeric literal",
    "[1.5.2]": "invalid character '.' after array element",
    "[-1e+]": "invalid character ']' in exponent of numeric literal",
    "[1.5E]": "invalid character ']' in exponent of numeric literal",
    "[1 e]": "invalid character 'e' after array element",
    "[01]": "invalid character '1' after array element",
    '{"a": 1.': "unexpected EOF",
    '{"a": -': "unexpected EOF",
    '{"a": "\\u1': "unexpected EOF",
    "{": "unexpected EOF",
    '{"a": ': "unexpected EOF",
    '{"a": 1': "unexpected EOF",
    '{"a":"x': "unexpected EOF",
    '{"a": fal': "unexpected EOF",
}


@pytest.mark.parametrize("text", CASES)
def test_a_syntax_fault_has_gos_words(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    assert of_json(text, caught.value) == f"invalid JSON: {CASES[text]}"


def test_more_than_one_document() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{} {}")
    assert of_json("{} {}", caught.value) == "unexpected content after JSON"
