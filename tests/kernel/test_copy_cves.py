"""What went wrong in other engines' cp and archive endpoints, one test a CVE. Source: reference of advisories, security.md."""

from __future__ import annotations

import ctypes
import gzip
import lzma
import os
import shutil
import signal
import subprocess
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ketch_testing.copying import ALIVE, Entry, fetch, prepared, put, tar
from ketch_testing.heldroot import running as held
from ketch_wire.faults import Fault
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.engine import copies
from ketchd.engine.rooms import Rooms

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for namespaces and mounts"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox is not installed (busybox-static)"),
]
Ready = tuple[Rooms, Box]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
RACES = 150
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
async def stopped(tmp_path: Path) -> AsyncIterator[Ready]:
    async with prepared(tmp_path, "directory") as made:
        yield made


@contextmanager
def canary(name: str = "canary") -> Iterator[Path]:
    """A directory of the host whose path a container may name; nothing may appear in it, nothing of it may be read."""
    path = Path(f"/var/tmp/ketch-{name}-{os.getpid()}")
    path.mkdir()
    (path / "secret").write_text("of the host")
    (path / "target").write_text("untouched")
    try:
        yield path
        assert sorted(entry.name for entry in path.iterdir()) == ["secret", "target"]
        assert (path / "target").read_text() == "untouched"
    finally:
        shutil.rmtree(path)


@contextmanager
def swapping(directory: Path, name: str, target: str) -> Iterator[None]:
    """`directory/name` is a directory and a link to `target` in turn, as fast as it goes."""
    link = directory / f"{name}.link"
    (directory / name).mkdir(exist_ok=True)
    link.symlink_to(target)
    stop = threading.Event()
    names = [os.fsencode(directory / name), os.fsencode(link)]

    def swap() -> None:
        while not stop.is_set():  # renameat2(2), RENAME_EXCHANGE: there is no moment without either
            assert libc.syscall(316, -100, names[0], -100, names[1], 2) == 0

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def read_and_write(rooms: Rooms, box: Box, directory: str) -> int:
    """cp both ways through a path that is being swapped; how often each way came through. No host's content comes out."""
    passed = 0
    for number in range(RACES):
        try:
            _, archive = await fetch(rooms, box, f"{directory}/secret")
            content = archive.extractfile("secret")
            assert content is None or content.read() != b"of the host"
            passed += 1
        except Fault:
            pass
        try:
            await put(
                rooms, box, directory, tar(Entry(f"made{number % 3}", b"x"), Entry("target", b"overwritten"))
            )
            passed += 1
        except Fault:
            pass
    return passed


async def test_cve_2018_15664_a_swapped_link_never_leads_out_of_a_running_container(stopped: Ready) -> None:
    """The container renames a directory and a link of the host's path while cp goes through it."""
    rooms, box = stopped
    init = await rooms.layers.compose(box.record.diff_ids)
    with canary() as outside:
        script = (
            f"mkdir -p /w/x /w/real; ln -s {outside} /w/link; echo alive; "
            "while :; do mv /w/x /w/y; mv /w/link /w/x; mv /w/x /w/link; mv /w/y /w/x; done"
        )
        with held(rooms, box, init, script):
            box.record.state = State.RUNNING
            assert await read_and_write(rooms, box, "/w/x") > 0


@pytest.mark.parametrize(
    "target", ["/", "../../../../../../..", "/proc/1/root", "/proc/self/root", "/proc/self/cwd"]
)
async def test_cve_2018_15664_links_of_every_kind_stay_inside(stopped: Ready, target: str) -> None:
    rooms, box = stopped
    init = await rooms.layers.compose(box.record.diff_ids)
    with canary() as outside:
        await put(rooms, box, "/w", tar(Entry("esc", type=tarfile.SYMTYPE, linkname=target)))
        for state in (State.EXITED, State.RUNNING):
            with held(rooms, box, init, ALIVE):
                box.record.state = state
                with pytest.raises(Fault):
                    await fetch(rooms, box, f"/w/esc{outside}/secret")
                with pytest.raises(Fault):
                    await put(rooms, box, f"/w/esc{outside}", tar(Entry("target", b"overwritten")))


