"""The trash: a name is free at once, its file goes behind the answer, and nothing is too deep for it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ketchd.catalogue.database import Catalogue
from ketchd.content import blobs
from ketchd.content.blobs import BlobStore
from ketchd.layers import trash as trash_module
from ketchd.layers.placing import remove_some
from ketchd.layers.trash import Trash
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest


def left(root: Path) -> list[str]:
    return sorted(os.listdir(root / "trash"))


@pytest.fixture
async def workers() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(2)
    yield pool
    await pool.close()


def tree(path: Path, files: int) -> Path:
    """A directory with files in directories."""
    for number in range(files):
        (path / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
        (path / f"d{number % 7}" / f"f{number}").write_text("x")
    return path


async def test_a_name_is_free_at_once_and_the_file_goes_later(tmp_path: Path) -> None:
    """Nothing there is said so; a second thing of that name is another."""
    trash = Trash(tmp_path)
    (tmp_path / "file").write_text("first")
    assert trash.take(tmp_path / "file")
    assert not (tmp_path / "file").exists() and len(left(tmp_path)) == 1
    (tmp_path / "file").write_text("second")
    await trash.emptied()
    assert left(tmp_path) == [] and (tmp_path / "file").read_text() == "second"
    assert not trash.take(tmp_path / "absent")


@pytest.mark.parametrize("files", [3, 1000])
async def test_directories_go_with_all_that_is_in_them(
    tmp_path: Path, workers: WorkerPool, files: int
) -> None:
    """A few entries by a thread, many by a worker; links are not followed."""
    trash = Trash(tmp_path, workers)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("x")
    made = tree(tmp_path / "made", files)
    (made / "link").symlink_to(tmp_path / "outside")
    (made / "d0" / "link").symlink_to(tmp_path / "outside")
    trash.take(made)
    await trash.emptied()
    assert left(tmp_path) == [] and (tmp_path / "outside" / "kept").exists()


def test_deeper_than_a_path_can_name(tmp_path: Path) -> None:
    """A container nests directories as deep as it likes; the limit of a thread's patience is kept."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("directory", dir_fd=here)
        (inner := os.open("directory", os.O_RDONLY, dir_fd=here), os.close(here))
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert not remove_some(str(top), 100)
    assert top.is_dir()
    assert remove_some(str(top))
    assert not top.exists()


async def test_what_the_last_daemon_left_goes(tmp_path: Path) -> None:
    (tmp_path / "trash").mkdir()
    tree(tmp_path / "trash" / "old", 5)
    (tmp_path / "trash" / "file").write_text("x")
    trash = Trash(tmp_path)
    trash.start()
    await trash.emptied()
    assert left(tmp_path) == []


async def test_what_cannot_go_does_not_hold_up_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and tried again at the next start."""
    told: list[str] = []
    log = SimpleNamespace(warning=lambda text, **facts: told.append(f"{text}: {facts['reason']}"))
    trash, plain = Trash(tmp_path, log=log), remove_some
    first = iter([True])

    def failing(path: str, limit: int | None) -> bool:
        if next(first, False):
            raise PermissionError(1, "Operation not permitted")
        return plain(path, limit)

    monkeypatch.setattr(trash_module, "remove_some", failing)
    for name in ("a", "b"):
        (tmp_path / name).write_text("x")
        trash.take(tmp_path / name)
    await trash.emptied()
    assert len(left(tmp_path)) == 1 and len(told) == 1 and "Operation not permitted" in told[0]
    again = Trash(tmp_path)
    again.start()
    await again.emptied()
    assert left(tmp_path) == []


@pytest.mark.parametrize("free", [1, 40])
async def test_on_a_full_disk_the_answer_waits_for_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Of 100 blocks: with 1 free `settle` comes back when all is unlinked, with 40 before."""
    trash, go_on = Trash(tmp_path), threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=100, f_bavail=free))

    def slow(path: str, limit: int | None) -> bool:
        go_on.wait(30)
        return remove_some(path, limit)

    monkeypatch.setattr(trash_module, "remove_some", slow)
    (tmp_path / "file").write_text("x")
    trash.take(tmp_path / "file")
    settling = asyncio.ensure_future(trash.settle())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert settling.done() is (free == 40)
    go_on.set()
    await settling
    await trash.emptied()
    assert left(tmp_path) == []


@pytest.mark.parametrize("free", [1, 40])
async def test_on_a_full_disk_the_answer_waits_for_who_has_it_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """An unlinked file takes its room until it is mounted nowhere: that its holder lets go of it is told by a descriptor's end."""
    trash, (told, holder) = Trash(tmp_path), os.pipe()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=100, f_bavail=free))
    (tmp_path / "file").write_text("x")
    trash.take(tmp_path / "file")
    trash.await_end(told)
    await trash.emptied()
    settling = asyncio.ensure_future(trash.settle())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert settling.done() is (free == 40)
    os.close(holder)
    await settling
    if free == 40:
        await trash.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(told)


async def test_a_blob_removed_while_it_is_stored_again_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one's file is in place, its record not yet: whoever removes the old one leaves it alone."""
    catalogue, trash = Catalogue(tmp_path / "catalogue.sqlite"), Trash(tmp_path)
    store, digest = BlobStore(tmp_path, catalogue, trash), Digest.of(b"content")
    await store.put(b"content", "")
    placed, go_on = threading.Event(), threading.Event()
    plain = blobs._place

    def slow(staged: Path, final: Path) -> None:
        plain(staged, final)
        placed.set()
        go_on.wait(30)

    monkeypatch.setattr(blobs, "_place", slow)
    staged = store.stage_path()
    staged.write_bytes(b"content")
    publishing = asyncio.ensure_future(store.publish(staged, digest, 7, ""))
    await asyncio.to_thread(placed.wait, 30)
    store.remove(digest)
    go_on.set()
    await publishing
    await trash.emptied()
    assert store.read(digest) == b"content" and store.has(digest)
    catalogue.close()
