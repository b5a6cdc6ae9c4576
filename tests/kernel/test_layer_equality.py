"""A layer, mounted, is what GNU tar makes of the same bytes, entry by entry: generated tars, both kinds of layer."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings

from ketch_testing.mounted import Looker, Seen, look
from ketch_testing.tars import Drawn, tars
from ketch_wire.faults import InvalidInput
from ketch_wire.launch import LayerMount
from ketchd.layers.layerfile import LayerFile

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for devices, owners and mounts"),
]


@pytest.fixture(scope="module")
def looker() -> Iterator[Looker]:
    with Looker() as made:
        yield made


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
    return len(names) > len(set(names)) and any(one.xattrs for one in drawn.members if one.type == "directory")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=tars())
def test_a_layer_is_what_tar_extracts(drawn: Drawn, looker: Looker) -> None:
    """For every tar that GNU tar extracts without complaint, and where we refuse it does too."""
    assume(not describes_twice(drawn))
    with tempfile.TemporaryDirectory(prefix="ketch-equal-") as name:
        base, tar = Path(name), drawn.tar
        extracted = extract(tar, base / "tar")
        try:
            erofs, implied = seal(tar, base, "erofs")
        except InvalidInput:
            # tar(1) takes a hard link to itself for done, even of a directory; dockerd fails there as we do.
            assert not extracted or any(one.type == "hardlink" for one in drawn.members)
            return
        assume(extracted)
        expected = comparable(look(str(base / "tar")), implied)
        assert comparable(looker.single(erofs), implied) == expected
        directory, _ = seal(tar, base, "directory")
        assert comparable(looker.single(directory), implied) == expected
