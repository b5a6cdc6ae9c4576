"""Outliving ketchd, its launcher and its shim: who goes on, what is found again, what is never invented."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ketch_testing.contained import Contained, attached, read_all, split_frames, until
from ketch_wire.frames import pack
from ketch_wire.launch import LogPlan
from ketchd.containers import shimlink
from ketchd.containers.shims import ShimLink, read_exit
from ketchd.engine.start import _new_directories
from ketchd.shim.launcher import Launcher


def shim_of(link: ShimLink) -> int:
    """The shim's pid: the parent of the container's first process."""
    return int(Path(f"/proc/{link.pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    """Whether it runs: one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_container_goes_on_without_its_daemon_and_is_found_again(box: Contained) -> None:
    plan = box.plan("sh", "-c", "echo before; while [ ! -e /go ]; do sleep 0.01; done; echo after; exit 6")
    link = await box.start(plan)
    await until(lambda: box.logged(plan) == "before\n")
    await box.shims.close()  # as ketchd's end: the connections are cut

    again = await box.new_shims().adopt(plan.id)

    assert again is not None and (again.pid, again.start_time) == (link.pid, link.start_time)
    client, stream = attached()
    await again.attach(stream)
    Path(f"/proc/{again.pid}/root/go").touch()
    assert split_frames(await read_all(client)) == {1: b"after\n"}
    ended = await box.end(again)
    client.close()
    assert ended is not None and ended.code == 6
    assert box.logged(plan) == "before\nafter\n"


async def test_an_end_that_nobody_watched_is_recorded(box: Contained) -> None:
    plan = box.plan("sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; echo last; exit 9")
    link = await box.start(plan)
    await box.shims.close()
    Path(f"/proc/{link.pid}/root/go").touch()

    await until(lambda: read_exit(Path(plan.state_dir)) is not None)

    ended = read_exit(Path(plan.state_dir))
    assert ended is not None and ended.code == 9
    assert await box.new_shims().adopt(plan.id) is None
    assert box.logged(plan) == "last\n"


DAEMON = """
import asyncio, json, sys
from pathlib import Path
from ketch_testing.contained import Contained
async def main():
    box = Contained(Path(sys.argv[1]) / "inner")
    plan = box.plan("sh", "-c", "i=0; while [ ! -e /go ]; do i=$((i+1)); echo $i; sleep 0.005; done; echo $i end; exit 11")
    link = await box.start(plan)
    print(json.dumps([plan.id, plan.state_dir, plan.log.path, link.pid, box.launcher.pid]), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_kill_9_of_the_daemon_costs_a_container_nothing(box: Contained) -> None:
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(box.base), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert daemon.stdout is not None
    container, state_dir, log, pid, launcher = json.loads(await daemon.stdout.readline())
    daemon.kill()
    await daemon.wait()
    await until(lambda: not Path(f"/proc/{launcher}").exists())  # the launcher ends with its daemon
    box.shims._run_root = box.base / "inner/run"

    link = await box.shims.adopt(container)

    assert link is not None and link.pid == pid
    lines = Path(log).read_bytes().count(b"\n")
    await until(lambda: Path(log).read_bytes().count(b"\n") > lines)  # it goes on
    Path(f"/proc/{pid}/root/go").touch()
    ended = await box.end(link)
    assert ended is not None and ended.code == 11
    text = [json.loads(line)["log"] for line in Path(log).read_text().splitlines()]
    assert text[:-1] == [f"{number}\n" for number in range(1, len(text))]
    assert text[-1] == f"{len(text) - 1} end\n"
    assert read_exit(Path(state_dir)) == ended
    for directory in Path("/sys/fs/cgroup").glob(f"**/{container}"):
        directory.rmdir()


async def test_the_launcher_is_started_again(box: Contained) -> None:
    before = await box.start(box.plan("sleep", "60"))
    dead = box.launcher.pid
    os.kill(dead, signal.SIGKILL)
    await until(lambda: not is_alive(dead))

    code, output = await box.run("echo", "again")

    assert (code, output) == (0, "again\n")
    assert box.launcher.pid != dead
    await before.signal(signal.SIGTERM)
    await before.signal(signal.SIGKILL)
    ended = await box.end(before)
    assert ended is not None and ended.code == 137


async def test_each_launcher_is_housed_before_it_starts_a_shim(tmp_path: Path) -> None:
    """In the unit that its shims are to outlive the daemon in."""
    housed: list[int] = []
    launcher = Launcher(tmp_path, housed.append)
    try:
        first = launcher.pid
        launcher.revive()
        assert housed == [first]
        os.kill(first, signal.SIGKILL)
        await until(lambda: not is_alive(first))
        launcher.revive()
        assert housed == [first, launcher.pid] and is_alive(launcher.pid)
    finally:
        launcher.close()


async def test_a_container_dies_with_its_shim_and_its_exit_stays_unknown(box: Contained) -> None:
    plan = box.plan("sh", "-c", "sleep 4321 & sleep 4321")
    link = await box.start(plan)
    os.kill(shim_of(link), signal.SIGKILL)

    ended = await asyncio.wait_for(link.wait(), 30)

    assert ended is None
    await until(lambda: not Path(f"/proc/{link.pid}").exists())
    assert read_exit(Path(plan.state_dir)) is None
    assert await box.new_shims().adopt(plan.id) is None
    (Path(plan.run_dir) / "shim.sock").unlink()


async def test_a_shim_that_does_not_answer_is_ended(box: Contained, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped, and would have gone on beside the next run."""
    plan = box.plan("sleep", "4321")
    link = await box.start(plan)
    shim = shim_of(link)
    os.kill(shim, signal.SIGSTOP)
    await box.shims.close()
    monkeypatch.setattr(shimlink, "HELLO_SECONDS", 0.5)

    assert await box.new_shims().adopt(plan.id) is None

    await until(lambda: not is_alive(shim) and not is_alive(link.pid))
    (Path(plan.run_dir) / "shim.sock").unlink()


