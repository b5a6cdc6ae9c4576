"""What the entering code decides without the kernel: mount options, the program along PATH, HOME, failures."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ketchd.kernel import detached
from ketchd.sandbox.entermounts import MountOptions
from ketchd.sandbox.failures import LaunchError, as_launch_error
from ketchd.sandbox.lookup import find_program, value_of, with_home
from ketchd.sandbox.targets import place, without_links


def test_words_go_to_whom_they_are_for() -> None:
    options = MountOptions(
        ("nosuid", "ro", "rbind", "rslave", "size=64m", "mode=1777", "newinstance", "strictatime")
    )

    assert options.add == (
        detached.MOUNT_ATTR_NOSUID | detached.MOUNT_ATTR_RDONLY | detached.MOUNT_ATTR_STRICTATIME
    )
    assert options.clear == detached.MOUNT_ATTR_ATIME
    assert options.recursive and options.deep_propagation and options.propagation == detached.MS_SLAVE
    assert options.to_filesystem == [("size", "64m"), ("mode", "1777"), ("newinstance", None)]


@pytest.mark.parametrize(
    ("words", "readonly"), [(("ro", "rw"), False), (("rw", "ro"), True), (("ro",), True), ((), False)]
)
def test_the_last_word_counts(words: tuple[str, ...], readonly: bool) -> None:
    assert bool(MountOptions(words).add & detached.MOUNT_ATTR_RDONLY) == readonly


def test_relatime_is_no_propagation() -> None:
    """`relatime` and `ro` begin with r as `rprivate` does."""
    options = MountOptions(("relatime", "ro", "rw"))

    assert options.propagation == 0 and not options.to_filesystem


def program(path: Path, mode: int = 0o755) -> Path:
    """A file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    path.chmod(mode)
    return path


def test_the_first_along_path(tmp_path: Path) -> None:
    program(tmp_path / "b/tool")
    program(tmp_path / "c/tool")
    (tmp_path / "a/tool").mkdir(parents=True)

    assert find_program("tool", f"/nowhere:{tmp_path}/a:{tmp_path}/b:{tmp_path}/c") == f"{tmp_path}/b/tool"


def test_relative_elements_of_path_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "tool")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(LaunchError, match="relative to current directory"):
        find_program("tool", ":/bin")


@pytest.mark.parametrize(("path", "code"), [("", 127), ("/nowhere", 127), ("/etc/passwd", 127)])
def test_not_along_path(path: str, code: int) -> None:
    with pytest.raises(LaunchError) as caught:
        find_program("tool", path)

    assert caught.value.message == 'exec: "tool": executable file not found in $PATH'
    assert caught.value.code == code


def test_a_file_in_the_way(tmp_path: Path) -> None:
    program(tmp_path / "f")

    with pytest.raises(LaunchError) as caught:
        find_program(f"{tmp_path}/f/tool", "")

    assert caught.value.message == f'exec: "{tmp_path}/f/tool": stat {tmp_path}/f/tool: not a directory'
    assert caught.value.code == 127


@pytest.mark.parametrize(
    ("env", "home"),
    [(["A=b"], "/root"), (["HOME=", "A=b"], "/root"), (["HOME=/x", "A=b"], "/x"), (["HOMER=1"], "/root")],
)
def test_home(env: list[str], home: str) -> None:
    assert value_of(with_home(env, "/root"), "HOME") == home


def test_the_last_of_a_name_counts() -> None:
    assert value_of(["PATH=/a", "PATH=/b"], "PATH") == "/b"
    assert value_of([], "PATH") == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "/x"), "step: /x: no such file or directory"),
        (OSError(errno.EPERM, "Operation not permitted"), "step: operation not permitted"),
        (ValueError("odd"), "step: ValueError: odd"),
    ],
)
def test_failures_say_step_thing_and_reason(error: Exception, message: str) -> None:
    assert as_launch_error(error, "step").message == message


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain/x", "/plain/x"), ("/link/x", "/etc/x"), ("/up/x", "/x"), ("/chain/y", "/etc/y"),
        ("/plain/../missing/./z", "/missing/z"), ("/../../..", "/"), ("/dangling", "/nowhere/at/all"),
    ],
)  # fmt: skip
def test_links_are_followed_inside(tmp_path: Path, path: str, expected: str) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "up").symlink_to("../../../..")
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "dangling").symlink_to("/nowhere/at/all")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)

    assert without_links(root, path) == expected

    os.close(root)


def test_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)

    with pytest.raises(OSError, match="symbolic links"):
        without_links(root, "/a/x")

    os.close(root)


@pytest.mark.parametrize("directory", [True, False])
def test_a_place_is_made_behind_a_dangling_link(tmp_path: Path, directory: bool) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/x").symlink_to("../run/deep/x")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)

    os.close(place(root, "/etc/x", directory=directory))

    os.close(root)
    assert (tmp_path / "run/deep/x").is_dir() == directory
    assert (tmp_path / "run/deep/x").exists()
