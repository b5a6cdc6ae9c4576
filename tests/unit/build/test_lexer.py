"""The lexer's promises for any text, and how lines join."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.build import instructions, lexer


@given(st.text(st.sampled_from("FROM RUN\nCOPY \\#<<EOF'\"$[]=-\t`!x1"), max_size=120))
def test_any_text_is_lines_or_a_fault(text: str) -> None:
    """Nothing but InvalidInput; lines stand in order and do not overlap."""
    try:
        source = lexer.read(text)
        instructions.parse(source)
    except InvalidInput:
        return
    numbers = [line.place.number for line in source.lines]
    assert numbers == sorted(set(numbers))
    assert all(line.place.number <= line.end for line in source.lines)


@given(
    st.lists(st.text(st.sampled_from("ab c"), min_size=1).map(str.strip).filter(bool), min_size=1, max_size=5)
)
def test_continuations_join(parts: list[str]) -> None:
    """Where a line is broken changes nothing, comments and blank lines between included."""
    whole = lexer.read("RUN " + " ".join(parts)).lines[0]
    broken = lexer.read("RUN " + " \\\n# note\n".join(parts)).lines[0]

    assert broken.text == whole.text
    assert broken.end == 2 * len(parts) - 1


def test_too_long_a_line() -> None:
    """dockerd's limit."""
    with pytest.raises(InvalidInput, match="greater than max allowed size of 65535"):
        lexer.read("FROM busybox\nRUN " + "x" * 70000)


def test_crlf_and_bom() -> None:
    """Windows' editors are welcome."""
    source = lexer.read("\ufeffFROM busybox\r\nRUN <<EOF\r\na\r\nEOF\r\n")

    assert [line.text for line in source.lines] == ["FROM busybox", "RUN <<EOF"]
    assert source.lines[1].heredocs[0].content == "a\n"


def test_an_escaped_escape_does_not_continue() -> None:
    """Two backslashes at the end are text."""
    assert [line.text for line in lexer.read("RUN a\\\\\nRUN b").lines] == ["RUN a\\\\", "RUN b"]
