"""Build contexts: which files go, and the tar they go in."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch import contexts
from ketch.buildcontext import ContextTar
from ketch.faults import CommandFailed
from ketch.ignorefile import BadPattern, Ignore, read_lines
from ketch.tarwriting import File, header
from ketch_testing.deep import deepen


def members(parts: object) -> dict[str, tarfile.TarInfo]:
    content = b"".join(parts)  # type: ignore[arg-type]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {one.name: one for one in tar.getmembers()}


def content_of(parts: object, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:  # type: ignore[arg-type]
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    for directory in ("a/b", "node_modules/x", "empty"):
        (made / directory).mkdir(parents=True)
    for path in ("Dockerfile", "app.py", "a/x.txt", "a/b/y.py", "node_modules/x/z"):
        (made / path).write_text(path)
    return made


@pytest.mark.parametrize(
    ("lines", "out"),
    [
        ("node_modules", {"node_modules", "node_modules/x", "node_modules/x/z"}),
        ("**/*.py", {"app.py", "a/b/y.py"}),
        ("*.py", {"app.py"}),
        ("a\n!a/b", {"a/x.txt"}),
        ("a/*\n!a/x.txt", {"a/b", "a/b/y.py"}),
        ("# no\n\n /a/ ", {"a", "a/x.txt", "a/b", "a/b/y.py"}),
        ("?pp.py", {"app.py"}),
        ("[ab]pp.py", {"app.py"}),
        ("a/**", {"a/x.txt", "a/b", "a/b/y.py"}),
        ("**/y*", {"a/b/y.py"}),
        ("../x", set()),
        ("Dockerfile\n.dockerignore", set()),
        ("*\n!**/y.py", {"app.py", "a/x.txt", "node_modules", "node_modules/x", "node_modules/x/z", "empty"}),
    ],
)
def test_ignore_file(root: Path, lines: str, out: set[str]) -> None:
    """What stays at home. A directory above something that goes, goes; so do the Dockerfile and the list itself."""
    (root / ".dockerignore").write_text(lines)
    every = {str(path.relative_to(root)) for path in root.rglob("*")}

    assert set(members(contexts.from_directory(str(root), "").parts)) == every - out


@pytest.mark.parametrize("line", ["!", "[", "a[b"])
def test_bad_patterns_are_named(root: Path, line: str) -> None:
    (root / ".dockerignore").write_text(line)

    with pytest.raises(CommandFailed, match="error checking context"):
        contexts.from_directory(str(root), "")


@given(st.text("ab*?/!.\\[]", max_size=12), st.text("ab/", min_size=1, max_size=8))
def test_any_pattern_is_read_or_refused(line: str, path: str) -> None:
    try:
        ignore = Ignore(read_lines(line))
    except BadPattern:
        return
    ignore.ignores(path)


def test_all_is_roots_and_keeps_its_mode(root: Path) -> None:
    os.chown(root / "app.py", 1000, 1000) if os.geteuid() == 0 else None
    (root / "app.py").chmod(0o4755)
    (root / "link").symlink_to("app.py")
    (root / "hard").hardlink_to(root / "app.py")
    os.mkfifo(root / "fifo")

    found = members(ContextTar(str(root), Ignore([])))

    assert {(one.uid, one.gid, one.uname) for one in found.values()} == {(0, 0, "")}
    assert found["app.py"].mode == 0o4755
    assert found["link"].issym() and found["link"].linkname == "app.py"
    assert found["hard"].islnk() and found["hard"].linkname == "app.py"
    assert found["fifo"].isfifo() and found["empty"].isdir()
    assert list(found) == sorted(found)


def test_large_and_odd_names(tmp_path: Path) -> None:
    """Names that ustar has no room for, and bytes that are no text."""
    names = ["x" * 200, "ü.txt", os.fsdecode(b"\xff\xfe"), "d" * 90 + "/" + "e" * 90]
    (tmp_path / ("d" * 90)).mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"y" * 700)
    (tmp_path / "old").write_text("")
    os.utime(tmp_path / "old", (-5, -5))

    found = members(ContextTar(str(tmp_path), Ignore([])))

    assert set(found) == {*names, "d" * 90, "old"}
    assert all(found[name].size == 700 for name in names)
    assert found["old"].mtime == -5


@given(
    st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and b"/" not in name),
    st.integers(0, 1 << 40),
    st.integers(-(1 << 40), 1 << 40),
    st.integers(0, (1 << 32) - 1),
)
def test_headers_are_read_back(name: bytes, size: int, mtime: int, owner: int) -> None:
    made = header(name, File, 0o644, size, mtime, owner=(owner, owner))

    with tarfile.open(fileobj=io.BytesIO(made + bytes(1024)), errors="surrogateescape") as tar:
        read = tar.next()

    assert read is not None
    assert (os.fsencode(read.name), read.size, read.mtime, read.uid) == (name, size, mtime, owner)


def test_a_dockerfile_outside_is_added_and_kept_out_of_copies(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "Other"
    outside.write_text("FROM scratch\n")
    (root / ".dockerignore").write_text("node_modules\n")

    made = contexts.from_directory(str(root), str(outside))

    assert content_of(made.parts, made.dockerfile) == b"FROM scratch\n"
    assert content_of(made.parts, ".dockerignore").decode().splitlines() == [
        "node_modules", ".dockerignore", made.dockerfile,
    ]  # fmt: skip
    assert contexts.from_directory(str(root), str(outside)).dockerfile == made.dockerfile


def test_a_dockerfiles_own_ignore_file_counts_instead(root: Path) -> None:
    (root / ".dockerignore").write_text("a\n")
    (root / "Dockerfile.dockerignore").write_text("app.py\n")

    found = members(contexts.from_directory(str(root), "").parts)

    assert "a/x.txt" in found and "app.py" not in found


def test_standard_input() -> None:
    """A tar goes as it is; anything else is a Dockerfile."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    packed.seek(0)

    assert b"".join(contexts.from_stream(packed, "").parts) == packed.getvalue()
    made = contexts.from_stream(io.BytesIO(b"FROM scratch\n"), "")
    assert content_of(made.parts, made.dockerfile) == b"FROM scratch\n"
    with pytest.raises(CommandFailed, match="ambiguous Dockerfile source"):
        contexts.from_stream(io.BytesIO(b"FROM scratch\n"), "x")