async def test_a_shim_that_wakes_late_leaves_the_next_run_alone(box: Contained) -> None:
    """Its end, which it records then, is in a directory that is gone, and so is its socket."""
    plan = box.plan("sleep", "4321", log=LogPlan())
    first = await box.start(plan)
    shim = shim_of(first)
    os.kill(shim, signal.SIGSTOP)
    await box.shims.close()
    os.kill(first.pid, signal.SIGKILL)

    where = SimpleNamespace(
        container_dir=lambda _: Path(plan.state_dir).parent,
        state_dir=lambda _: Path(plan.state_dir),
        run_dir=lambda _: Path(plan.run_dir),
    )
    kept = [Path(path) for path in (plan.root.upper, plan.root.work) if path]
    _new_directories(where, plan.id)  # type: ignore[arg-type]
    for directory in kept:
        directory.mkdir()
    box.shims = box.new_shims()
    second = await box.start(plan)
    os.kill(shim, signal.SIGCONT)
    await until(lambda: not is_alive(shim))

    assert read_exit(Path(plan.state_dir)) is None
    await box.shims.close()
    box.shims = box.new_shims()
    again = await box.shims.adopt(plan.id)
    assert again is not None and again.pid == second.pid
    await again.signal(signal.SIGKILL)
    ended = await box.end(again)
    assert ended is not None and ended.code == 137 and read_exit(Path(plan.state_dir)) == ended


async def test_a_unit_that_is_stopped_gives_its_containers_their_grace(box: Contained) -> None:
    """systemd sends SIGTERM to every process of it, shim and launcher among them; the container's own end counts."""
    plan = box.plan("sh", "-c", "trap 'echo flushed; exit 5' TERM; echo up; while :; do sleep 0.01; done")
    link = await box.start(plan)
    await until(lambda: box.logged(plan) == "up\n")
    for pid in (box.launcher.pid, shim_of(link), link.pid):
        os.kill(pid, signal.SIGTERM)

    ended = await box.end(link)

    assert ended is not None and ended.code == 5
    assert box.logged(plan) == "up\nflushed\n"
    assert await box.run("echo", "again") == (0, "again\n")


async def test_a_start_that_its_daemon_does_not_finish_is_undone(box: Contained) -> None:
    """ketchd is killed between the child's birth and the gate."""
    plan = box.plan("sleep", "60")
    pids: list[int] = []
    reached = asyncio.Event()

    async def on_pid(pid: int, network_pid: int) -> None:
        pids.append(pid)
        reached.set()
        await asyncio.Event().wait()

    link: list[ShimLink] = []
    connect = ShimLink.connect

    def remember(self: ShimLink, *given: object) -> None:
        link.append(self)
        connect(self, *given)  # type: ignore[arg-type]

    ShimLink.connect = remember  # type: ignore[method-assign, assignment]
    try:
        starting = asyncio.ensure_future(box.start(plan, on_pid=on_pid))
        await reached.wait()
        channel = link[0]._channel
        assert channel is not None
        channel._channel.shutdown(2)  # as the kernel does when a process is killed
    finally:
        ShimLink.connect = connect  # type: ignore[method-assign]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    await until(lambda: not Path(f"/proc/{pids[0]}").exists())
    await until(lambda: not (Path(plan.run_dir) / "shim.sock").exists())


async def test_a_build_step_ends_with_its_daemon(box: Contained) -> None:
    plan = box.plan("sleep", "60", transient=True)
    link = await box.start(plan)

    await box.shims.close()

    await until(lambda: not Path(f"/proc/{link.pid}").exists())


async def test_what_is_no_protocol_does_not_disturb_the_container(box: Contained) -> None:
    """Rubbish, half a frame, unknown requests: the connection suffers, nothing else."""
    plan = box.plan("sleep", "60")
    link = await box.start(plan)
    await box.shims.close()  # two ketchds would take the shim from each other
    path = str(Path(plan.run_dir) / "shim.sock")
    directory = os.open(plan.run_dir, os.O_PATH)
    for sent in (
        b"\xff" * 64,
        b"\x00\x00\x00\x08half",
        pack({"op": "_start"}),
        pack({"op": "no such", "seq": 1}),
    ):
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/shim.sock")
        writer.write(sent)
        await writer.drain()
        await reader.read(4096)
        writer.close()
    os.close(directory)
    assert Path(path).exists()

    again = await box.new_shims().adopt(plan.id)

    assert again is not None and again.pid == link.pid
    await again.signal(signal.SIGKILL)
    ended = await box.end(again)
    assert ended is not None and ended.code == 137


async def test_the_shim_is_not_reachable_for_tracers_and_small(box: Contained) -> None:
    """CVE-2019-5736: not dumpable, so /proc/PID/exe and mem of it need what a container has not."""
    links = [await box.start(box.plan("sleep", "60")) for _ in range(4)]
    for link in links:
        status = Path(f"/proc/{shim_of(link)}/stat").stat()
        assert status.st_uid == 0
        rollup = Path(f"/proc/{shim_of(link)}/smaps_rollup").read_text()
        own = next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty:"))
        assert int(own) < 2.5 * 1024  # KiB that it shares with nobody, however many there are
    for link in links:
        await link.signal(signal.SIGKILL)
        await box.end(link)
