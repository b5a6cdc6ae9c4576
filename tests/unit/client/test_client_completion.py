"""What Tab offers: the words of the program, and the names of what there is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.fakeengine import FakeEngine

Run = Callable[..., Any]
KETCH = Path(sys.executable).parent / "ketch"

ROUTES = [
    ("GET", "/containers/json", [{"Names": ["/web", "/other/alias"]}, {"Names": ["/db"]}]),
    ("GET", "/images/json", [{"RepoTags": ["busybox:latest", "reg:5000/x:1"]}, {"RepoTags": None}]),
    ("GET", "/networks", [{"Name": "host"}, {"Name": "bridge"}]),
    ("GET", "/volumes", {"Volumes": [{"Name": "data"}]}),
]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("comm", "commit :4"),
        ("volume ", "create inspect ls prune rm :4"),
        ("volume r", "rm :4"),
        ("rm ", "db web :4"),
        ("rm web ", "db :4"),
        ("container rm w", "web :4"),
        ("run b", "busybox busybox:latest :4"),
        ("run -it --name x -e A=-h reg:", "reg:5000/x:1 :4"),
        ("run -p80:80 b", "busybox busybox:latest :4"),
        ("run --network ", "bridge host :4"),
        ("run --name ", ":0"),
        ("run -itv ", ":0"),
        ("run busybox ", ":0"),
        ("run busybox -", ":0"),
        ("rmi busybox:", "busybox:latest :4"),
        ("exec -it ", "db web :4"),
        ("exec web ", ":4"),
        ("inspect d", "db :4"),
        ("network connect ", "bridge host :4"),
        ("network connect host ", "db web :4"),
        ("volume rm ", "data :4"),
        ("ps ", ":4"),
        ("images b", "busybox busybox:latest :4"),
        ("build ", ":0"),
        ("ps --no", "--no-trunc :4"),
        ("--log", "--log-level :4"),
        ("--log-level debug vol", "volume :4"),
        ("context use ", "default :4"),
        ("-c ", "default :4"),
        ("completion ", "bash fish zsh :4"),
        ("nosuch ", ":4"),
        ("volume nosuch ", ":4"),
        ("system dial", ":4"),
        ("-H unix:///nowhere rm ", ":4"),
        ("-H a -H b rm ", ":4"),
        ("--help rm ", ":4"),
        ("-H tcp://a..b rm ", ":4"),
    ],
)
def test_candidates(ketch: Run, engine: FakeEngine, typed: str, offered: str) -> None:
    engine.routes[:0] = ROUTES
    done = ketch("__complete", *typed.split(" "))
    assert (done.code, done.err) == (0, "")
    assert " ".join(line.split("\t")[0] for line in done.out.splitlines()) == offered


def test_every_command_can_be_completed(ketch: Run) -> None:
    """None has a description that does not fit on its line."""
    top = [line.split("\t")[0] for line in ketch("__complete", "").out.splitlines()[:-1]]
    assert {"run", "ps", "container", "completion", "context"} <= set(top)
    for command in top:
        lines = ketch("__complete", command, "--").out.splitlines()
        assert lines[-1] in (":4", ":0") and all("\t" in line for line in lines[:-1])


def test_candidates_are_described(ketch: Run) -> None:
    assert ketch("__complete", "rena").out == "rename\tRename a container\n:4\n"
    assert ketch("__completeNoDesc", "rena").out == "rename\n:4\n"


def test_a_shell_that_is_not_known(ketch: Run) -> None:
    done = ketch("completion", "tcsh")
    assert (done.code, done.err) == (1, 'unknown shell: "tcsh": must be one of bash, fish, zsh\n')


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("ketch rename ", "db web"),
        ("ketch ren", "rename"),
        ("ketch run -it bus", "busybox busybox:latest"),
        ("ketch run busybox:l", "latest"),
        ("ketch run reg:5000/", "5000/x:1"),
        ("ketch rm --vo", "--volumes"),
        ("ketch nosuch ", ""),
    ],
)
def test_in_bash(tmp_path: Path, line: str, reply: str) -> None:
    """The script itself, asked as readline asks it: what stands in front of a colon is not repeated."""
    with FakeEngine(tmp_path / "e.sock", ROUTES) as engine:
        done = subprocess.run(
            ["bash", "-uc", 'eval "$(ketch completion bash)"; COMP_LINE=$1; COMP_POINT=${#1}; _ketch; echo "${COMPREPLY[*]-}"', "-", line],
            env={**os.environ, "DOCKER_HOST": engine.host, "DOCKER_CONFIG": str(tmp_path), "PATH": f"{KETCH.parent}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{reply}\n", "")


BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")


@pytest.mark.skipif(shutil.which("docker") is None, reason="the docker CLI is not installed")
@pytest.mark.skipif(not BASH_COMPLETION.exists(), reason="bash-completion is not installed")
@pytest.mark.parametrize("options", [(), ("--no-descriptions",)])
def test_docker_s_own_script(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Where `docker` is ketch, it offers what ketch has."""
    made = subprocess.run(
        ["docker", "completion", "bash", *options], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("docker 20.10 makes no scripts")
    (tmp_path / "script").write_text(made.stdout)
    (tmp_path / "docker").symlink_to(KETCH)
    asked = (
        f". {BASH_COMPLETION}; . {tmp_path}/script; COMP_LINE='docker rena'; COMP_POINT=11 COMP_WORDS=(docker rena) COMP_CWORD=1\n"
        "compopt() { :; }\n__start_docker; echo ${COMPREPLY[*]}"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("rename\n", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_are_that_shell_s(tmp_path: Path, ketch: Run, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(ketch("completion", shell).out)
    subprocess.run([shell, "-n", str(script)], check=True)
