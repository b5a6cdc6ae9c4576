"""cp both ways, diff, export and commit, on containers that run and on containers that do not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ketch_testing.copying import ALIVE, Entry, fetch, mounts_of, prepared, put, tar, upper_of
from ketch_testing.heldroot import running as held
from ketch_wire.faults import Conflict, EngineFailure, InvalidInput, NotFound
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.engine import copies
from ketchd.engine.commit import commit
from ketchd.engine.diff import changes
from ketchd.engine.export import export
from ketchd.engine.rooms import Rooms
from ketchd.model.reference import Reference

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for namespaces and mounts"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox is not installed (busybox-static)"),
]
Ready = tuple[Rooms, Box]


@pytest.fixture(params=["stopped", "running"])
async def ready(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ready]:
    """A busybox container in both states, and the proof that no mount was made outside."""
    async with prepared(tmp_path, "directory") as (rooms, box):
        init = await rooms.layers.compose(box.record.diff_ids)
        running = request.param == "running"
        with held(rooms, box, init, ALIVE) if running else nullcontext():
            box.record.state = State.RUNNING if running else State.EXITED
            yield rooms, box
    assert [line for line in mounts_of() if str(tmp_path) in line] == []


@pytest.mark.parametrize(
    ("path", "names", "stat_name", "target"),
    [
        ("/w/d", ["d", "d/f"], "d", ""),
        ("w/d/", ["d", "d/f"], "d", ""),
        ("/w/d/.", [".", "./f"], ".", ""),
        ("/w/d/f", ["f"], "f", ""),
        ("/w/../w/./d/f", ["f"], "f", ""),
        ("/w/l", ["l"], "l", "/w/d/f"),
        ("/w/ld", ["ld"], "ld", "/w/d"),
        ("/w/ld/", ["ld", "ld/f"], "ld", ""),
        ("/w/ld/.", [".", "./f"], ".", ""),
        ("/w/ld/f", ["f"], "f", ""),
        ("/w/out/canary", ["canary"], "canary", ""),
        ("/../../../etc/canary", ["canary"], "canary", ""),
    ],
)
async def test_what_a_path_gives(
    ready: Ready, path: str, names: list[str], stat_name: str, target: str
) -> None:
    rooms, box = ready

    shown, archive = await fetch(rooms, box, path)
    assert archive.getnames() == names
    assert (shown["name"], shown["linkTarget"]) == (stat_name, target)
    assert await copies.stat_path(rooms, box, path, "c") == shown
    content = [archive.extractfile(entry).read() for entry in archive if entry.isreg()]  # type: ignore[union-attr]
    assert content in ([], [b"content\n"], [b"of the container\n"])


async def test_the_stat_object_is_gos(ready: Ready) -> None:
    rooms, box = ready

    assert await copies.stat_path(rooms, box, "/w/d/f", "c") == {
        "name": "f", "size": 8, "mode": 420, "mtime": "2023-11-14T22:13:20Z", "linkTarget": "",
    }  # fmt: skip
    assert (await copies.stat_path(rooms, box, "/w/d", "c"))["mode"] == 2147484141
    assert (await copies.stat_path(rooms, box, "/w/l", "c"))["mode"] == 134218239
    root, archive = await fetch(rooms, box, "/")
    names = archive.getnames()
    assert root["name"] == "/" and {"/.dockerenv", "/w/d/f", "/proc"} <= set(names)
    assert not [name for name in names if name.startswith("/proc/")]


async def test_what_is_not_there(ready: Ready) -> None:
    rooms, box = ready

    for ask in (copies.stat_path, fetch_by):
        with pytest.raises(NotFound, match="Could not find the file /nope in container c"):
            await ask(rooms, box, "/nope", "c")
    with pytest.raises(InvalidInput, match="pathcannot be empty"):
        await copies.stat_path(rooms, box, "", "c")
    with pytest.raises(NotFound, match="Could not find the file /nope in container c"):
        await put(rooms, box, "/nope", tar())
    with pytest.raises(InvalidInput, match="extraction point is not a directory"):
        await put(rooms, box, "/w/d/f", tar())


async def fetch_by(rooms: Rooms, box: Box, path: str, shown: str) -> Any:
    return await fetch(rooms, box, path)


TREE = (
    Entry("in", mode=0o750, uid=5, gid=6, mtime=1_600_000_000),
    Entry("in/file", b"x" * 100_000, mode=0o4755, uid=1000, gid=1001, mtime=1_500_000_000),
    Entry("in/hard", type=tarfile.LNKTYPE, linkname="in/file"),
    Entry("in/soft", type=tarfile.SYMTYPE, linkname="/anywhere", uid=7),
    Entry("in/pipe", type=tarfile.FIFOTYPE, mode=0o600),
    Entry("in/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
    Entry("in/\u00fc", b"", pax_headers={"SCHILY.xattr.user.k": "v"}),
)


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress],
    ids=["plain", "gzip", "bzip2", "xz", "zstd"],
)
async def test_in_and_out_again_everything_is_kept(ready: Ready, pack: Any) -> None:
    rooms, box = ready

    await put(rooms, box, "/w/ld", pack(tar(*TREE)))
    _, archive = await fetch(rooms, box, "/w/d/in")
    found = {entry.name: entry for entry in archive}
    assert set(found) == {entry.info.name for entry in TREE}
    directory, file, null = found["in"], found["in/file"], found["in/null"]
    assert (directory.mode, directory.uid, directory.gid, directory.mtime) == (0o750, 5, 6, 1_600_000_000)
    assert (file.mode, file.uid, file.gid, file.mtime) == (0o4755, 1000, 1001, 1_500_000_000)
    assert archive.extractfile(file).read() == b"x" * 100_000  # type: ignore[union-attr]
    assert found["in/hard"].islnk() and found["in/hard"].linkname == "in/file"
    assert (found["in/soft"].linkname, found["in/soft"].uid) == ("/anywhere", 7)
    assert found["in/pipe"].isfifo() and (null.devmajor, null.devminor) == (1, 3)
    assert found["in/\u00fc"].pax_headers["SCHILY.xattr.user.k"] == "v"
    assert [event.action for event in rooms.events.since(0)] == ["extract-to-dir"]


async def test_overwriting(ready: Ready) -> None:
    rooms, box = ready

    await put(rooms, box, "/w", tar(Entry("l", b"now a file"), Entry("d"), Entry("d/g", b"beside f")))
    _, archive = await fetch(rooms, box, "/w")
    assert {"w/l", "w/d/f", "w/d/g"} <= set(archive.getnames()) and archive.getmember("w/l").isreg()

    message = r'cannot overwrite non-directory "/w/d/f" with directory "/w/d"'
    with pytest.raises(EngineFailure, match=message):
        await put(rooms, box, "/w/d", tar(Entry("f")), no_overwrite=True)
    with pytest.raises(EngineFailure, match=r'cannot overwrite directory "/w/d" with non-directory "/w"'):
        await put(rooms, box, "/w", tar(Entry("d", b"")), no_overwrite=True)
    await put(rooms, box, "/w", tar(Entry("d", b"no more")))
    assert (await copies.stat_path(rooms, box, "/w/d", "c"))["mode"] == 420


async def test_a_file_that_is_a_link_elsewhere_is_replaced_not_followed(ready: Ready) -> None:
    rooms, box = ready

    await put(rooms, box, "/w", tar(Entry("l", b"new")))
    _, archive = await fetch(rooms, box, "/w/d/f")
    assert archive.extractfile("f").read() == b"content\n"  # type: ignore[union-attr]


async def test_parents_are_made_and_links_on_the_way_lead_inside(ready: Ready) -> None:
    rooms, box = ready

    await put(rooms, box, "/w", tar(Entry("out/made", b"1"), Entry("n/m/deep", b"2")))
    assert (await fetch(rooms, box, "/etc/made"))[1].getnames() == ["made"]
    assert (await fetch(rooms, box, "/w/n/m/deep"))[1].getnames() == ["deep"]
    assert not Path("/etc/made").exists()


async def test_owner_of_the_containers_user(ready: Ready) -> None:
    rooms, box = ready
    box.record.config["User"] = "user"

    await put(rooms, box, "/w", tar(Entry("mine", b"1", uid=77)), copy_owner=True)
    entry = (await fetch(rooms, box, "/w/mine"))[1].getmember("mine")
    assert (entry.uid, entry.gid) == (1000, 1001)
    box.record.config["User"] = "nobody-here"
    with pytest.raises(EngineFailure, match="unable to find user nobody-here"):
        await put(rooms, box, "/w", tar(Entry("mine", b"1")), copy_owner=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(Entry("a", b"x" * 3000))[:2000], "Error processing tar file"),
        (b"rubbish" * 300, "Error processing tar file"),
        (tar(Entry("ok", b"1"), Entry("../../etc/evil", b"2")), "is outside of"),
        (tar(Entry("h", type=tarfile.LNKTYPE, linkname="../../../etc/passwd")), "is outside of"),
    ],
)
async def test_bad_tars(ready: Ready, content: bytes, message: str) -> None:
    rooms, box = ready

    with pytest.raises(EngineFailure, match=message):
        await put(rooms, box, "/w", content)
    assert list((rooms.data_root / "stage").iterdir()) == []
    assert not Path("/etc/evil").exists()


async def test_an_empty_body_changes_nothing(ready: Ready) -> None:
    rooms, box = ready

    await put(rooms, box, "/w", b"")
    await put(rooms, box, "/w", tar())
    assert await changes(rooms, box) == []


async def test_volumes_and_binds_belong_to_it(tmp_path: Path) -> None:
    async with prepared(tmp_path, "erofs-loop" if not _file_backed() else "erofs") as (rooms, box):
        for name in ("rw", "ro", "sub/inner"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "ro" / "seen").write_text("seen")
        box.record.mounts = [
            point("bind", "/v", tmp_path / "rw"), point("bind", "/v/nested", tmp_path / "ro", rw=False),
            point("bind", "/new/place", tmp_path / "sub"),
        ]  # fmt: skip

        await put(rooms, box, "/v", tar(Entry("into", b"1")))
        assert (tmp_path / "rw" / "into").read_text() == "1"
        assert (await fetch(rooms, box, "/v/nested/seen"))[1].getnames() == ["seen"]
        assert (await fetch(rooms, box, "/new/place/inner"))[1].getnames() == ["inner"]
        with pytest.raises(InvalidInput, match="mounted volume is marked read-only"):
            await put(rooms, box, "/v/nested", tar(Entry("x", b"1")))
        box.record.host_config["ReadonlyRootfs"] = True
        with pytest.raises(InvalidInput, match="container rootfs is marked read-only"):
            await put(rooms, box, "/w", tar(Entry("x", b"1")))
        await put(rooms, box, "/v", tar(Entry("again", b"1")))
        assert not {"v/into", "v/nested/seen"} & set(await exported_names(rooms, box))


def _file_backed() -> bool:
    return tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 12)


def point(kind: str, target: str, source: Path, *, rw: bool = True, **more: Any) -> dict[str, Any]:
    return {"type": kind, "destination": target, "source": str(source), "rw": rw, **more}


async def test_a_running_containers_mounts_are_seen(tmp_path: Path) -> None:
    async with prepared(tmp_path, "directory") as (rooms, box):
        init = await rooms.layers.compose(box.record.diff_ids)
        for name in ("rw", "ro"):
            (tmp_path / name).mkdir()
        (tmp_path / "ro" / "seen").write_text("seen")
        binds = [(str(tmp_path / "rw"), "/v", False), (str(tmp_path / "ro"), "/tmp", True)]
        with held(rooms, box, init, ALIVE, binds):
            box.record.state = State.RUNNING
            await put(rooms, box, "/v", tar(Entry("into", b"1")))
            assert (tmp_path / "rw" / "into").read_text() == "1"
            assert (await fetch(rooms, box, "/tmp/seen"))[1].getnames() == ["seen"]
            box.record.mounts = [point("bind", "/v", tmp_path / "rw")]
            whole = (await fetch(rooms, box, "/"))[1].getnames()
            assert "/v/into" in whole and "/proc/1" not in whole
            with pytest.raises(InvalidInput, match="container rootfs is marked read-only"):
                await put(rooms, box, "/tmp", tar(Entry("x", b"1")))
            names = await exported_names(rooms, box)
            assert {"v", "tmp", "proc", "etc/canary"} <= set(names), "what is below a mount point is there"
            assert not {"v/into", "tmp/seen"} & set(names), "what is mounted is not the container's own"
        with pytest.raises(Conflict, match="is not running any more"):
            await copies.stat_path(rooms, box, "/", "c")


async def test_changes_as_dockerd_counts_them(ready: Ready) -> None:
    rooms, box = ready
    assert await changes(rooms, box) == []

    await put(
        rooms,
        box,
        "/",
        tar(Entry("etc/new", b"1"), Entry("etc/passwd", b"root:x:0:0::/:\n"), Entry("n"), Entry("n/x", b"")),
    )
    await put(rooms, box, "/w", tar(Entry("d", b"a file now")))
    assert [(row["Path"], row["Kind"]) for row in await changes(rooms, box)] == [
        ("/etc", 0), ("/etc/new", 1), ("/etc/passwd", 0), ("/n", 1), ("/n/x", 1), ("/w", 0), ("/w/d", 0),
    ]  # fmt: skip


async def test_changes_of_whiteouts_and_opaque_directories(tmp_path: Path) -> None:
    async with prepared(tmp_path, "directory") as (rooms, box):
        upper = upper_of(rooms, box)
        (upper / "w").mkdir(mode=0o755)
        os.mknod(upper / "w" / "l", stat.S_IFCHR, 0)
        os.mknod(upper / "w" / "never-there", stat.S_IFCHR, 0)
        (upper / "etc").mkdir(mode=0o755)
        os.setxattr(upper / "etc", "trusted.overlay.opaque", b"y")
        (upper / "etc" / "own").touch()

        rows = [(row["Path"], row["Kind"]) for row in await changes(rooms, box)]
        assert ("/w/l", 2) in rows and ("/w/never-there", 2) not in rows
        assert {("/etc/own", 1), ("/etc/passwd", 2), ("/etc/canary", 2), ("/etc", 0), ("/w", 0)} <= set(rows)


async def exported_names(rooms: Rooms, box: Box) -> list[str]:
    async with await export(rooms, box) as job:
        content = b"".join([chunk async for chunk in job.chunks()])
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getnames()


async def test_export_is_the_root(ready: Ready) -> None:
    rooms, box = ready
    await put(rooms, box, "/", tar(Entry("added", b"1")))

    names = await exported_names(rooms, box)
    assert {"added", ".dockerenv", "bin/busybox", "w/d/f", "proc", "etc/hosts"} <= set(names)
    assert not [name for name in names if name.startswith("proc/")]


async def test_commit_makes_an_image_on_top(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms, box = ready
    frozen: list[str] = []
    monkeypatch.setattr(rooms.cgroups, "freeze", lambda _: frozen.append("freeze"), raising=False)
    monkeypatch.setattr(rooms.cgroups, "thaw", lambda _: frozen.append("thaw"), raising=False)
    await put(rooms, box, "/", tar(Entry("added", b"1")))

    image = await commit(
        rooms, box, config={}, changes=['CMD ["new"]', "LABEL k=v"], target=Reference.parse("made:1"),
        author="me", comment="why",
    )  # fmt: skip
    record = rooms.images.get(image)
    assert record.repo_tags == ["made:1"] and str(record.parent) == box.record.image_id
    assert len(record.layers) == 2 and record.layers[0] == box.record.diff_ids[0]
    run = record.config.run
    assert (run.cmd, run.labels, record.config.author, record.config.comment) == (
        ("new",),
        {"k": "v"},
        "me",
        "why",
    )
    assert record.config.history[-1].created_by == "true"
    running = box.record.state is State.RUNNING
    assert frozen == (["freeze", "thaw"] if running else [])
    assert [event.action for event in rooms.events.since(0)][-1] == "commit"
    assert rooms.garbage.find() == []


async def test_commit_without_changes_adds_no_layer(ready: Ready) -> None:
    rooms, box = ready

    image = await commit(rooms, box, config={"Cmd": ["other"]}, pause=False)
    assert rooms.images.get(image).layers == tuple(box.record.diff_ids)
    assert rooms.images.config(image).history[-1].empty_layer
    assert rooms.images.config(image).run.cmd == ("other",)


async def test_a_reader_that_leaves_ends_the_work(ready: Ready) -> None:
    rooms, box = ready
    await put(rooms, box, "/w", tar(Entry("big", b"x" * 8_000_000)))

    async with await copies.pack_path(rooms, box, "/w/big", "c") as job:
        async for _ in job.chunks():
            break
    assert (await copies.stat_path(rooms, box, "/w/big", "c"))["size"] == 8_000_000
