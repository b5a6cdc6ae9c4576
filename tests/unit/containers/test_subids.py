"""/etc/subuid and /etc/subgid, and what `--userns-remap` means by a word."""

from __future__ import annotations

import pytest

from ketch_wire.faults import InvalidInput
from ketchd.containers.subids import IdMap, extents, free_start, has_range, split

TEXT = "# comment\nalice:100000:65536\n1001:300000:10\nalice:500000:20\nbroken\nbob:x:1\nbob:5:0\n"


def test_ranges_follow_each_other_inside() -> None:
    assert extents(TEXT, "f", "alice", 1000) == ((0, 100000, 65536), (65536, 500000, 20))


def test_by_number() -> None:
    assert extents(TEXT, "f", "carol", 1001) == ((0, 300000, 10),)


@pytest.mark.parametrize("name", ["bob", "dave"])
def test_no_range(name: str) -> None:
    with pytest.raises(
        InvalidInput,
        match=f"no subordinate ids for {name} in /etc/subuid: add a line such as {name}:100000:65536",
    ):
        extents(TEXT, "/etc/subuid", name, 7)


def test_the_same_ids_twice() -> None:
    """The kernel takes no map that overlaps."""
    with pytest.raises(InvalidInput, match="the same ids twice: 150000:10"):
        extents("eve:100000:65536\neve:150000:10\n", "/etc/subuid", "eve", 7)


def test_the_host_s_root_is_no_subordinate_id() -> None:
    with pytest.raises(InvalidInput, match="cannot be a subordinate id"):
        extents("eve:0:65536\n", "/etc/subuid", "eve", 7)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [("default", ("dockremap", "dockremap")), ("a", ("a", "a")), ("a:b", ("a", "b")), ("1:2", ("1", "2"))],
)
def test_words(setting: str, wanted: tuple[str, str]) -> None:
    assert split(setting) == wanted


@pytest.mark.parametrize("setting", [":", "a:", ":b", "a:b:c"])
def test_bad_words(setting: str) -> None:
    with pytest.raises(InvalidInput, match="default, USER or USER:GROUP is expected"):
        split(setting)


def test_root() -> None:
    assert IdMap(((0, 5, 1),), ((0, 6, 1),)).root == (5, 6)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", 100000), ("a:100000:65536\n", 165536), ("a:1:99999\n", 100000), ("a:1:100000\n", 100001),
        ("b:165536:65536\na:100000:65536\n", 231072), ("a:160000:10\n", 160010), ("a:300000:65536\n", 100000), ("broken\n", 100000),
    ],
)  # fmt: skip
def test_free_ids(text: str, start: int) -> None:
    assert free_start(text) == start


def test_who_has_ids() -> None:
    assert has_range(TEXT, "alice", 1000) and has_range(TEXT, "carol", 1001)
    assert not has_range(TEXT, "bob", 7) and not has_range(TEXT, "dave", 8)
