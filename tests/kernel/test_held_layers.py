"""Layers that stay mounted between containers share one page cache, and are gone when they are removed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from ketch_testing.heldscenarios import run
from ketch_testing.tars import Member, make_tar
from ketch_wire.faults import EngineFailure
from ketchd.catalogue.database import Catalogue
from ketchd.layers.probe import probe
from ketchd.layers.store import LayerStore
from ketchd.layers.workers import WorkerPool
from ketchd.sandbox import heldlayers
from ketchd.shim.launcher import start_launcher

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for mounts")]
_SIZE = 4 << 20


@pytest.fixture(params=["erofs", "erofs-loop"])
async def files(
    request: pytest.FixtureRequest, disk: Path, workers: WorkerPool
) -> AsyncIterator[tuple[str, list[Path]]]:
    """(kind, three layer files of one file of _SIZE each)."""
    kind: str = request.param
    try:
        await probe(workers, disk, kind)
    except EngineFailure as failure:
        pytest.skip(failure.message)
    catalogue = Catalogue(disk / "catalogue.sqlite")
    store = LayerStore(disk, catalogue, workers, kind)
    paths = []
    for number in range(3):
        async with store.ingest() as ingestion:
            await ingestion.feed(make_tar(Member(f"file{number}", data=os.urandom(_SIZE))))
            paths.append(store.path((await ingestion.finish()).diff_id))
    yield kind, paths
    await store.close()
    catalogue.close()


def test_containers_share_a_layers_filesystem(files: tuple[str, list[Path]]) -> None:
    """And so its page cache; where nothing can be held, each has its own. The caller is back where it was, and nothing is seen there."""
    kind, paths = files
    found = run("shared", kind, *paths)
    assert found["first"] == found["second"] and set(found["first"]) == {"1", "2", "3"}
    assert not set(found["alone"].values()) & set(found["first"].values())
    assert found["held"] and found["at_home"] and found["names"] == ["file0"]


def test_a_removed_layer_is_let_go_of(files: tuple[str, list[Path]]) -> None:
    """Its room on the disk is free at once, unless a container has it mounted: then with the container's end."""
    kind, paths = files
    found = run("forgotten", kind, *paths)
    assert found["inside"] == [] and found["still"] == ["file1"]
    assert 2 * _SIZE <= found["freed"] < 3 * _SIZE <= found["all_freed"]


def test_what_was_not_used_for_longest_goes_first(files: tuple[str, list[Path]]) -> None:
    """A chain of more layers than are held at a time is mounted all the same."""
    kind, paths = files
    assert run("limited", kind, *paths) == {"kept": True, "many": 3, "inside": 3}


def test_many_at_once(files: tuple[str, list[Path]]) -> None:
    """Each gets the layer, never the empty place where it is about to be; all of it goes in the end."""
    kind, paths = files
    found = run("raced", kind, *paths)
    assert found == {"seen": [[["file0"], ["file1"], ["file2"]]] * 8, "one": 1, "inside": []}


def test_a_layer_that_is_removed_while_it_is_mounted(files: tuple[str, list[Path]]) -> None:
    """The container that was quicker has it, and nothing holds it afterwards, or its room would stay taken."""
    kind, paths = files
    found = run("removed_meanwhile", kind, *paths)
    assert found == {"names": [["file0"], ["file1"], ["file2"]], "inside": []}


def test_a_layer_that_cannot_be_mounted_is_named(files: tuple[str, list[Path]]) -> None:
    """By its file: that is what `ketch system fsck` and its user know it by. The others are closed."""
    kind, paths = files
    found = run("unusable", kind, *paths)
    assert [text.removeprefix("mount erofs ") for text in found["missing"]] == [
        f"{paths[0]}: No such file or directory"
    ] * 2
    assert found["damaged"] == [f"mount erofs {paths[1]}: Invalid argument"] * 2
    assert found["open"] == 2  # the namespace, and the look itself


async def test_a_removed_layer_is_told_when_its_place_is_free(disk: Path, workers: WorkerPool) -> None:
    """Told before, a container that starts in between would hold it once more."""
    catalogue = Catalogue(disk / "catalogue.sqlite")
    told: list[tuple[list[str], bool]] = []

    def let_go(names: Sequence[str]) -> int:
        told.append((list(names), store.path(layer).exists()))
        ended, writer = os.pipe()
        os.close(writer)
        return ended

    store = LayerStore(
        disk, catalogue, workers, "directory",
        let_go=let_go,
    )  # fmt: skip
    async with store.ingest() as ingestion:
        await ingestion.feed(make_tar(Member("file", data=b"1")))
        layer = (await ingestion.finish()).diff_id
    name = heldlayers.name(str(store.path(layer)))
    await store.remove(layer)
    await store.close()
    catalogue.close()
    assert told == [([name], False)]


def test_a_launcher_says_when_it_has_let_go(disk: Path) -> None:
    """By a descriptor's end; not before, and also when it has died. More names than one packet has are waited for."""
    launcher = start_launcher(disk)
    try:
        os.kill(launcher.pid, signal.SIGSTOP)
        waiting = launcher.forget_layers([f"{number:033x}" for number in range(1000)])
        assert select.select([waiting], [], [], 0)[0] == []
        os.kill(launcher.pid, signal.SIGCONT)
        assert os.read(waiting, 1) == b""
        os.close(waiting)
        os.kill(launcher.pid, signal.SIGKILL)
        waiting = launcher.forget_layers(["1-1"])
        assert os.read(waiting, 1) == b""
        os.close(waiting)
    finally:
        launcher.close()


def test_what_is_let_go_of_while_it_is_taken(files: tuple[str, list[Path]]) -> None:
    """Whatever others make room for at that moment, a container gets its layers."""
    kind, paths = files
    assert run("contended", kind, *paths) == {"failed": 0, "inside": []}


def test_in_a_chroot(files: tuple[str, list[Path]]) -> None:
    """Where ketchd's root is not its namespace's, a shim comes back to it."""
    kind, paths = files
    found = run("shared", kind, *paths, top="/")
    assert found["first"] == found["second"] and found["at_home"]


def test_where_proc_shows_other_processes(files: tuple[str, list[Path]]) -> None:
    """In a pid namespace with the host's /proc: a process's number there is somebody else's, whose mounts are not touched."""
    kind, paths = files
    found = run("shared", kind, *paths, under=("unshare", "--pid", "--fork"))
    assert found["held"] and found["first"] == found["second"] and found["at_home"]


@pytest.mark.parametrize(
    "under",
    [("unshare", "--user", "--map-root-user"), ("setpriv", "--bounding-set", "-sys_chroot")],
    ids=["no way home", "no way in"],
)
def test_where_nothing_can_be_held(under: tuple[str, ...]) -> None:
    """A user namespace in somebody else's mount namespace, a root without CAP_SYS_CHROOT: nobody is lost where they may not leave."""
    if subprocess.run([*under, "true"], check=False).returncode:
        pytest.skip(f"{under[0]} is refused")
    assert run("refused", "erofs", under=under) == {"namespace": -1, "at_home": True}
