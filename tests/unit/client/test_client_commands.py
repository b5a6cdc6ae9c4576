"""Commands that ask before they act, send large bodies, or write files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.fakeengine import FakeEngine, Reply, messages

Run = Callable[..., Any]


@pytest.mark.parametrize(("answer", "asked"), [(b"y\n", 1), (b"yes\n", 1), (b"n\n", 0), (b"\n", 0), (b"", 0)])
def test_prune_asks(engine: FakeEngine, ketch: Run, answer: bytes, asked: int) -> None:
    """Nothing typed is no, and no is no fault."""
    engine.routes = [("POST", "/containers/prune", {"ContainersDeleted": None, "SpaceReclaimed": 0})]

    outcome = ketch("container", "prune", stdin=answer)

    assert outcome.code == 0 and len(engine.asked) == asked
    assert outcome.out.startswith(
        "WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] "
    )
    assert ("Total reclaimed space: 0B" in outcome.out) is bool(asked)


def test_each_name_is_tried(engine: FakeEngine, ketch: Run) -> None:
    """At once, but told in the order they were typed."""
    engine.routes = [("POST", "/containers/none/stop", Reply(404, {"message": "No such container: none"}))]

    assert ketch("stop", "a", "none", "b") == (
        1,
        "a\nb\n",
        "Error response from daemon: No such container: none\n",
    )
    assert sorted(one.path for one in engine.asked) == [
        f"/containers/{name}/stop" for name in ("a", "b", "none")
    ]


def test_what_is_no_engine_is_told_with_what_it_said(engine: FakeEngine, ketch: Run) -> None:
    """A proxy's page, say, with status 200."""
    engine.routes = [("GET", "/volumes", b"<html>\n<p>Welcome</p>")]

    assert ketch("volume", "ls") == (
        1,
        "",
        "Error response from daemon: the answer to GET /volumes is no JSON: '<html>'\n",
    )


def test_an_early_error_is_heard_while_a_body_is_sent(engine: FakeEngine, ketch: Run, tmp_path: Path) -> None:
    engine.routes = [("POST", "/images/load", Reply(500, {"message": "no space left on device"}))]
    archive = tmp_path / "a.tar"
    archive.write_bytes(bytes(5_000_000))

    assert ketch("load", "-i", str(archive)) == (
        1,
        "",
        "Error response from daemon: no space left on device\n",
    )


