"""What every kind of layer store does: one suite, run on files by the kernel, files by loop device, and directories."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from ketch_testing.mounted import Looker, Seen
from ketch_testing.oldindex import index_as_before
from ketch_testing.tars import Member, make_tar
from ketch_wire.faults import EngineFailure, InvalidInput, NotFound
from ketch_wire.launch import LayerMount
from ketchd.catalogue.database import Catalogue
from ketchd.layers.ingestion import IngestResult, LayerMismatch
from ketchd.layers.store import LayerStore
from ketchd.layers.workers import WorkerPool
from ketchd.model.compression import LEVELS, Compression
from ketchd.model.digest import Digest


@dataclass
class Bench:
    """A store on a root of its own, and an eye on what it mounts."""

    root: Path
    catalogue: Catalogue
    workers: WorkerPool
    store: LayerStore
    looker: Looker

    async def add(self, *members: Member) -> Digest:
        """A layer of these members."""
        return (await self.feed(make_tar(*members))).diff_id

    async def feed(self, blob: bytes, piece: int = 65536, keep: Path | None = None) -> IngestResult:
        """A layer as it arrives."""
        async with self.store.ingest(keep_blob=keep) as ingestion:
            for at in range(0, len(blob), piece):
                await ingestion.feed(blob[at : at + piece])
            return await ingestion.finish()

    def merged(self, diff_ids: Sequence[Digest]) -> dict[str, Seen]:
        """The chain's overlay, without an init layer."""
        return self.looker.merged(self.store.mounts(diff_ids))

    async def container(
        self, diff_ids: Sequence[Digest], script: str = "", upper: Path | None = None
    ) -> dict[str, Seen]:
        """What a container of the chain sees, after `script`."""
        init = await self.store.compose(diff_ids)
        chain = [LayerMount("directory", str(init)), *self.store.mounts(diff_ids)]
        return self.looker.merged(chain, script=script, upper=str(upper or ""))

    async def run(self, diff_ids: Sequence[Digest], script: str) -> tuple[dict[str, Seen], Digest | None]:
        """(what a step left behind, the layer made of it)."""
        base = self.root / "step"
        shutil.rmtree(base, ignore_errors=True)
        upper = base / "upper"
        upper.mkdir(parents=True)
        seen = await self.container(diff_ids, script, upper)
        return seen, await self.store.from_upper(upper, diff_ids)

    def staged(self) -> list[str]:
        """What lies in the stage."""
        return sorted(os.listdir(self.root / "stage"))

    def placed(self) -> list[str]:
        """The layers on the disk."""
        return sorted(os.listdir(self.root / "layers" / "sha256"))


TREE = (
    Member("bin", "directory", mode=0o755),
    Member("bin/tool", data=b"#!/bin/sh\n" * 300, mode=0o4755, mtime=1_500_000_000.25),
    Member("bin/again", "hardlink", target="bin/tool"),
    Member("bin/sh", "link", target="tool"),
    Member("etc", "directory", mode=0o750, uid=7, gid=8),
    Member("etc/conf", data=b"a=1\n", xattrs={"user.note": b"x"}),
    Member("dev", "directory", mode=0o755),
    Member("dev/null", "character", device=(1, 3), mode=0o666),
    Member("long/" + "n" * 200 + "/" + "m" * 200, data=b"deep"),
)


INIT = (
    ".", "dev/pts", "dev/shm", "proc", "sys", ".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname",
    "dev/console", "etc/mtab",
)  # fmt: skip


def names(seen: dict[str, Seen]) -> list[str]:
    """The paths, without the root."""
    return sorted(path for path in seen if path != ".")


