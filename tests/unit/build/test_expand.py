"""Expansion: the reference's table, and properties for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.build.expand import expand, expand_body, expand_words

ENV = {
    "A": "1",
    "SPACE": "two words",
    "EMPTY": "",
    "PATH": "/usr/bin:/bin",
    "FILE": "a.tar.gz",
    "ä": "umlaut",
}
PLAIN = st.text(st.characters(blacklist_characters="$'\"\\", blacklist_categories=["Cs"]))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$A", "1"), ("${A}", "1"), ("x${A}y$A", "x1y1"), ("$NONE", ""), ("$", "$"), ("$ x", "$ x"), ("a$", "a$"), ("$1", ""),
        ("${NONE:-w}", "w"), ("${EMPTY:-w}", "w"), ("${EMPTY-w}", ""), ("${NONE-w}", "w"), ("${A:+w}", "w"), ("${EMPTY:+w}", ""),
        ("${EMPTY+w}", "w"), ("${NONE:-${A}x}", "1x"), ("${NONE:-'}'}", "}"), ("${A:?m}", "1"),
        ("${FILE#*.}", "tar.gz"), ("${FILE##*.}", "gz"), ("${FILE%.*}", "a.tar"), ("${FILE%%.*}", "a"), ("${FILE%x}", "a.tar.gz"),
        ("${FILE/a/X}", "X.tar.gz"), ("${FILE//a/X}", "X.tXr.gz"), ("${FILE/?tar/}", "a.gz"), ("${FILE/\\*/x}", "a.tar.gz"),
        ("'$A'", "$A"), ('"$A"', "1"), ('"\\$A"', "$A"), ("\\$A", "$A"), ("\\a", "a"), ('"a\\b"', "a\\b"), ("'a\\b'", "a\\b"),
        ('"it\'s"', "it's"), ("a\\ b", "a b"), ("$ä", "umlaut"), ("$A-$A_", "1-"),
    ],
)  # fmt: skip
def test_table(text: str, wanted: str) -> None:
    """Dockerfile reference, "Environment replacement"."""
    assert expand(text, ENV) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${", "bad substitution"), ("${}", "bad substitution"), ("${:x}", "bad substitution"), ("${{x}", "bad substitution"),
        ("${A", "missing '}'"), ("${A:-x", "missing '}'"), ("${A/p", "missing '/' in ${}"), ("${A:#x}", "unsupported modifier (:#)"),
        ("'x", "single-quote"), ('"x', "double-quote"), ("${NONE:?gone}", "NONE: gone"), ("${NONE?}", "NONE: is not allowed to be unset"),
        ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
    ],
)  # fmt: skip
def test_faults(text: str, why: str) -> None:
    """Each says which text and why."""
    with pytest.raises(InvalidInput) as raised:
        expand(text, ENV)

    assert raised.value.message.startswith(f'failed to process "{text}"')
    assert why in raised.value.message


def test_words_split_after_expansion() -> None:
    """Unquoted blanks split, those of values too; quoted ones do not."""
    assert expand_words('$SPACE "$SPACE" a\\ b', ENV) == ["two", "words", "two words", "a b"]


def test_other_escape() -> None:
    """The escape directive's character escapes, and the backslash no longer does."""
    assert expand("`$A \\$A", ENV, "`") == "$A \\1"


def test_body_keeps_quotes() -> None:
    """In a heredoc quotes are text."""
    assert expand_body("\"$A\" '$A' \\$A \\n", ENV) == "\"1\" '1' $A \\n"


@given(PLAIN)
def test_plain_text_stays(text: str) -> None:
    """Without quotes, dollars and escapes nothing changes."""
    assert expand(text, ENV) == text


@given(PLAIN)
def test_quoted_text_stays(text: str) -> None:
    """Quotes come off, the inside stays."""
    assert expand(f"'{text}'", ENV) == expand(f'"{text}"', ENV) == text
    assert expand_words(f"'{text}'", ENV) == [text]


@given(st.text(st.sampled_from("$A{}:-+?#%/'\"\\ x*"), max_size=40))
def test_any_text_is_a_value_or_a_fault(text: str) -> None:
    """Nothing but InvalidInput, whatever is asked."""
    try:
        expand(text, ENV)
    except InvalidInput as fault:
        assert fault.message.startswith("failed to process")
