"""Faults that users meet: one clear line on standard error, the exit code that docker gives, and a consistent store afterwards."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.consistency import differences
from ketch_testing.machine import BIN, Machine, free_port

KETCH = str(BIN / "ketch")
pytestmark = [needs_root, pytest.mark.root]


def failing(machine: Machine, *words: str, code: int, cwd: Path | None = None) -> str:
    """What the command says when it fails with `code`: one line, hints after it left out."""
    done = machine.run(KETCH, *words, check=False, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("Run '")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_unknown_image(machine: Machine) -> None:
    assert (
        failing(machine, "rmi", "nobody", code=1)
        == "Error response from daemon: No such image: nobody:latest"
    )
    assert (
        failing(machine, "tag", "nobody", "x", code=1)
        == "Error response from daemon: No such image: nobody:latest"
    )


def test_unreachable_registry(machine: Machine) -> None:
    said = failing(machine, "pull", "-q", "127.0.0.1:1/x", code=1)
    assert (
        said
        == 'Error response from daemon: Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
    )


def test_registry_without_address(machine: Machine) -> None:
    """Whoever reads it learns which server knows no such name."""
    conf = Path("/etc/resolv.conf").read_text().splitlines()
    server = next((line.split()[1] for line in conf if line.startswith("nameserver ")), "127.0.0.1")
    place = f"[{server}]:53" if ":" in server else f"{server}:53"
    said = failing(machine, "pull", "-q", "nosuch.invalid/x", code=1)
    assert (
        said
        == f'Error response from daemon: Get "https://nosuch.invalid/v2/": dial tcp: lookup nosuch.invalid on {place}: no such host'
    )


def test_port_in_use(machine: Machine) -> None:
    port = free_port()
    machine.run(KETCH, "run", "-d", "--name", "holder", "-p", f"{port}:80", "busybox", "sleep", "3600")
    said = failing(machine, "run", "-d", "--name", "second", "-p", f"{port}:80", "busybox", "true", code=125)
    assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in said
    machine.run(KETCH, "rm", "-f", "holder", "second")
    assert differences(machine) == []


def test_name_in_use(machine: Machine) -> None:
    machine.run(KETCH, "create", "--name", "taken", "busybox")
    said = failing(machine, "create", "--name", "taken", "busybox", code=1)
    assert 'The container name "/taken" is already in use by container' in said
    machine.run(KETCH, "rm", "taken")


@pytest.mark.parametrize(
    ("dockerfile", "words"),
    [
        ("FROM busybox\nRUNN true\n", ("2", "RUNN")),
        ("RUN true\n", ("no build stage in current context",)),
        ("FROM busybox\nCOPY nothing /\n", ("nothing",)),
        ("FROM busybox\nRUN exit 3\n", ("returned a non-zero code: 3",)),
        ("", ("empty",)),
    ],
)
def test_bad_dockerfile(machine: Machine, tmp_path: Path, dockerfile: str, words: tuple[str, ...]) -> None:
    (tmp_path / "Dockerfile").write_text(dockerfile)
    before = machine.json("GET", "/images/json?all=1")
    done = machine.run(KETCH, "build", "-t", "bad", ".", check=False, cwd=tmp_path)
    assert done.returncode in (1, 3)
    for word in words:
        assert word in done.stderr, done.stderr
    after = machine.json("GET", "/images/json?all=1")
    assert [image for image in after if "bad:latest" in (image["RepoTags"] or [])] == []
    assert len(after) <= len(before) + 1
    assert differences(machine) == []


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Machine]:
    """A ketchd whose root is a tmpfs of 24 MiB."""
    base = Path(tempfile.mkdtemp(prefix="ketch-small-"))
    (base / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(base / "disk")], check=True)
    machine = Machine(base / "m")
    machine.data_root = base / "disk" / "data"
    try:
        machine.start()
        import_busybox(machine)
        yield machine
    finally:
        machine.close()
        subprocess.run(["umount", str(base / "disk")], check=True)
        (base / "disk").rmdir()
        base.rmdir()


@pytest.mark.parametrize("what", ["build", "load", "import", "run"])
def test_full_disk(small_disk: Machine, tmp_path: Path, what: str, machine: Machine) -> None:
    """Each ends with one line that says so, and leaves the store as it was."""
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(range(256)) * 4096 * 40)
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY big.bin /\n")
    if what == "load":
        machine.run(KETCH, "build", "-q", "-t", "big", ".", cwd=tmp_path)
        machine.run(KETCH, "save", "-o", str(tmp_path / "saved.tar"), "big")
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "plain.tar"), "big.bin"], check=True)
    commands = {
        "build": ("build", "-t", "big", "."),
        "load": ("load", "-i", str(tmp_path / "saved.tar")),
        "import": ("import", str(tmp_path / "plain.tar"), "big"),
        "run": ("run", "--rm", "busybox", "sh", "-c", "dd if=/dev/zero of=/fill bs=64k"),
    }
    images = small_disk.json("GET", "/images/json")
    done = small_disk.run(KETCH, *commands[what], check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert "no space left on device" in (done.stdout + done.stderr).lower()
    assert small_disk.json("GET", "/images/json") == images
    assert differences(small_disk) == []
    assert small_disk.run(KETCH, "run", "--rm", "busybox", "echo", "still here").stdout == "still here\n"
