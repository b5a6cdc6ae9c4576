"""What is stored while the disk is full, or while its source goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.rooms import container_of, image_of
from ketch_wire.faults import Conflict, EngineFailure
from ketchd.build.runmounts import disk_usage, remove_tree
from ketchd.containers.lifecycle import State
from ketchd.content.recovery import sweep_store
from ketchd.engine.commit import commit
from ketchd.engine.remove import tree_size
from ketchd.engine.rooms import Rooms
from ketchd.engine.volumes import directory_size
from ketchd.layers.placing import remove_some, remove_staged
from ketchd.model.digest import Digest


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.fsync", "os.rename", "pathlib.Path.write_bytes"])
async def test_a_full_disk_leaves_nothing_of_a_blob(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whether it shows when the bytes are written or only when they are synced."""
    with monkeypatch.context() as patched:
        patched.setattr(call, full)
        with pytest.raises(EngineFailure, match="no space left on device"):
            await rooms.blobs.put(b"content", "text/plain")

    assert not rooms.blobs.has(Digest.of(b"content"))
    assert list((rooms.data_root / "stage").iterdir()) == []


@pytest.mark.parametrize("files", [["kept"], []])
async def test_a_container_that_is_removed_while_it_is_committed(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    """What was read of it may be half of it: there is no image."""
    image = await image_of(rooms, [], "x")
    box = container_of(rooms, image, "c", state=State.RUNNING)
    for name in files:
        (rooms.container_dir(box.record.id) / "upper" / name).write_bytes(b"1")
    run: Callable[..., Any] = rooms.workers.run

    async def run_and_remove(job: str, arguments: dict[str, Any]) -> Any:
        found = await run(job, arguments)
        if job.endswith("from_upper"):
            rooms.trash.take(Path(arguments["upper"]).parent)
        return found

    monkeypatch.setattr(rooms.workers, "run", run_and_remove)
    with pytest.raises(Conflict, match="which is being removed"):
        await commit(rooms, box, config={}, pause=False)

    assert rooms.images.count() == 1 and rooms.garbage.find() == []
    assert list((rooms.data_root / "stage").iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for mounts")
@pytest.mark.parametrize("user", ["container", "image", ""])
async def test_the_init_layer_of_no_layers_outlives_a_start(rooms: Rooms, user: str) -> None:
    """A running container of an image without layers stands on it."""
    init = await rooms.layers.compose([])
    image = await image_of(rooms, [], "x") if user else None
    if image is not None and user == "container":
        container_of(rooms, image, "c", state=State.RUNNING)
        rooms.images.remove(image)

    sweep_store(rooms.data_root, rooms.catalogue)

    assert init.is_dir() is bool(user)


@pytest.fixture
def deep(rooms: Rooms) -> Iterator[Path]:
    """A directory of more levels than Python's stack has, and with longer paths than the kernel takes."""
    top = rooms.data_root / "stage" / "deep"
    top.mkdir()
    (top / "near").write_bytes(bytes(5000))
    opened = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(2200):
            os.mkdir("d", dir_fd=opened)
            inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=opened)
            os.close(opened)
            opened = inner
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=opened))
        yield top
    finally:
        os.close(opened)
        remove_some(str(top))


async def test_what_is_nested_deeper_than_a_stack_goes_at_the_next_start(rooms: Rooms, deep: Path) -> None:
    """A RUN can make it, and a layer can hold it."""
    assert sweep_store(rooms.data_root, rooms.catalogue).removed == ["stage/deep"]
    assert not deep.exists()


async def test_what_is_nested_deeper_than_a_stack_is_removed_after_a_job(deep: Path) -> None:
    remove_staged(str(deep))
    assert not deep.exists()


@pytest.mark.parametrize("size", [tree_size, directory_size, disk_usage])
async def test_what_is_nested_deeper_than_a_stack_has_a_size(deep: Path, size: Callable[[Path], int]) -> None:
    """A container, a volume or a cache mount; or `container prune` and `system df` would fail because of it."""
    assert size(deep) >= 5000


async def test_what_is_nested_deeper_than_a_stack_is_removed_after_a_run(deep: Path) -> None:
    await remove_tree(deep)
    assert not deep.exists()
    await remove_tree(deep)