def test_save_writes_the_whole_file_or_none(engine: FakeEngine, ketch: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    engine.routes = [("GET", "/images/get", b"TAR")]
    assert ketch("save", "-o", str(path), "a", "b").code == 0
    assert path.read_bytes() == b"TAR"
    assert engine.asked[0].query == {"names": ["a", "b"]}

    engine.routes = [("GET", "/images/get", Reply(200, b"TAR", (("Content-Length", "99"),)))]
    assert ketch("save", "-o", str(path), "a").code == 1
    assert path.read_bytes() == b"TAR" and not list(tmp_path.glob("*.part"))


def test_build_shows_what_the_engine_says(engine: FakeEngine, ketch: Run, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\n")
    engine.routes = [
        (
            "POST",
            "/build",
            messages(
                {"stream": "Step 1\n"}, {"aux": {"ID": "sha256:1"}}, {"stream": "Successfully built 1\n"}
            ),
        )
    ]

    outcome = ketch("build", "-t", "a", "--iidfile", str(tmp_path / "iid"), str(tmp_path / "context"))

    assert outcome.code == 0
    assert outcome.out == "Sending build context to ketch daemon  2.048kB\nStep 1\nSuccessfully built 1\n"
    assert (tmp_path / "iid").read_text() == "sha256:1"


def test_a_failed_step_gives_its_exit_code(engine: FakeEngine, ketch: Run, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    engine.routes = [
        ("POST", "/build", messages({"errorDetail": {"code": 3, "message": "returned 3"}, "error": "x"}))
    ]

    outcome = ketch("build", "-q", str(tmp_path))

    assert (outcome.code, outcome.out) == (3, "") and outcome.err.endswith("returned 3\n")


def test_fsck(engine: FakeEngine, ketch: Run) -> None:
    """One line for each finding; 1 when something stays wrong."""
    finding = {
        "Kind": "blob",
        "Key": "sha256:1",
        "Problem": "is missing",
        "Users": [],
        "Repaired": "",
        "Reason": "",
    }
    engine.routes = [
        ("POST", "/ketch/fsck", messages({"aux": finding}, {"aux": {"Checked": 3, "Bad": 1, "Repaired": 0}}))
    ]

    assert ketch("system", "fsck") == (
        1, "blob sha256:1 is missing\n3 checked, 1 bad, 0 repaired\n",
        "ketch system fsck --repair makes or fetches again what is damaged\n",
    )  # fmt: skip
    engine.routes = [
        (
            "POST", "/ketch/fsck",
            messages({"aux": {**finding, "Repaired": "fetched"}}, {"aux": {"Checked": 3, "Bad": 1, "Repaired": 1}}),
        )
    ]  # fmt: skip
    assert ketch("system", "fsck", "--repair").code == 0
    assert engine.asked[-1].query == {"repair": ["1"]}


def test_images_as_a_tree(engine: FakeEngine, ketch: Run) -> None:
    engine.routes = [
        (
            "GET", "/images/json",
            [{"Id": "sha256:" + "a" * 64, "RepoTags": ["a:1", "a:2"], "Size": 5000, "Manifests": [
                {"ID": "sha256:" + "b" * 64, "Kind": "image", "Size": {"Total": 5000, "Content": 2000},
                 "ImageData": {"Platform": {"os": "linux", "architecture": "amd64"}, "Containers": []}}]}],
        )
    ]  # fmt: skip

    assert ketch("images", "--tree").out.splitlines() == [
        "IMAGE            ID             DISK USAGE   CONTENT SIZE   IN USE",
        "a:1              aaaaaaaaaaaa   5kB          2kB            ",
        "a:2                                                         ",
        "└─ linux/amd64   bbbbbbbbbbbb   5kB          2kB            ",
    ]
    assert engine.asked[0].query == {"manifests": ["1"]}


def test_unknown_commands_and_help(ketch: Run) -> None:
    assert ketch("nope").code == 1
    outcome = ketch("run", "--help")
    assert outcome.code == 0 and "--health-start-interval duration" in outcome.out
    assert "Manage images" in ketch("--help").out
    assert "bootstrap" in ketch("image", "--help").out
    assert ketch("--version").out.startswith("Ketch version ")


def test_every_command_has_help(ketch: Run) -> None:
    from ketch.commandtable import TABLE

    for entry in TABLE:
        for typed, _ in entry.spellings():
            outcome = ketch(*typed.split(), "--help")
            assert outcome.code == 0 and outcome.out.startswith("Usage:  ketch "), typed


def test_all_platforms_are_asked_for(engine: FakeEngine, ketch: Run, tmp_path: Path) -> None:
    """By pull, push and save alike; push says when the engine sent one platform alone."""
    alone = {"aux": {"manifestPushedInsteadOfIndex": True, "originalIndex": {}, "selectedManifest": {}}}
    engine.routes = [
        ("POST", "/images/create", messages({"status": "done"})),
        ("POST", "/images/.*/push", messages(alone)),
        ("GET", "/images/get", b"TAR"),
    ]

    assert ketch("pull", "-q", "--all-platforms", "app:1").code == 0
    assert ketch("push", "-q", "--all-platforms", "app:1").err.startswith("Not all of its platforms are here")
    assert ketch("save", "--all-platforms", "-o", str(tmp_path / "a.tar"), "app:1").code == 0
    assert [one.query.get("allPlatforms") for one in engine.asked] == [["1"], ["1"], ["1"]]


@pytest.mark.parametrize(
    "words", ["--help", "--version", "ps --help", "completion bash", "context ls", "__complete ps"]
)
@pytest.mark.parametrize(
    ("place", "code", "said"), [("/dev/full", 1, "no space left on device\n"), ("", 141, "")]
)
def test_output_that_cannot_be_written(tmp_path: Path, words: str, place: str, code: int, said: str) -> None:
    """On a full disk, or where nobody reads on: one line at most, whether or not the interpreter keeps it for its end."""
    for unbuffered in ("", "1"):
        reader, writer = os.pipe()
        os.close(reader)
        with open(place or writer, "wb", closefd=bool(place)) as out:
            done = subprocess.run(
                [str(Path(sys.executable).parent / "ketch"), *words.split()],
                env={**os.environ, "DOCKER_CONFIG": str(tmp_path), "PYTHONUNBUFFERED": unbuffered},
                stdout=out, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        os.close(writer)
        assert (done.returncode, done.stderr) == (code, said)
