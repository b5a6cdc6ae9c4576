"""`cp`: what goes where, and that a container's tar cannot leave the destination."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketch.commands.copies import split_argument
from ketch.copying import (
    Place,
    Target,
    absolute,
    extract,
    local_source,
    local_tar,
    local_target,
    place_archive,
    renamed,
)
from ketch.faults import CommandFailed
from ketch_testing.deep import deepen, depth


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("web:/a", ("web", "/a")),
        ("/a:b", ("", "/a:b")),
        ("./a:b", ("", "./a:b")),
        ("a", ("", "a")),
        ("web:", ("web", "")),
    ],
)
def test_arguments(text: str, split: tuple[str, str]) -> None:
    assert split_argument(text) == split


FILE, DIRECTORY, CONTENT = Place("/s/f", True, False), Place("/s/d", True, True), Place("/s/d/.", True, True)
THERE, NOWHERE = Place("/t/x", True, True), Place("/t/x", False, False)


@pytest.mark.parametrize(
    ("source", "target", "placed"),
    [
        (FILE, THERE, Target("/t/x", "f", "f")),
        (FILE, NOWHERE, Target("/t", "f", "x")),
        (FILE, Place("/t/x", True, False), Target("/t", "f", "x")),
        (DIRECTORY, THERE, Target("/t/x", "d", "d")),
        (DIRECTORY, NOWHERE, Target("/t", "d", "x")),
        (CONTENT, THERE, Target("/t/x", ".", ".")),
        (CONTENT, NOWHERE, Target("/t", ".", "x")),
    ],
)
def test_places(source: Place, target: Place, placed: Target) -> None:
    """The rules of docker's `cp`, one by one."""
    assert place_archive(source, target) == placed


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (DIRECTORY, Place("/t/x", True, False), "cannot copy directory"),
        (FILE, Place("/t/x/", False, False), "no such directory"),
    ],
)
def test_impossible_places(source: Place, target: Place, message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        place_archive(source, target)


def test_renaming() -> None:
    assert renamed("d/d/f", Target("/", "d", "x")) == "x/d/f"
    assert renamed("./f", Target("/", ".", "x")) == "x/f"
    assert renamed("d/f", Target("/", "d", "d")) == "d/f"


def packed(*entries: tarfile.TarInfo | tuple[str, bytes]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for one in entries:
            if isinstance(one, tarfile.TarInfo):
                tar.addfile(one)
            else:
                entry = tarfile.TarInfo(one[0])
                entry.size, entry.mtime = len(one[1]), 1000
                tar.addfile(entry, io.BytesIO(one[1]))
    content = buffer.getvalue()
    return iter([content[at : at + 1000] for at in range(0, len(content), 1000)])


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, to
    return entry


def directory(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, mode, 2000
    return entry


def test_unpacking(tmp_path: Path) -> None:
    parts = packed(
        directory("d", 0o750), ("d/f", b"hello"), link("d/l", "f"), link("d/h", "d/f", tarfile.LNKTYPE)
    )

    assert extract(parts, Target(str(tmp_path), "d", "x"), keep_owner=False) == 5

    made = tmp_path / "x"
    assert (made / "f").read_bytes() == b"hello" and os.readlink(made / "l") == "f"
    assert (made / "h").samefile(made / "f")
    assert (made / "f").stat().st_mtime == 1000 and made.stat().st_mtime == 2000
    assert made.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", b"x")],
        [("d/../../evil", b"x")],
        [link("d", "/OUTSIDE"), ("d/evil", b"x")],
        [link("d", "../outside"), ("d/evil", b"x")],
        [link("l", "/OUTSIDE/kept"), link("h", "l", tarfile.LNKTYPE)],
        [link("h", "../outside/kept", tarfile.LNKTYPE)],
    ],
)
def test_nothing_leaves_the_destination(
    tmp_path: Path, entries: list[tarfile.TarInfo | tuple[str, bytes]]
) -> None:
    """Names and links that lead outside are refused."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "kept").write_text("kept")
    for one in entries:
        if isinstance(one, tarfile.TarInfo):
            one.linkname = one.linkname.replace("/OUTSIDE", str(outside))

    with pytest.raises(CommandFailed):
        extract(packed(*entries), Target(str(inside), "x", "x"), keep_owner=False)

    assert not list(tmp_path.rglob("evil"))
    assert [one.name for one in outside.iterdir()] == ["kept"]
    assert (outside / "kept").stat().st_nlink == 1


def test_a_link_in_the_way_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").symlink_to(tmp_path / "target")

    extract(packed(("f", b"new")), Target(str(tmp_path / "d"), "f", "f"), keep_owner=False)

    assert (tmp_path / "target").read_text() == "kept"
    assert (tmp_path / "d" / "f").read_bytes() == b"new" and not (tmp_path / "d" / "f").is_symlink()


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("hello")
    (tmp_path / "link").symlink_to("d")

    assert local_source(absolute("link"), False).is_directory is False
    assert local_source(absolute("link"), True) == Place(str(tmp_path / "d"), True, True, "link")
    assert local_source(absolute("d/."), False).path == f"{tmp_path}/d/."
    with pytest.raises(CommandFailed, match="no such file or directory"):
        local_source(absolute("none"), False)
    with pytest.raises(CommandFailed, match="not a directory"):
        local_source(absolute("d/f/"), False)
    assert local_target(absolute("none")) == Place(f"{tmp_path}/none", False, False)
    with pytest.raises(CommandFailed, match="does not exist"):
        local_target(absolute("none/x"))


def test_a_directory_deeper_than_a_stack_goes_and_comes_back(deep_path: Path) -> None:
    """As far as a path can name it; the rest is said."""
    source = deep_path / "from"
    source.mkdir()
    deepen(source, 1500)
    (deep_path / "to").mkdir()
    parts = local_tar(local_source(str(source), follow=False), Target("/x", "from", "from"))
    extract(parts, Target(str(deep_path / "to"), "from", "from"), keep_owner=False)
    assert depth(deep_path / "to" / "from") == (1500, "text")

    deepen(source, 3000, "e")
    with pytest.raises(CommandFailed, match="file name too long"):
        list(local_tar(local_source(str(source), follow=False), Target("/x", "from", "from")))


def test_a_directory_goes_and_comes_back(tmp_path: Path) -> None:
    """What `cp` sends is what it can unpack."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_text("hello")
    (tmp_path / "d" / "l").symlink_to("e/f")
    source = local_source(str(tmp_path / "d"), False)
    parts = local_tar(source, place_archive(source, Place("/x/new", False, False)))

    (tmp_path / "out").mkdir()
    extract(parts, Target(str(tmp_path / "out"), "new", "new"), keep_owner=False)

    assert (tmp_path / "out" / "new" / "e" / "f").read_text() == "hello"
    assert os.readlink(tmp_path / "out" / "new" / "l") == "e/f"