@pytest.mark.parametrize(
    ("place", "dockerfile", "message"),
    [
        ("none", "", 'unable to prepare context: path "none" not found'),
        ("context/app.py", "", "context must be a directory"),
        ("context", "none", "unable to evaluate symlinks in Dockerfile path"),
    ],
)
def test_contexts_that_are_not_there(
    root: Path, monkeypatch: pytest.MonkeyPatch, place: str, dockerfile: str, message: str
) -> None:
    monkeypatch.chdir(root.parent)

    with pytest.raises(CommandFailed, match=message):
        contexts.open_context(place, dockerfile)


@pytest.mark.parametrize("lines", ["", "**/file\n", "d\n!d/d/d\n"])
def test_deeper_than_a_stack(deep_path: Path, lines: str) -> None:
    """What a path can name goes; what is deeper is said, without a defect's words."""
    deepen(deep_path, 1500)
    found = members(ContextTar(str(deep_path), Ignore(read_lines(lines))))
    assert len(found) == (1500 if lines.startswith("**") else 1501)

    deepen(deep_path, 3000, "e")
    with pytest.raises(CommandFailed, match="file name too long"):
        members(ContextTar(str(deep_path), Ignore(read_lines(lines))))


def test_a_file_that_shrinks_ends_the_build(root: Path) -> None:
    (root / "app.py").write_bytes(b"x" * 100)
    parts = ContextTar(str(root), Ignore([]))._parts()
    for part in parts:
        if part[:6] == b"app.py":
            break
    (root / "app.py").write_bytes(b"")

    with pytest.raises(CommandFailed, match="shrank while it was read"):
        list(parts)