async def test_cve_2026_42306_a_mount_made_for_cp_lands_inside(stopped: Ready, tmp_path: Path) -> None:
    """A stopped container's bind has its place in a volume that somebody else swaps for a link meanwhile."""
    rooms, box = stopped
    for name in ("volume", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "inner" / "secret").write_text("of the bind")
    box.record.mounts = [
        {"type": "bind", "destination": "/v", "source": str(tmp_path / "volume")},
        {"type": "bind", "destination": "/v/x", "source": str(tmp_path / "inner")},
    ]
    with canary() as outside, swapping(tmp_path / "volume", "x", str(outside)):
        before = len(Path("/proc/self/mountinfo").read_text().splitlines())
        assert await read_and_write(rooms, box, "/v/x") > 0
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        assert not [line for line in lines if str(outside) in line or str(tmp_path) in line], before


async def test_cve_2026_42306_a_running_container_that_mounts_meanwhile(stopped: Ready) -> None:
    rooms, box = stopped
    init = await rooms.layers.compose(box.record.diff_ids)
    with canary():
        script = (
            "mkdir -p /w/x; echo alive; "
            "while :; do mount -t tmpfs t /w/x; mount --bind /etc /w/x; umount /w/x; umount /w/x; done"
        )
        with held(rooms, box, init, script):
            box.record.state = State.RUNNING
            assert await read_and_write(rooms, box, "/w/x") > 0


async def test_cve_2024_23651_a_volumes_subpath_stays_in_the_volume(stopped: Ready) -> None:
    rooms, box = stopped
    volume = rooms.data_root / "volumes" / "vol" / "_data"
    volume.mkdir(parents=True)
    with canary() as outside:
        (volume / "sub").symlink_to(outside)
        box.record.mounts = [
            {"type": "volume", "destination": "/v", "source": str(outside), "name": "vol", "subpath": "sub"}
        ]
        with pytest.raises(Fault):
            await fetch(rooms, box, "/v/secret")


async def test_cve_2021_41089_parents_are_made_inside(stopped: Ready) -> None:
    rooms, box = stopped
    with canary() as outside:
        await put(rooms, box, "/w", tar(Entry("esc", type=tarfile.SYMTYPE, linkname=str(outside))))
        with pytest.raises(Fault):
            await put(rooms, box, "/w", tar(Entry("esc/new/deep", b"x")))
        await put(rooms, box, "/", tar(Entry(str(outside).lstrip("/"))))
        await put(rooms, box, "/w", tar(Entry("esc/new/deep", b"x")))
        assert (await fetch(rooms, box, f"{outside}/new/deep"))[1].getnames() == ["deep"]


def test_cve_2021_41091_nobody_else_walks_the_store(tmp_path: Path) -> None:
    """What is made in the data root is closed to other users."""
    from ketchd.content.blobs import BlobStore

    BlobStore(tmp_path, None)  # type: ignore[arg-type]
    for path in (tmp_path / "stage", tmp_path / "blobs" / "sha256"):
        assert path.stat().st_mode & 0o007 == 0


@contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """Every file that `pid` and its children open or execute, by strace."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2,execve,execveat,setns,fork,clone,vfork", "-o", str(output), "-p", str(pid)],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            if tracer.poll() is not None:
                pytest.skip(f"strace cannot attach: {tracer.stderr.read().decode()[:200]}")  # type: ignore[union-attr]
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()


def worker_pids() -> list[int]:
    """Our layer workers, however far down."""
    found, waiting = [], [os.getpid()]
    while waiting:
        pid = waiting.pop()
        if Path(f"/proc/{pid}/comm").read_text() == "ketch-worker\n":
            found.append(pid)
        waiting += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


EVIL = b"#!/bin/sh\ntouch /evil-was-here\n"


@needs_strace
@pytest.mark.parametrize("state", [State.RUNNING, State.EXITED])
async def test_cve_2026_41567_cve_2019_14271_nothing_of_the_container_is_executed_or_loaded(
    stopped: Ready, tmp_path: Path, state: State
) -> None:
    """The image has decompressors, name service libraries and Python modules of its own; a worker uses none of them."""
    rooms, box = stopped
    lures = [
        f"{directory}/{name}"
        for directory in ("bin", "usr/bin", "usr/local/bin")
        for name in ("xz", "unpigz", "gzip", "zstd", "unxz")
    ]
    stdlib = Path(os.__file__).parent
    lures += [f"lib/x86_64-linux-gnu/libnss_{name}.so.2" for name in ("files", "dns", "compat")] + [
        "etc/nsswitch.conf",
        "etc/ld.so.preload",
    ]
    lures += [
        str(stdlib / name).lstrip("/")
        for name in ("array.py", "encodings/idna.py", "posixpath.py", "stringprep.py")
    ]
    await put(rooms, box, "/", tar(*(Entry(name, EVIL, mode=0o755) for name in lures)))
    init = await rooms.layers.compose(box.record.diff_ids)
    box.record.config["User"] = "user"
    with held(rooms, box, init, ALIVE):
        box.record.state = state
        await copies.stat_path(rooms, box, "/w", "c")  # a warm worker: its own modules are there
        (pid,) = worker_pids()
        with traced(pid, tmp_path / "trace"):
            await copies.stat_path(rooms, box, "/w/ld/f", "c")
            await put(rooms, box, "/w", lzma.compress(tar(Entry("a", b"1"))), copy_owner=True)
            await put(rooms, box, "/w", gzip.compress(tar(Entry("b", b"2"))))
            await fetch(rooms, box, "/w")
        assert worker_pids() == [pid]
        _, archive = await fetch(rooms, box, "/w")
        assert {"w/a", "w/b"} <= set(archive.getnames())
        with pytest.raises(Fault):
            await copies.stat_path(rooms, box, "/evil-was-here", "c")
    lines = (tmp_path / "trace").read_text().splitlines()
    assert not [line for line in lines if "execve" in line]
    entered: set[str] = set()
    for line in lines:  # after it has joined the namespace a process opens the root and nothing else
        who, _, call = line.partition(" ")
        call = call.strip()
        if call.startswith("setns("):
            entered.add(who)
        elif who in entered and call.startswith(("open", "execve")):
            assert call.startswith(
                ('openat(AT_FDCWD, "/", O_RDONLY|O_CLOEXEC|O_PATH|O_DIRECTORY', "open_tree")
            )
    assert bool(entered) is (state is State.RUNNING)
    assert str(pid) not in entered
    read = [line for line in lines if ".so" in line or "nsswitch" in line or "encodings" in line]
    assert read == []


async def test_cve_2026_41567_the_worker_keeps_the_hosts_root(stopped: Ready) -> None:
    rooms, box = stopped
    init = await rooms.layers.compose(box.record.diff_ids)
    with held(rooms, box, init, ALIVE):
        box.record.state = State.RUNNING
        await fetch(rooms, box, "/w")
        for pid in worker_pids():
            assert os.path.samefile(f"/proc/{pid}/root", "/")
            assert [
                fd
                for fd in os.listdir(f"/proc/{pid}/fd")
                if "test-root" in os.readlink(f"/proc/{pid}/fd/{fd}")
            ] == []


async def test_cve_2024_21626_no_descriptor_of_the_engine_reaches_the_container(stopped: Ready) -> None:
    """What cp opens is close-on-exec, and the worker's own fds are those it had before."""
    rooms, box = stopped
    init = await rooms.layers.compose(box.record.diff_ids)
    with held(rooms, box, init, ALIVE) as process:
        box.record.state = State.RUNNING
        await fetch(rooms, box, "/w")
        (pid,) = worker_pids()
        before = sorted(os.listdir(f"/proc/{pid}/fd"))
        fds_before = sorted(os.listdir(f"/proc/{process.pid}/fd"))
        for _ in range(5):
            await fetch(rooms, box, "/w")
            await put(rooms, box, "/w", tar(Entry("a", b"1")))
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == before
        assert sorted(os.listdir(f"/proc/{process.pid}/fd")) == fds_before


async def test_a_reused_pid_is_not_taken_for_the_container(stopped: Ready) -> None:
    rooms, box = stopped
    box.record.state, box.record.pid, box.record.start_time = State.RUNNING, os.getpid(), 1
    with pytest.raises(Fault, match="is not running any more"):
        await fetch(rooms, box, "/etc/passwd")
