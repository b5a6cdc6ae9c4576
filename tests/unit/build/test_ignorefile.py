""".dockerignore: the documented rules, and properties against a plain model."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.build.ignorefile import compile_rules, has_wildcards, parse

NAME = st.text(st.sampled_from("ab."), min_size=1, max_size=2).filter(lambda name: name.strip(".") != "")
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)
PIECE = st.one_of(NAME, st.sampled_from(["*", "**", "?", "a*"]))
PATTERN = st.lists(PIECE, min_size=1, max_size=3).map("/".join)


@pytest.mark.parametrize(
    ("pattern", "left_out", "kept"),
    [
        ("node_modules", ["node_modules", "node_modules/a/b"], ["src/node_modules", "node_modules2"]),
        ("**/node_modules", ["node_modules/x", "src/a/node_modules"], ["src/node_modules2"]),
        ("*.md", ["a.md"], ["docs/a.md", "amd"]),
        ("**/*.md", ["a.md", "docs/b/a.md"], ["a.mdx"]),
        ("*/temp*", ["a/temporary", "a/temp/x"], ["temp", "a/b/temp"]),
        ("temp?", ["tempa"], ["temp", "tempab"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("a/**/b", ["a/b", "a/x/y/b", "a/b/c"], ["a/xb"]),
        ("[a-c]x", ["ax", "cx"], ["dx"]),
        ("[^a]x", ["bx"], ["ax"]),
        ("a\\*b", ["a*b"], ["axb"]),
        ("/rooted/", ["rooted", "rooted/x"], ["x/rooted"]),
        ("a+(b)|$", ["a+(b)|$"], ["aab"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_patterns(pattern: str, left_out: list[str], kept: list[str]) -> None:
    """One pattern."""
    rules = compile_rules(parse(pattern))

    assert [path for path in left_out if not rules.excludes(path)] == []
    assert [path for path in kept if rules.excludes(path)] == []


def test_the_last_match_decides() -> None:
    """`!` takes back, and may be taken back again."""
    rules = compile_rules(parse("*.md\n!README*.md\nREADME-secret.md\n"))

    assert [path for path in ("a.md", "README.md", "README-secret.md") if rules.excludes(path)] == [
        "a.md",
        "README-secret.md",
    ]
    assert rules.has_exceptions


def test_lines() -> None:
    """Comments at column 0, blanks trimmed, BOM and empty lines dropped."""
    assert parse("\ufeff# note\r\n\n  a/./b/ \n #x\n! /c\n") == ["a/b", "#x", "!c"]


@pytest.mark.parametrize("text", ["!", "[", "a[b", "a\\", "[z-"])
def test_malformed(text: str) -> None:
    """A malformed pattern is a fault, not a rule that never matches."""
    with pytest.raises(InvalidInput):
        compile_rules(parse(text))


@given(st.lists(st.tuples(st.booleans(), PATH), max_size=5), PATH)
def test_plain_paths_follow_the_model(rules: list[tuple[bool, str]], path: str) -> None:
    """Without wildcards: the last rule that names the path or a directory above it."""
    expected = False
    for negated, rule in rules:
        if path == rule or path.startswith(rule + "/"):
            expected = not negated
    patterns = [("!" if negated else "") + rule for negated, rule in rules]

    assert compile_rules(patterns).excludes(path) is expected


def model(pattern: list[str], path: list[str]) -> bool:
    """Component by component: `**` is any number of components, the last one at least one."""
    if not pattern:
        return not path
    head, *rest = pattern
    if head == "**":
        if not rest:
            return bool(path)
        return any(model(rest, path[skip:]) for skip in range(len(path) + 1))
    if not path:
        return False
    glob = re.escape(head).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(glob, path[0]) is not None and model(rest, path[1:])


@given(PATTERN, PATH)
def test_wildcards_follow_the_model(pattern: str, path: str) -> None:
    """With wildcards: some prefix of the path matches by components."""
    parts = path.split("/")
    expected = any(model(pattern.split("/"), parts[:length]) for length in range(1, len(parts) + 1))

    assert compile_rules(parse(pattern)).excludes(path) is expected


def test_has_wildcards() -> None:
    """Escaped ones are none."""
    assert [text for text in ("a*", "a?", "[a]", "a\\*", "a") if has_wildcards(text)] == ["a*", "a?", "[a]"]
