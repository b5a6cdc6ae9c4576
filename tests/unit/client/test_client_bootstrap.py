"""`image bootstrap`: what the host's apt says, the tool's command line, and what becomes of its tar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ketch.aptsources import Source, choose, parse_deb822, parse_list, reaching, without_password
from ketch.commands.bootstrap import (
    BOOTSTRAP,
    debootstrap_command,
    make_plan,
    mmdebstrap_command,
    split_suite,
)
from ketch.faults import CommandFailed
from ketch.options import parse
from ketch_testing.fakeengine import FakeEngine, messages

Run = Callable[..., Any]

LIST = """\
# deb http://no/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian bookworm main contrib  # here
deb-src http://mirror/debian bookworm main
deb http://mirror/debian-security bookworm-security main
"""
DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://deb.debian.org/debian
  http://other/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://inline/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
"""


def test_one_line_sources() -> None:
    assert parse_list(LIST) == [
        Source("http://mirror/debian", ("bookworm",), ("main", "contrib"), "/k.gpg"),
        Source("http://mirror/debian-security", ("bookworm-security",), ("main",)),
    ]


def test_deb822_sources() -> None:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    suites = ("bookworm", "bookworm-updates")
    assert parse_deb822(DEB822) == [
        Source("http://deb.debian.org/debian", suites, ("main",), keyring),
        Source("http://other/debian", suites, ("main",), keyring),
        Source("http://inline/debian", ("trixie",), ("main",)),
    ]


def test_the_hosts_mirror_serves_other_suites_too() -> None:
    sources = parse_list(LIST)

    assert choose(sources, "bookworm", "debian") == sources[0]
    assert choose(sources, "sid", "debian") == sources[0]
    assert choose(sources[1:], "sid", "debian") is None


def test_how_apt_reaches_its_mirrors() -> None:
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://p:1";\nAcquire::https::CaInfo "/ca";\nAcquire::http::Proxy "";\n'
        'APT::Install-Recommends "0";\nAcquire::http::Proxy::host "DIRECT";\nDPkg::Post-Invoke:: "rm x";\n'
    )

    assert reaching(dump) == [
        'Acquire::http::Proxy "http://p:1";',
        'Acquire::https::CaInfo "/ca";',
        'Acquire::http::Proxy::host "DIRECT";',
    ]


def test_suites() -> None:
    assert split_suite("debian:bookworm") == split_suite("bookworm") == ("debian", "bookworm")
    assert split_suite("noble") == ("ubuntu", "noble")
    for text in ("foo", "debian:", "a b:c", "debian:$(x)"):
        with pytest.raises(CommandFailed):
            split_suite(text)


def plan(*words: str, sources: list[Source] | None = None, options: list[str] | None = None) -> Any:
    given = parse(BOOTSTRAP, "ketch image bootstrap", [*words, "debian:bookworm"])
    return make_plan("debian", "bookworm", given, sources or [], options or [])


def test_plans_take_what_is_typed_first() -> None:
    host = parse_list(LIST)

    assert plan(sources=host).mirror == "http://mirror/debian" and plan(sources=host).keyring == "/k.gpg"
    assert plan().mirror == "http://deb.debian.org/debian"
    assert plan().keyring == "/usr/share/keyrings/debian-archive-keyring.gpg"
    typed = plan("--mirror", "http://mine", "--keyring", "/mine", sources=host)
    assert (typed.mirror, typed.keyring) == ("http://mine", "/mine")


def test_mmdebstrap() -> None:
    command = mmdebstrap_command(
        plan("--include", "python3,curl", "--variant", "apt", options=['Acquire::http::Proxy "http://p";'])
    )

    assert command[0] == "mmdebstrap" and command[-3:] == ["bookworm", "-", "http://deb.debian.org/debian"]
    assert {"--variant=apt", "--include=python3,curl", '--aptopt=Acquire::http::Proxy "http://p";'} <= set(
        command
    )
    assert not [word for word in command if "sources.list" in word]


def test_a_mirrors_password_does_not_stay_in_the_image() -> None:
    command = mmdebstrap_command(plan("--mirror", "http://me:secret@mirror/debian"))

    (hook,) = [word for word in command if "sources.list" in word]
    assert "deb http://mirror/debian bookworm main" in hook and "secret" not in hook
    assert without_password("https://u@h/x@y") == "https://h/x@y"


def test_debootstrap() -> None:
    command = debootstrap_command(plan("--include", "python3"), "/root")

    assert command[-3:] == ["bookworm", "/root", "http://deb.debian.org/debian"]
    assert "--include=python3" in command and "--variant=minbase" in command


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An mmdebstrap that writes `tar` and exits with what is in the file `code`."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "mmdebstrap"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {directory}/words\nprintf tar\necho said >&2\nexit $(cat {directory}/code)\n'
    )
    program.chmod(0o755)
    (directory / "code").write_text("0")
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    return directory


def test_the_tar_goes_to_the_engine_while_it_is_made(engine: FakeEngine, ketch: Run, tool: Path) -> None:
    engine.routes = [("POST", "/images/create", messages({"status": "sha256:1"}))]
    keyring = tool / "k.gpg"
    keyring.write_text("")

    outcome = ketch("image", "bootstrap", "-q", "--keyring", str(keyring), "--mirror", "http://m", "bookworm")

    assert (outcome.code, outcome.out) == (0, "sha256:1\n")
    (asked,) = engine.asked
    assert asked.body == b"tar"
    assert asked.query["fromSrc"] == ["-"]
    assert (asked.query["repo"], asked.query["tag"]) == (["docker.io/library/debian"], ["bookworm"])
    assert asked.query["changes"][0] == 'CMD ["bash"]' and asked.query["changes"][1].startswith("ENV PATH=")
    assert (tool / "words").read_text().split()[-3:] == ["bookworm", "-", "http://m"]


def test_a_tool_that_fails_stores_nothing(engine: FakeEngine, ketch: Run, tool: Path) -> None:
    """The request is cut short: an engine does not keep half a tar."""
    (tool / "code").write_text("25")
    (tool / "k.gpg").write_text("")

    outcome = ketch("image", "bootstrap", "-q", "--keyring", str(tool / "k.gpg"), "bookworm")

    assert outcome == (1, "", "mmdebstrap failed with exit code 25:\nsaid\n")
    assert engine.asked == []


def test_what_is_missing_is_named(ketch: Run, tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = ketch("image", "bootstrap", "--keyring", "/none.gpg", "ubuntu:noble")
    assert outcome.code == 1 and "install the package ubuntu-keyring" in outcome.err
    monkeypatch.setattr("ketch.commands.bootstrap._search_path", lambda: "/nowhere")
    outcome = ketch("image", "bootstrap", "bookworm")
    assert outcome.code == 1 and "apt-get install mmdebstrap" in outcome.err
