"""A layer, mounted, is what GNU tar makes of the same bytes, entry by entry: generated tars, both kinds of layer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ketch_testing.mounted import Looker, Seen, look
from ketch_testing.tars import Drawn, Member, make_tar, tars
from ketch_wire.faults import InvalidInput
from ketch_wire.launch import LayerMount
from ketchd.layers.layerfile import LayerFile
from ketchd.layers.probe import probe
from ketchd.layers.workers import WorkerPool

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for devices, owners and mounts"),
]


@pytest.fixture(scope="module")
def looker() -> Iterator[Looker]:
    with Looker() as made:
        yield made


@pytest.fixture(scope="module")
def file_kind() -> str:
    """How this kernel mounts layer files."""

    async def ask() -> str:
        workers = WorkerPool()
        try:
            with tempfile.TemporaryDirectory(prefix="ketch-equal-") as scratch:
                return (await probe(workers, Path(scratch)))[0]
        finally:
            await workers.close()

    kind = asyncio.run(ask())
    if kind == "directory":
        pytest.skip("this kernel mounts no EROFS files")
    return kind


def seal(tar: bytes, directory: Path, kind: str) -> tuple[LayerMount, list[str]]:
    """The tar as a layer of the kind; where to mount it, and the directories that the tar implies."""
    path = directory / f"layer-{kind}"
    with LayerFile({"path": str(path), "kind": "directory" if kind == "directory" else "erofs"}) as layer:
        layer.write(tar)
        facts = layer.seal()
    place = path / "root" if kind == "directory" else path
    return LayerMount(kind, str(place)), [os.fsdecode(one) or "." for one in facts["implied"]]


def extract(tar: bytes, directory: Path) -> bool:
    """What `tar -x` makes of it; False when it fails."""
    directory.mkdir()
    done = subprocess.run(
        ["tar", "-xpPf", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-owner", "--delay-directory-restore", "-C", str(directory)],
        input=tar, capture_output=True, check=False, umask=0o022,
    )  # fmt: skip
    return done.returncode == 0


def comparable(seen: dict[str, Seen], implied: list[str]) -> dict[str, Seen]:
    """Without what is nobody's promise: times of directories that no header describes."""
    return {path: replace(one, mtime_ns=0) if path in implied else one for path, one in seen.items()}


def describes_twice(drawn: Drawn) -> bool:
    """A directory comes twice, with attributes: tar(1) merges or replaces them as its options are; we merge, as dockerd does."""
    names = [one.name for one in drawn.members if one.type == "directory"]
    return len(names) > len(set(names)) and any(
        one.xattrs for one in drawn.members if one.type == "directory"
    )


HOSTILE_NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "canary", "etc", "tmp"]), min_size=1, max_size=5
).flatmap(lambda parts: st.sampled_from(["/".join(parts), "/" + "/".join(parts), "./" + "/".join(parts)]))
HOSTILE = st.lists(
    st.builds(
        lambda name, kind, target: Member(name, kind, data=b"evil" if kind == "file" else b"", target=target, device=(1, 3), mode=0o777),
        HOSTILE_NAMES,
        st.sampled_from(["file", "directory", "link", "link", "link", "hardlink", "character", "fifo"]),
        HOSTILE_NAMES,
    ),
    max_size=8,
)  # fmt: skip


def damaged(tar: bytes, block: int, damage: str) -> bytes:
    """The tar with one block spoiled. size: a header says 8 GiB, its checksum right."""
    at = block * 512 % len(tar)
    head = bytearray(tar[at : at + 512])
    if damage == "checksum":
        head[148:156] = b"0000000\0"
    else:
        head[124:136] = b"77777777777\0"
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    return tar[:at] + bytes(head) + tar[at + 512 :]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(hostile=HOSTILE, data=st.data())
def test_tar_attacks_nothing_leads_out_of_a_layer(hostile: list[Member], data: st.DataObject) -> None:
    """Whatever names and links say, `..` and absolute ones, links through links, with sizes and checksums that are wrong too:
    a tree beside the layer stays as it was."""
    with tempfile.TemporaryDirectory(prefix="ketch-hostile-") as name:
        base = Path(name)
        canary = base / "canary"
        canary.mkdir()
        (canary / "a").write_text("sings")
        hostile = [
            replace(one, target=one.target.replace("tmp", str(canary)))
            if one.type in ("link", "hardlink") and data.draw(st.booleans())
            else one
            for one in hostile
        ]
        before = look(str(canary))
        (base / "stage").mkdir()
        tar = make_tar(*hostile)
        if damage := data.draw(st.sampled_from(["", "", "checksum", "size"])):
            tar = damaged(tar, data.draw(st.integers(0, 20)), damage)
        with contextlib.suppress(InvalidInput):
            seal(tar, base / "stage", "directory")
        assert look(str(canary)) == before
        assert set(os.listdir(base)) == {"canary", "stage"}
        assert set(os.listdir(base / "stage")) <= {"layer-directory"}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=tars())
def test_a_layer_is_what_tar_extracts(drawn: Drawn, looker: Looker, file_kind: str) -> None:
    """For every tar that GNU tar extracts without complaint, and where we refuse it does too."""
    assume(not describes_twice(drawn))
    with tempfile.TemporaryDirectory(prefix="ketch-equal-") as name:
        base, tar = Path(name), drawn.tar
        extracted = extract(tar, base / "tar")
        try:
            erofs, implied = seal(tar, base, file_kind)
        except InvalidInput:
            # tar(1) takes a hard link to itself for done, even of a directory; dockerd fails there as we do.
            assert not extracted or any(one.type == "hardlink" for one in drawn.members)
            return
        assume(extracted)
        expected = comparable(look(str(base / "tar")), implied)
        assert comparable(looker.single(erofs), implied) == expected
        directory, _ = seal(tar, base, "directory")
        assert comparable(looker.single(directory), implied) == expected


def test_a_chain_of_five_hundred_layers_mounts(looker: Looker, tmp_path: Path, file_kind: str) -> None:
    """Docker's limit is 127; overlayfs' own is 500."""
    if file_kind != "erofs":
        pytest.skip("five hundred loop devices are too many for a test")
    layers = []
    for number in range(500):
        path = tmp_path / f"layer-{number}"
        with LayerFile({"path": str(path), "kind": "erofs"}) as layer:
            layer.write(make_tar(Member(f"f{number}", data=b"1"), Member("last", data=b"%d" % number)))
            layer.seal()
        layers.append(LayerMount("erofs", str(path)))
    seen = looker.merged(layers[::-1])
    assert len(seen) == 502 and seen["last"].size == 3
