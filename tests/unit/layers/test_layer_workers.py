"""The worker pool: jobs and their faults come home, workers are reused, and whatever dies is replaced. No root needed."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ketch_testing.tars import Member, make_tar
from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.layers.workers import WorkerPool

INGEST = "ketchd.layers.ingest:ingest"


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    made = WorkerPool()
    yield made
    await made.close()
    assert children() == set()


def children() -> set[int]:
    """Pids of every nursery and worker below this process."""
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                pids = [int(pid) for pid in task.read_text().split()]
            except OSError:
                continue
            todo += pids
            found |= {pid for pid in pids if name_of(pid).startswith("ketch-")}
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def workers() -> set[int]:
    return {pid for pid in children() if name_of(pid) == "ketch-worker"}


async def one_worker() -> int:
    """The pid of the only worker, as soon as it has its name."""
    async with asyncio.timeout(30):
        while len(found := workers()) != 1:  # noqa: ASYNC110 - nothing tells when a process appears
            await asyncio.sleep(0)
    return found.pop()


async def end_of(*pids: int) -> None:
    """Until the processes are gone."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            await asyncio.to_thread(select.select, [pidfd], [], [], 30)
        finally:
            os.close(pidfd)


def arguments(tmp_path: Path, tar: bytes, number: int = 0) -> dict[str, object]:
    source = tmp_path / f"source-{number}"
    source.write_bytes(tar)
    return {
        "place": {"path": str(tmp_path / f"layer-{number}"), "kind": "erofs"},
        "compression": None, "blob": None, "source": str(source),
    }  # fmt: skip


async def test_results_and_faults_come_home(pool: WorkerPool, tmp_path: Path) -> None:
    """And one worker serves one job after the other."""
    await pool.start()
    for number in range(3):
        facts = await pool.run(INGEST, arguments(tmp_path, make_tar(Member("a")), number))
        assert facts["entries"] == 1
        with pytest.raises(InvalidInput, match="tar"):
            await pool.run(INGEST, arguments(tmp_path, b"x" * 600, number + 10))
        with pytest.raises(EngineFailure, match="no such file"):
            await pool.run(INGEST, arguments(tmp_path, b"", 20) | {"source": str(tmp_path / "nowhere")})
    with pytest.raises(EngineFailure, match="no such job"):
        await pool.run("os:system", {})
    assert len(workers()) == 1


async def test_jobs_run_side_by_side(pool: WorkerPool, tmp_path: Path) -> None:
    """As many workers as jobs; ended jobs leave them idle."""
    made = await asyncio.gather(
        *(pool.run(INGEST, arguments(tmp_path, make_tar(Member("a")), number)) for number in range(6))
    )
    assert len(made) == 6 and 1 <= len(workers()) <= 6


async def test_a_worker_that_dies_is_a_fault_of_its_job_only(pool: WorkerPool, tmp_path: Path) -> None:
    """The next job gets another one."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    job = await pool.begin(INGEST, arguments(tmp_path, b"", 1) | {"source": str(fifo)})
    os.kill(await one_worker(), signal.SIGKILL)
    with pytest.raises(EngineFailure, match="died"):
        await job.result()
    assert (await pool.run(INGEST, arguments(tmp_path, make_tar(Member("a")), 2)))["entries"] == 1


async def test_a_cancelled_job_is_over_when_that_returns(pool: WorkerPool, tmp_path: Path) -> None:
    """Killed and gone, whether cancelled by hand or with the task that waits."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    job = await pool.begin(INGEST, arguments(tmp_path, b"", 1) | {"source": str(fifo)})
    await job.cancel()
    assert workers() == set()
    task = asyncio.create_task(pool.run(INGEST, arguments(tmp_path, b"", 2) | {"source": str(fifo)}))
    await one_worker()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers() == set()


async def test_a_nursery_that_dies_is_replaced(pool: WorkerPool, tmp_path: Path) -> None:
    """Its workers end with it; the next job starts anew."""
    await pool.run(INGEST, arguments(tmp_path, make_tar(Member("a")), 1))
    (nursery,) = {pid for pid in children() if name_of(pid) == "ketch-nursery"}
    waiting = asyncio.create_task(end_of(nursery, await one_worker()))
    await asyncio.sleep(0)
    os.kill(nursery, signal.SIGKILL)
    await waiting
    assert (await pool.run(INGEST, arguments(tmp_path, make_tar(Member("a")), 2)))["entries"] == 1


async def test_descriptors_travel_with_a_job(pool: WorkerPool, tmp_path: Path) -> None:
    """And none stays open here or there."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        source = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
        os.write(source, make_tar(Member("a")))
        os.lseek(source, 0, os.SEEK_SET)
        with_fd = arguments(tmp_path, b"", number) | {"source": None}
        assert (await pool.run(INGEST, with_fd, [source]))["entries"] == 1
        os.close(source)
    (worker,) = workers()
    assert len(os.listdir(f"/proc/{worker}/fd")) < 8
    assert len(os.listdir("/proc/self/fd")) < before + 8


async def test_clients_that_do_not_read_starve_nobody(tmp_path: Path) -> None:
    """Jobs that feed clients wait for each other; a job of another kind goes on at once."""
    pool = WorkerPool(1)
    fifos = [tmp_path / f"fifo-{number}" for number in range(2)]
    for fifo in fifos:
        os.mkfifo(fifo)
    try:
        first = await pool.begin(
            INGEST, arguments(tmp_path, b"", 1) | {"source": str(fifos[0])}, feeds_client=True
        )
        second = asyncio.create_task(
            pool.begin(INGEST, arguments(tmp_path, b"", 2) | {"source": str(fifos[1])}, feeds_client=True)
        )
        facts = await pool.run(INGEST, arguments(tmp_path, make_tar(Member("a")), 3))
        assert facts["entries"] == 1 and not second.done()
        await first.cancel()
        await (await second).cancel()
        assert (await pool.run(INGEST, arguments(tmp_path, make_tar(Member("b")), 4)))["entries"] == 1
    finally:
        await pool.close()