class LayerStoreSuite:
    """Subclass it with a fixture `bench`."""

    @pytest.mark.parametrize("packed", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
    @pytest.mark.parametrize("piece", [7777, 1 << 20])
    async def test_a_layer_arrives(self, bench: Bench, packed: object, piece: int) -> None:
        """However compressed and cut: named by its tar's hash, recorded, kept as it came when asked, mountable, sound."""
        tar = make_tar(*TREE) + bytes(1024)
        blob: bytes = packed(tar)  # type: ignore[operator]
        keep = bench.root / "blob"

        result = await bench.feed(blob, piece, keep)

        assert result.diff_id == Digest.of(tar)
        assert (result.blob_digest, result.blob_size) == (Digest.of(blob), len(blob))
        assert result.tar_size == len(tar)
        assert keep.read_bytes() == blob
        assert bench.store.has(result.diff_id)
        record = bench.store.record(result.diff_id)
        assert (record.tar_size, record.entries) == (len(tar), len(TREE))
        assert set(record.implied) == {b"", b"long", b"long/" + b"n" * 200}
        assert bench.staged() == []
        seen = bench.looker.single(bench.store.mounts([result.diff_id])[0])
        assert seen["bin/tool"].mode == stat.S_IFREG | 0o4755
        assert seen["bin/tool"].mtime_ns == 1_500_000_000_250_000_000
        assert (seen["bin/again"].same_as, seen["bin/again"].nlink) == ("bin/again", 2)
        assert seen["bin/tool"].same_as == "bin/again"
        assert (seen["etc"].uid, seen["etc"].gid) == (7, 8)
        assert seen["etc/conf"].xattrs == (("user.note", b"x".hex()),)
        assert seen["dev/null"].device == os.makedev(1, 3)
        assert await bench.store.verify(result.diff_id)

    async def test_the_tar_comes_back_byte_for_byte(self, bench: Bench) -> None:
        """Whatever the tar holds: padding, records of several dialects, data that a later entry replaced, sparse files."""
        sparse = _gnu_sparse()
        tar = make_tar(*TREE)[:-1024] + make_tar(Member("bin/tool", data=b"new"), format=tarfile.GNU_FORMAT)
        for whole in (tar + bytes(9000), sparse, bytes(1024), b""):
            result = await bench.feed(whole)
            path, offset, size = await bench.store.tar_range(result.diff_id)
            with path.open("rb") as file:
                file.seek(offset)
                assert file.read(size) == whole
            assert await bench.store.verify(result.diff_id)

    async def test_every_directory_names_its_parent(self, bench: Bench, tmp_path: Path) -> None:
        """readdir(3) gives "." and "..", which it skips where they have the inode number 0, in directories just below the root too."""
        layer = await bench.add(Member("bin/tool", data=b"x"), Member("bin/deep/er", "directory"))
        (tmp_path / "upper").mkdir()
        script = "for d in bin bin/deep bin/deep/er; do ls -f $d > listed || exit 1; cat listed; done > all && rm listed"
        seen = await bench.container([layer], script, tmp_path / "upper")
        assert seen["all"].size == len(".\n..\ntool\ndeep\n" + ".\n..\ner\n" + ".\n..\n")

    async def test_an_index_of_an_older_ketchd(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Told from today's, and made again from the tar in the file; so is a damaged one."""
        layer = await bench.add(*TREE)
        path = bench.store.path(layer)
        if path.is_dir():
            assert await bench.store.state(layer) == "sound"
            return
        new = path.read_bytes()
        index_as_before(path, bench.store.record(layer).tar_size, monkeypatch)
        (tmp_path / "upper").mkdir()
        script = "ls -f bin > listed"
        assert (await bench.container([layer], script, tmp_path / "upper"))["listed"].size == len(
            ".\ntool\nagain\nsh\n"
        )
        assert await bench.store.state(layer) == "old index" and await bench.store.verify(layer)
        await bench.store.reindex(layer)
        assert await bench.store.state(layer) == "sound" and path.read_bytes() == new
        seen = await bench.container([layer], script, tmp_path / "upper")
        assert seen["listed"].size == len(".\n..\ntool\nagain\nsh\n")
        _flip(path, path.stat().st_size - 600)
        assert await bench.store.state(layer) == "bad index" and not await bench.store.verify(layer)
        await bench.store.reindex(layer)
        assert path.read_bytes() == new
        _flip(path, path.read_bytes().index(b"#!/bin/sh"))
        assert await bench.store.state(layer) == "damaged"
        with pytest.raises(LayerMismatch):
            await bench.store.reindex(layer)
        assert bench.staged() == []

    async def test_sparse_files_are_expanded(self, bench: Bench) -> None:
        """Holes read as zeros; the pieces are where they were."""
        result = await bench.feed(_gnu_sparse())
        seen = bench.looker.single(bench.store.mounts([result.diff_id])[0])
        expected = bytearray(3_000_000)
        expected[1_000_000:1_000_004], expected[2_500_000:2_500_004] = b"here", b"ends"
        assert seen["holes"].size == len(expected)
        assert seen["holes"].content == hashlib.sha256(expected).hexdigest()

    async def test_whiteouts_hide_what_lies_below_only(self, bench: Bench) -> None:
        """A name, a whole directory, a directory made anew, before and after their siblings in the tar."""
        lower = await bench.add(
            *(Member(f"d{n}/{name}", data=b"low") for n in range(4) for name in ("gone", "kept")),
            Member("plain", data=b"low"), Member("tree/x/y", data=b"low"),
        )  # fmt: skip
        upper = await bench.add(
            Member("d0/.wh.gone"),
            Member("d1/new", data=b"up"), Member("d1/.wh..wh..opq"),
            Member("d2/.wh..wh..opq"), Member("d2/new", data=b"up"),
            Member("d3/gone", data=b"up"), Member("d3/.wh.gone"),
            Member(".wh.plain"), Member(".wh.tree"), Member("tree/z", data=b"up"),
            Member(".wh..wh.plnk", "directory"), Member(".wh..wh.aufs"),
        )  # fmt: skip
        assert [name for name in names(bench.merged([lower, upper])) if "/" in name or name == "plain"] == [
            "d0/kept", "d1/new", "d2/new", "d3/gone", "d3/kept", "tree/z",
        ]  # fmt: skip

    async def test_names_with_dots_in_them(self, bench: Bench) -> None:
        """By the words alone, as dockerd's: what lies on the way need not be there, nor be followed."""
        layer = await bench.add(
            Member("a", "directory", mode=0o711),
            Member("l", "link", target="a/b"),
            Member("a/../b/./c", data=b"1"),
            Member("l/../d", data=b"2"),
            Member("a/..", "directory", mode=0o750),
            Member("e", "hardlink", target="nowhere/../d"),
        )
        seen = bench.merged([layer])
        assert names(seen) == ["a", "b", "b/c", "d", "e", "l"]
        assert stat.S_IMODE(seen["."].mode) == 0o750 and stat.S_IMODE(seen["a"].mode) == 0o711

    async def test_a_layer_that_comes_twice(self, bench: Bench) -> None:
        """It is seen where it lies on top, whatever is between: a file, a whiteout, a directory made anew, metadata that it omits."""
        base = await bench.add(
            Member("file", data=b"base"), Member("gone", data=b"base"), Member("anew/low", data=b"base"),
            Member("omitted", "directory", mode=0o700), Member("omitted/low", data=b"base"),
        )  # fmt: skip
        twice = await bench.add(
            Member("file", data=b"twice"), Member(".wh.gone"), Member("anew/.wh..wh..opq"),
            Member("anew/twice", data=b"twice"), Member("tree/twice", data=b"twice"), Member("omitted/twice", data=b"twice"),
        )  # fmt: skip
        between = await bench.add(
            Member("file", data=b"between"), Member("gone", data=b"between"), Member("anew/between", data=b"between"),
            Member(".wh.tree"), Member("omitted", "directory", mode=0o711),
        )  # fmt: skip
        for _ in range(2):
            seen = await bench.container([base, twice, between, twice, twice])
            found = [
                name
                for name in names(seen)
                if name.split("/")[0] in ("file", "gone", "anew", "tree", "omitted")
            ]
            assert found == [
                "anew", "anew/twice", "file", "omitted", "omitted/low", "omitted/twice", "tree", "tree/twice",
            ]  # fmt: skip
            assert seen["file"].content == hashlib.sha256(b"twice").hexdigest()
            assert stat.S_IMODE(seen["omitted"].mode) == 0o711

    async def test_links_are_followed_within_the_layer(self, bench: Bench) -> None:
        """A path through links of the same layer, absolute and relative, lands inside the root."""
        layer = await bench.add(
            Member("usr/lib/x", data=b"1"),
            Member("lib", "link", target="usr/lib"),
            Member("abs", "link", target="/usr/lib"),
            Member("out", "link", target="../../../usr/lib"),
            Member("lib/y", data=b"2"), Member("abs/z", data=b"3"), Member("out/w", data=b"4"),
            Member("hard", "hardlink", target="lib/x"),
        )  # fmt: skip
        seen = bench.merged([layer])
        assert [name for name in names(seen) if name.startswith("usr/lib/")] == [
            "usr/lib/w", "usr/lib/x", "usr/lib/y", "usr/lib/z"
        ]  # fmt: skip
        assert seen["hard"].content == seen["usr/lib/x"].content

    async def test_layers_are_shared_and_stored_once(self, bench: Bench) -> None:
        """The same tar twice at once, differently compressed, is one layer."""
        tar = make_tar(*TREE)
        results = await asyncio.gather(bench.feed(tar), bench.feed(gzip.compress(tar)), bench.feed(tar))
        assert len({result.diff_id for result in results}) == 1
        assert bench.placed() == [results[0].diff_id.hex]
        assert bench.staged() == []

    async def test_the_wrong_layer_is_not_stored(self, bench: Bench) -> None:
        """Another diff ID or blob digest than was announced: refused by name, nothing kept."""
        tar = make_tar(*TREE)
        other = Digest.of(b"other")
        for expected in ({"expected_diff_id": other}, {"expected_blob": other}):
            with pytest.raises(LayerMismatch) as caught:
                async with bench.store.ingest(keep_blob=bench.root / "blob") as ingestion:
                    await ingestion.feed(tar)
                    await ingestion.finish(**expected)  # type: ignore[arg-type]
            assert (caught.value.expected, caught.value.found) == (other, Digest.of(tar))
        self._nothing_stays(bench)

    @pytest.mark.parametrize(
        "blob",
        [
            b"no tar at all" * 100,
            gzip.compress(make_tar(*TREE))[:-9],
            make_tar(*TREE)[:1300],
            b"\x1f\x8b" + b"\0" * 1000,
            make_tar(Member("../up", data=b"")),
            make_tar(Member("a", data=b""), Member("a/b", data=b"")),
            make_tar(Member("hard", "hardlink", target="elsewhere")),
        ],
        ids=["noise", "cut gzip", "cut tar", "bad gzip", "leaves the root", "below a file", "no target"],
    )
    async def test_bad_bytes_are_refused(self, bench: Bench, blob: bytes) -> None:
        """With a fault that says why; nothing stays, and the worker serves the next."""
        with pytest.raises(InvalidInput):
            await bench.feed(blob, keep=bench.root / "blob")
        self._nothing_stays(bench)
        await bench.feed(make_tar(*TREE))

    async def test_cancelled_and_abandoned_ingests_leave_nothing(self, bench: Bench) -> None:
        """At any moment: while it arrives, while it is made."""
        tar = make_tar(*TREE)

        async def slowly(ready: asyncio.Event) -> None:
            async with bench.store.ingest(keep_blob=bench.root / "blob") as ingestion:
                await ingestion.feed(tar[:5000])
                ready.set()
                await asyncio.Event().wait()

        ready = asyncio.Event()
        task = asyncio.create_task(slowly(ready))
        await ready.wait()
        task.cancel()
        await asyncio.wait([task])
        self._nothing_stays(bench)
        async with bench.store.ingest() as ingestion:
            await ingestion.feed(tar[:5000])
        self._nothing_stays(bench)
        for turns in range(0, 40, 3):
            task = asyncio.create_task(bench.feed(tar, keep=bench.root / "blob"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert bench.staged() == []
            (bench.root / "blob").unlink(missing_ok=True)

    async def test_removing(self, bench: Bench) -> None:
        """Twice is as good as once; what was composed of it goes too; a removed layer can come again."""
        first, second = await bench.add(*TREE), await bench.add(Member("other", data=b"1"))
        init = await bench.store.compose([first, second])
        await bench.store.remove(second)
        await bench.store.remove(second)
        assert not init.exists() and not bench.store.has(second)
        assert bench.placed() == [first.hex]
        with pytest.raises(NotFound):
            bench.store.record(second)
        with pytest.raises(NotFound):
            bench.store.mounts([first, second])
        assert await bench.add(Member("other", data=b"1")) == second
        assert await bench.store.compose([first, second]) == init

    async def test_a_host_that_changes_its_kind_keeps_its_layers(self, bench: Bench) -> None:
        """Files and directories live side by side; a file that cannot be mounted any more is named, with what to do."""
        before = await bench.add(*TREE)
        for kind in ("directory", "erofs", "erofs-loop"):
            changed = LayerStore(bench.root, bench.catalogue, bench.workers, kind)
            assert changed.has(before)
            if kind == "directory" and bench.store.kind != "directory":
                with pytest.raises(EngineFailure, match="cannot mount"):
                    changed.mounts([before])
            else:
                expected = "directory" if bench.store.kind == "directory" else kind
                assert [mount.kind for mount in changed.mounts([before])] == [expected]

    async def test_damage_is_found(self, bench: Bench) -> None:
        """A flipped byte of a file's content, or a layer that lost its end or everything."""
        layer = await bench.add(Member("file", data=b"content" * 1000))
        path = Path(bench.store.mounts([layer])[0].path)
        if path.is_dir():
            (path / "file").write_bytes(b"Content" * 1000)
        else:
            _flip(path, 4096 + 512 + 100)
        assert not await bench.store.verify(layer)
        await bench.store.remove(layer)
        await bench.add(Member("file", data=b"content" * 1000))
        if path.is_dir():
            os.chmod(path / "file", 0o600)
        else:
            _flip(path, path.stat().st_size - 600)
        assert not await bench.store.verify(layer)
        shutil.rmtree(bench.store.path(layer)) if path.is_dir() else path.unlink()
        assert not bench.store.has(layer)
        assert not await bench.store.verify(layer)

    @pytest.mark.parametrize(
        ("format", "level"),
        [(format, level) for format in LEVELS for level in (None, *(LEVELS[format] or ()))],
    )
    async def test_compressing_is_reproducible(self, bench: Bench, format: str, level: int | None) -> None:
        """The same bytes twice, that inflate to the tar; digest and size are theirs. They come back as the same layer."""
        tar = make_tar(*TREE, Member("big", data=os.urandom(3_000_000)), Member("zeros", data=bytes(500_000)))
        layer = (await bench.feed(tar)).diff_id
        how = Compression(format, level)
        made = [await bench.store.compress(layer, bench.root / f"z{n}", how) for n in range(2)]
        blobs = [(bench.root / f"z{n}").read_bytes() for n in range(2)]
        assert made == [(Digest.of(blobs[0]), len(blobs[0]))] * 2
        inflated = {
            "gzip": gzip.decompress,
            "zstd": lambda content: zstandard.ZstdDecompressor().decompress(content),
            "uncompressed": bytes,
        }[format]
        assert inflated(blobs[1]) == tar
        assert (await bench.feed(blobs[1])).diff_id == layer

    @pytest.mark.parametrize(
        "packed", [bytes, gzip.compress, lambda tar: gzip.compress(tar[:1000]) + gzip.compress(tar[1000:]), zstandard.ZstdCompressor().compress]
    )  # fmt: skip
    async def test_a_blob_is_as_good_as_the_layer(
        self, bench: Bench, packed: Callable[[bytes], bytes]
    ) -> None:
        """To compress a layer that is here as a blob only, of whatever form: the same bytes come out in every format."""
        tar = make_tar(
            *TREE, Member("big", data=os.urandom(1_500_000)), Member("text", data=b"some text\n" * 200_000)
        )
        layer, blob = Digest.of(tar), bench.root / "blob"
        blob.write_bytes(packed(tar))
        ways = [
            Compression(format, level)
            for format, level in (("gzip", None), ("gzip", 6), ("zstd", None), ("uncompressed", None))
        ]
        made = [
            await bench.store.recompress(blob, layer, bench.root / f"r{n}", how) for n, how in enumerate(ways)
        ]
        await bench.feed(tar)
        assert made == [
            await bench.store.compress(layer, bench.root / f"c{n}", how) for n, how in enumerate(ways)
        ]

        for content, fault in (
            (gzip.compress(tar[512:]), EngineFailure),
            (gzip.compress(tar)[:-9], InvalidInput),
        ):
            blob.write_bytes(content)
            with pytest.raises(fault):
                await bench.store.recompress(blob, layer, bench.root / "none", ways[0])
            assert not (bench.root / "none").exists()

    async def test_a_tar_is_adopted(self, bench: Bench) -> None:
        """It becomes the layer; the file is gone, also when it is none."""
        path = bench.root / "stage" / "made.tar"
        path.write_bytes(make_tar(*TREE))
        result = await bench.store.adopt_tar(path)
        assert result.diff_id == result.blob_digest == Digest.of(make_tar(*TREE))
        path.write_bytes(b"x" * 2000)
        with pytest.raises(InvalidInput):
            await bench.store.adopt_tar(path)
        assert bench.staged() == []

    async def test_the_init_layer_holds_what_docker_promises(self, bench: Bench) -> None:
        """Where the image has nothing, and over what it has; directories that it has keep their metadata."""
        layer = await bench.add(*TREE, Member("etc/hosts", data=b"mine"), Member("proc", data=b"a file"))
        seen = await bench.container([layer])
        for path in ("dev/pts", "dev/shm", "proc", "sys"):
            assert seen[path].mode == stat.S_IFDIR | 0o755, path
        for path in (".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console"):
            assert (seen[path].mode, seen[path].size) == (stat.S_IFREG | 0o755, 0), path
        assert seen["etc/mtab"].content == "/proc/mounts"
        assert (seen["etc"].mode, seen["etc"].uid, seen["etc"].gid) == (stat.S_IFDIR | 0o750, 7, 8)
        assert seen["etc"].mtime_ns == 1_600_000_000_000_000_000
        assert seen["etc/conf"].xattrs == (("user.note", b"x".hex()),)
        assert "bin/tool" in seen

    async def test_a_chain_without_layers_has_an_init_layer_too(self, bench: Bench) -> None:
        """`FROM scratch`."""
        assert "etc/hosts" in await bench.container([])

    async def test_composing_happens_once(self, bench: Bench) -> None:
        """However many ask, and after a restart too; a torn one is made again."""
        layer = await bench.add(*TREE)
        paths = await asyncio.gather(*(bench.store.compose([layer]) for _ in range(5)))
        assert len(set(paths)) == 1
        inode = paths[0].stat().st_ino
        restarted = LayerStore(bench.root, bench.catalogue, bench.workers, bench.store.kind)
        assert (await restarted.compose([layer])).stat().st_ino == inode
        (paths[0].parent / "layers").write_text("")
        restarted = LayerStore(bench.root, bench.catalogue, bench.workers, bench.store.kind)
        assert (await restarted.compose([layer])).stat().st_ino != inode
        assert bench.staged() == []

    async def test_omitted_directories_keep_their_lower_metadata(self, bench: Bench) -> None:
        """As Bazel, Jib and ko write layers. Not across a whiteout or a file, and never over an explicit header."""
        base = await bench.add(
            Member("srv", "directory", mode=0o2770, uid=10, gid=20, mtime=1_000, xattrs={"user.k": b"v"}),
            Member("srv/in", "directory", mode=0o700, uid=11), Member("gone/in", "directory", mode=0o711),
            Member("said", "directory", mode=0o700), Member("./", "directory", mode=0o711, uid=3),
        )  # fmt: skip
        middle = await bench.add(
            Member("srv/in/a", data=b"1"), Member(".wh.gone"), Member("said", "directory", mode=0o755)
        )
        top = await bench.add(
            Member("srv/b", data=b"2"), Member("gone/in/c", data=b"3"), Member("said/x", data=b"4")
        )
        assert bench.merged([base, middle, top])["srv"].mode == stat.S_IFDIR | 0o755
        seen = await bench.container([base, middle, top])
        srv = seen["srv"]
        assert (srv.mode, srv.uid, srv.gid, srv.mtime_ns) == (
            stat.S_IFDIR | 0o2770,
            10,
            20,
            1_000_000_000_000,
        )
        assert srv.xattrs == (("user.k", b"v".hex()),)
        assert (seen["srv/in"].mode, seen["srv/in"].uid) == (stat.S_IFDIR | 0o700, 11)
        assert seen["gone/in"].mode == stat.S_IFDIR | 0o755
        assert seen["said"].mode == stat.S_IFDIR | 0o755
        assert (seen["."].mode, seen["."].uid) == (stat.S_IFDIR | 0o711, 3)
        assert {"srv/in/a", "srv/b", "gone/in/c", "said/x"} <= set(seen)

    async def test_a_step_that_changes_nothing_makes_no_layer(self, bench: Bench) -> None:
        """Also when a directory was copied up for a file that is gone again and its time was put back."""
        base = await bench.add(*TREE)
        assert (await bench.run([base], "true"))[1] is None
        script = "touch -r etc .stamp; touch etc/new; rm etc/new; touch -r .stamp etc; rm .stamp"
        assert (await bench.run([base], script))[1] is None

    async def test_a_step_becomes_a_layer(self, bench: Bench) -> None:
        """What a container of base and layer sees is what the step left: contents, metadata, links, removals, replacements."""
        base = await bench.add(
            *TREE, Member("d/one", data=b"1"), Member("d/sub/two", data=b"2"), Member("f", data=b"3")
        )
        script = (
            "echo new > etc/new; chmod 600 etc/conf; rm bin/sh; rm -r d; mkdir d; echo x > d/fresh; rm f; mkdir f; "
            "ln etc/new etc/linked; ln -s nowhere etc/dangling; mkfifo etc/pipe; mknod etc/dev c 9 7; chown 5:6 etc/new; "
            "chmod 4755 etc/new; setfattr -n user.mine -v yes etc/new 2>/dev/null || true; mkdir -p deep/er/est"
        )
        seen, layer = await bench.run([base], script)
        assert layer is not None
        again = await bench.container([base, layer])
        assert _whole_seconds(again) == _whole_seconds(seen)
        assert await bench.store.from_upper(bench.root / "step" / "upper", [base]) == layer

    async def test_a_step_can_be_clamped_to_a_time(self, bench: Bench) -> None:
        """SOURCE_DATE_EPOCH: nothing is younger, older stays; the file of an older one is the layer itself."""
        base = await bench.add(*TREE)
        upper = bench.root / "upper"
        upper.mkdir()
        for name, when in (("old", 100), ("young", 2_000_000_000)):
            (upper / name).write_text(name)
            os.utime(upper / name, (when, when))
        step = await bench.store.from_upper(upper, [base])
        assert step is not None
        layer = await bench.store.clamped(step, 1_000)
        assert layer != step and await bench.store.clamped(layer, 1_000) == layer
        seen = bench.merged([base, layer])
        assert [seen[name].mtime_ns // 10**9 for name in ("old", "young")] == [100, 1_000]

    async def test_a_name_that_means_a_whiteout_cannot_be_stored(self, bench: Bench) -> None:
        """Instead of a layer that removes something."""
        base = await bench.add(*TREE)
        upper = bench.root / "upper"
        upper.mkdir()
        (upper / ".wh.bin").write_text("")
        with pytest.raises(InvalidInput, match=r"\.wh\.bin"):
            await bench.store.from_upper(upper, [base])
        assert bench.staged() == []

    async def test_a_full_disk_is_said_and_leaves_the_store_whole(self, bench: Bench) -> None:
        """The fault names it; nothing stays; what was there is sound; afterwards there is room again."""
        small = await bench.add(*TREE)
        filler = bench.root / "filler"
        free = os.statvfs(bench.root)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (free.f_bavail * free.f_frsize) - (3 << 20))
        big = make_tar(Member("big", data=os.urandom(8 << 20)))
        for keep in (None, bench.root / "blob"):
            with pytest.raises(EngineFailure, match="no space left on device"):
                await bench.feed(big, keep=keep)
        with pytest.raises(EngineFailure, match="no space left on device"):
            await bench.run([small], "dd if=/dev/urandom of=big bs=1M count=2 2>/dev/null")
        assert bench.staged() == [] and not (bench.root / "blob").exists()
        assert bench.placed() == [small.hex]
        filler.unlink()
        assert await bench.store.verify(small)
        await bench.feed(big)

    def _nothing_stays(self, bench: Bench) -> None:
        assert bench.staged() == []
        assert bench.placed() == []
        assert not (bench.root / "blob").exists()
        assert bench.catalogue.query("SELECT * FROM layers") == []


def _whole_seconds(seen: dict[str, Seen]) -> dict[str, tuple[object, ...]]:
    """Times as a layer keeps them; link counts and identities of what overlayfs shows from lower layers are its own affair."""
    return {
        path: (one.mode, one.uid, one.gid, one.size, 0 if path in INIT else one.mtime_ns // 10**9, one.device, one.content, one.xattrs)
        for path, one in seen.items()
    }  # fmt: skip


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def _gnu_sparse() -> bytes:
    """What GNU tar makes of a file with holes."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ketch-sparse-") as directory:
        with open(os.path.join(directory, "holes"), "wb") as file:
            file.truncate(3_000_000)
            os.pwrite(file.fileno(), b"here", 1_000_000)
            os.pwrite(file.fileno(), b"ends", 2_500_000)
            file.seek(3_000_000)
        return subprocess.run(
            ["tar", "-C", directory, "--sparse", "--format=posix", "-cf", "-", "holes"],
            capture_output=True,
            check=True,
        ).stdout
