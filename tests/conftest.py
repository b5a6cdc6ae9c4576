"""Shared fixtures: a private ketchd a module, a tiny busybox image, and the proof that nothing stays."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ketch_testing.clients import ask, client, ketch  # noqa: F401  (fixtures)
from ketch_testing.machine import Machine, registry, running

for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if (
        signal.getsignal(number) is signal.SIG_IGN
    ):  # as a shell and nohup begin what goes on in the background
        signal.signal(number, usual)  # the clients that tests interrupt would inherit it
settings.register_profile("ketch", deadline=None)  # no test of ours is about time: a loaded machine is slow
settings.load_profile("ketch")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for namespaces and mounts")


def busybox_tar() -> bytes:
    """A root of one static busybox and the directories that programs expect."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in (
            ("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("home", 0o755), ("var", 0o755),
            ("usr", 0o755), ("usr/bin", 0o755), ("sbin", 0o755), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755),
        ):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        program = Path("/bin/busybox").read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
        for applet in (
            "sh echo cat ls true false sleep id env pwd touch mkdir rm cp mv ln chmod chown head tail grep "
            "sed awk wc date hostname ip ping wget nc ps kill mount umount df du dd seq yes test stat "
            "readlink uname whoami tty stty sort uniq tr cut find xargs tee sync md5sum sha256sum httpd "
            "nslookup printf expr trap timeout"
        ).split():
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(link)
        for name, text in (
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
                           "user:x:1000:1000:user:/home:/bin/sh\n"),
            ("etc/group", "root:x:0:\nnobody:x:65534:\nuser:x:1000:\nextra:x:2000:user\n"),
        ):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def import_busybox(machine: Machine) -> None:
    """`busybox:latest` with a PATH and a shell as its command."""
    status, answer = machine.request(
        "POST",
        "/images/create?fromSrc=-&repo=busybox&tag=latest&changes=CMD%20%5B%22sh%22%5D",
        raw=busybox_tar(),
        headers={"Content-Type": "application/x-tar"},
    )
    assert status == 200 and b"sha256:" in answer and b"error" not in answer, answer


@pytest.fixture
def deep_path(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path` for directories nested so deep that pytest could not remove them."""
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A started ketchd with `busybox:latest`. Fails if anything stays of it."""
    if os.geteuid() != 0:
        pytest.skip("root is needed for namespaces and mounts")
    if not Path("/bin/busybox").exists():
        pytest.skip("busybox is not installed (apt-get install busybox-static)")
    with running() as made:
        import_busybox(made)
        yield made


@pytest.fixture(scope="module")
def open_registry() -> Iterator[str]:
    """Debian's docker-registry without authentication."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    with registry(Path(tempfile.mkdtemp(prefix="ketch-registry-"))) as host:
        yield host


@pytest.fixture(scope="module")
def guarded_registry() -> Iterator[str]:
    """Debian's docker-registry with htpasswd: me / secret."""
    for program in ("docker-registry", "htpasswd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with registry(Path(tempfile.mkdtemp(prefix="ketch-registry-")), users={"me": "secret"}) as host:
        yield host
