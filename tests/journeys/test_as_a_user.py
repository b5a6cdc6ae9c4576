"""What surprised a new user once: each in the user's own words, with what must be said instead."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs_root

from ketch_testing.consistency import cgroups_left
from ketch_testing.machine import BIN, Machine, free_port

KETCH = str(BIN / "ketch")
pytestmark = [needs_root, pytest.mark.root]


def typed(machine: Machine, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What the user typed, however it ends; no Python is ever seen."""
    done = machine.run(KETCH, *words, check=False, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture
def config(machine: Machine) -> Iterator[Path]:
    """The user's config.json, gone after the test."""
    path = machine.base / "client" / "config.json"
    path.parent.mkdir(exist_ok=True)
    yield path
    path.unlink(missing_ok=True)


def test_a_build_speaks_of_the_cache_only_where_it_tells_something(machine: Machine, tmp_path: Path) -> None:
    """Nothing at a first build, one line at the step that changed, and the same Dockerfile under another name counts."""
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox AS made\nARG WHO=nobody\nCOPY page /page\nRUN echo $WHO > /who\nRUN true\n"
        "FROM made AS test\nRUN cat /who\nFROM busybox\nCOPY --from=made /who /\nCMD cat /who\n"
    )
    (tmp_path / "page").write_text("1")
    assert "Cache miss" not in typed(machine, "build", "-t", "quiet", ".", cwd=tmp_path).stdout
    (tmp_path / "page").write_text("2")
    said = typed(machine, "build", "-t", "quiet", ".", cwd=tmp_path).stdout
    assert said.count("Cache miss") == 1 and " ---> Cache miss: page changed\n" in said
    said = typed(
        machine, "build", "-t", "tested", "--target", "test", "--build-arg", "WHO=me", ".", cwd=tmp_path
    ).stdout
    assert said.count("Cache miss") == 1 and " ---> Cache miss: build argument WHO changed\n" in said
    (tmp_path / "Dockerfile").write_text("FROM busybox AS made\nARG WHO=nobody\nRUN echo else\n")
    assert "Cache miss" not in typed(machine, "build", "-t", "another", ".", cwd=tmp_path).stdout


def test_an_url_that_cannot_be_added_is_told_as_docker_tells_it(machine: Machine, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "Dockerfile").write_text(f"FROM busybox\nADD http://127.0.0.1:{port}/x /\n")
    done = typed(machine, "build", ".", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        f'Get "http://127.0.0.1:{port}/x": dial tcp 127.0.0.1:{port}: connect: connection refused'
        in done.stderr
    )


def test_a_mistyped_instruction_is_guessed(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRNU true\n")
    assert "unknown instruction: RNU (did you mean RUN?)" in typed(machine, "build", ".", cwd=tmp_path).stderr


def test_a_broken_config_file_is_a_warning_and_stays(machine: Machine, config: Path) -> None:
    """ps has nothing to do with it; login would lose what is in it."""
    config.write_text("{bad")
    done = typed(machine, "ps", "-q")
    assert done.returncode == 0
    assert done.stderr == (
        f"WARNING: Error parsing config file ({config}): "
        "line 1, column 2: expecting property name enclosed in double quotes\n"
    )
    assert config.read_text() == "{bad"


def test_a_missing_credential_helper_stops_no_pull(machine: Machine, config: Path) -> None:
    config.write_text('{"credsStore": "nosuch"}')
    port = free_port()
    said = typed(machine, "pull", "-q", f"127.0.0.1:{port}/x").stderr.splitlines()
    assert said[0].startswith(
        'WARNING: error getting credentials - err: exec: "docker-credential-nosuch": executable file not found'
    )
    assert said[1].endswith("connect: connection refused")


def test_a_container_that_is_missing_is_no_missing_image(machine: Machine) -> None:
    """The engine answers 404 for both; pulling the image would hide the reason."""
    done = typed(machine, "run", "--rm", "--volumes-from", "nosuch", "busybox", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("ketch: Error response from daemon: No such container: nosuch\n")


def test_what_is_no_archive_is_named_without_python(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "no.tar"
    path.write_text("no archive at all, " * 100)
    for words in (("load", "-i", str(path)), ("import", str(path))):
        done = typed(machine, *words)
        assert done.returncode == 1
        assert "invalid tar" in done.stderr and "b'" not in done.stderr


def test_cp_below_a_file_says_so(machine: Machine, tmp_path: Path) -> None:
    machine.run(KETCH, "create", "--name", "cpfile", "busybox")
    (tmp_path / "f").write_text("f")
    done = typed(machine, "cp", str(tmp_path / "f"), "cpfile:/etc/passwd/x")
    machine.run(KETCH, "rm", "cpfile")
    assert done.returncode == 1
    assert "not a directory" in done.stderr and "server supports" not in done.stderr


def test_the_beginning_of_time_is_zero(machine: Machine) -> None:
    """`--since 0` is 1970, not now."""
    assert typed(machine, "events", "--since", "0", "--until", "1").returncode == 0


def test_an_engine_that_has_no_address_is_not_called_down(machine: Machine) -> None:
    done = typed(machine, "-H", "tcp://nosuch.invalid:2375", "ps")
    assert done.returncode == 1
    assert (
        done.stderr
        == "error during connect: tcp://nosuch.invalid:2375: lookup nosuch.invalid: no such host\n"
    )


def test_a_step_whose_daemon_was_killed_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    """No process, no run directory, no cgroup: nobody else knows the step's ID once ketchd is gone."""
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo begun; sleep 3600\n")
    boxes = {box["Id"] for box in machine.json("GET", "/containers/json?all=1")}
    building = subprocess.Popen(
        [KETCH, "build", str(tmp_path)], env=machine.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )  # fmt: skip
    assert building.stdout is not None
    with building.stdout as said:
        next(line for line in said if line == "begun\n")
        steps = {path.name for path in (machine.exec_root / "containers").iterdir()} - boxes
        machine.kill()
    assert building.wait() == 1
    machine.start()

    assert len(steps) == 1
    assert not steps & {path.name for path in (machine.exec_root / "containers").iterdir()}
    deadline = time.monotonic() + 60
    while cgroups_left(steps) and time.monotonic() < deadline:
        time.sleep(0.05)  # the step's shim ends it, and a dying process leaves its cgroup late
    assert cgroups_left(steps) == []


def test_the_daemon_saw_no_surprise(machine: Machine) -> None:
    """After all of the above."""
    assert "Traceback" not in machine.log.read_text()
