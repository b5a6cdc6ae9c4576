"""`--userns-remap default` makes its user with shadow's tools, in an /etc of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs_root

pytestmark = [
    needs_root,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("useradd", path="/usr/sbin") is None, reason="useradd is not installed (package passwd)"),
]  # fmt: skip
FILES = ("passwd", "group", "shadow", "gshadow", "nsswitch.conf", "login.defs", "default", "pam.d", "shells")
OWN_ETC = """
import sys
from ketchd.kernel.mounts import MS_BIND, MS_PRIVATE, mount
from ketchd.kernel.namespaces import CLONE_NEWNS, unshare
from ketchd.kernel.ownroot import take_root
unshare(CLONE_NEWNS)
take_root(MS_PRIVATE)
mount(sys.argv[1], "/etc", None, MS_BIND)
"""
SCRIPT = """
import asyncio, sys
from ketch_wire.faults import Fault
from ketchd.engine.remapping import read_id_map
try:
    print(asyncio.run(read_id_map("default")))
except Fault as fault:
    sys.exit(fault.message)
"""


@pytest.fixture
def etc(tmp_path: Path) -> Iterator[Path]:
    """What shadow's tools read and write, without the user."""
    made = tmp_path / "etc"
    made.mkdir()
    for name in FILES:
        source = Path("/etc") / name
        if source.is_dir():
            shutil.copytree(source, made / name)
        elif source.exists():
            shutil.copy2(source, made / name)
    for name in ("passwd", "group", "shadow", "gshadow"):
        path = made / name
        if path.exists():
            path.write_text(
                "".join(one for one in path.read_text().splitlines(True) if not one.startswith("dockremap:"))
            )
    yield made


def read(etc: Path, *, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", OWN_ETC + script, etc],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ},
    )


def lines(path: Path) -> list[str]:
    return path.read_text().split()


def test_the_user_is_made_once(etc: Path) -> None:
    """A system user without a shell, its group, and ids beside those that others have; the second time nothing changes."""
    (etc / "subuid").write_text("alice:100000:65536\nbob:165536:65536\n")
    first = read(etc)
    assert first.returncode == 0, first.stderr
    assert "(0, 231072, 65536)" in first.stdout and "(0, 100000, 65536)" in first.stdout
    assert lines(etc / "subuid") == ["alice:100000:65536", "bob:165536:65536", "dockremap:231072:65536"]
    assert lines(etc / "subgid") == ["dockremap:100000:65536"]
    (entry,) = [one for one in (etc / "passwd").read_text().splitlines() if one.startswith("dockremap:")]
    assert entry.split(":")[6] == "/bin/false" and int(entry.split(":")[2]) < 1000
    before = {path.name: path.read_bytes() for path in etc.iterdir() if path.is_file()}
    assert read(etc).stdout == first.stdout
    assert {path.name: path.read_bytes() for path in etc.iterdir() if path.is_file()} == before


def test_a_user_with_ids_is_left_alone(etc: Path) -> None:
    with (etc / "passwd").open("a") as passwd, (etc / "group").open("a") as group:
        passwd.write("dockremap:x:990:990::/:/bin/false\n")
        group.write("dockremap:x:990:\n")
    for name in ("subuid", "subgid"):
        (etc / name).write_text("dockremap:500000:1000\n")
    assert "(0, 500000, 1000)" in read(etc).stdout
    assert lines(etc / "subuid") == ["dockremap:500000:1000"]


def test_without_the_tools_it_is_one_line(etc: Path) -> None:
    """What is missing, and what to do instead."""
    hidden = SCRIPT.replace(
        "import asyncio, sys", "import asyncio, sys, shutil\nshutil.which = lambda name, path: None"
    )
    refused = read(etc, script=hidden)
    assert refused.returncode == 1
    assert refused.stderr == (
        "cannot remap user namespaces: useradd is not installed (package passwd): make the user dockremap and give it ids in "
        "/etc/subuid and /etc/subgid\n"
    )


def test_what_the_tool_says_is_told(etc: Path) -> None:
    (etc / "passwd.lock").write_text("1\n")  # of a process that lives
    refused = read(etc)
    assert refused.returncode == 1
    assert (
        refused.stderr.startswith("cannot remap user namespaces: useradd: ")
        and refused.stderr.count("\n") == 1
    )
