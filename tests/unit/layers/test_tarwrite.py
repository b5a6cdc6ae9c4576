"""TarWriter over a LayerFile, and over a sink of bytes: what was written is what tarfile reads; the same members, the same bytes."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from ketchd.layers.layerfile import LayerFile
from ketchd.layers.tarheaders import DIRECTORY, HARDLINK, REGULAR, SYMLINK, Entry
from ketchd.layers.tarwrite import TarWriter
from ketchd.model.digest import Digest


class Memory:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def write(self, data: bytes) -> None:
        self.bytes += data

    def copy(self, source: int, offset: int, length: int) -> None:
        self.bytes += os.pread(source, length, offset)


def fill(writer: TarWriter, source: int) -> None:
    writer.add(Entry(b"dir", DIRECTORY, 0o755))
    writer.add(
        Entry(b"dir/" + b"n" * 150, REGULAR, 0o600, 1000, 3_000_000, 5, 1_500_000_000_123_456_789, stored=5),
        b"hello",
    )
    writer.add(Entry("dir/ä".encode(), REGULAR, stored=700, size=700), source=source, offset=100)
    writer.add(Entry(b"link", SYMLINK, link=b"x" * 300))
    writer.add(Entry(b"hard", HARDLINK, link=b"link"))
    writer.add(Entry(b"cap", REGULAR, xattrs={b"security.capability": bytes(range(20))}))
    writer.finish()


def test_what_is_written(tmp_path: Path) -> None:
    """Through both sinks alike; the layer's name is the hash of the same bytes."""
    content = os.urandom(1000)
    (tmp_path / "source").write_bytes(content)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    try:
        memory = Memory()
        fill(TarWriter(memory), source)
        with LayerFile({"path": str(tmp_path / "layer"), "kind": "erofs"}) as layer:
            fill(TarWriter(layer), source)
            facts = layer.seal()
    finally:
        os.close(source)
    assert facts["diff_id"] == str(Digest.of(bytes(memory.bytes)))
    assert (tmp_path / "layer").read_bytes()[4096 : 4096 + facts["tar_size"]] == memory.bytes
    with tarfile.open(fileobj=io.BytesIO(memory.bytes)) as tar:
        found = {member.name: member for member in tar}
        read = tar.extractfile("dir/ä")
        assert read is not None and read.read() == content[100:800]
    long = found["dir/" + "n" * 150]
    assert (long.uid, long.gid, long.size) == (1000, 3_000_000, 5)
    assert long.pax_headers["mtime"] == "1500000000.123456789"
    assert found["link"].linkname == "x" * 300
    assert "SCHILY.xattr.security.capability" in found["cap"].pax_headers


def test_a_header_may_not_promise_what_does_not_come(tmp_path: Path) -> None:
    """Wrong lengths are the caller's defect; a file that shrank meanwhile is filled up, since the header is out."""
    memory = Memory()
    with pytest.raises(ValueError, match="header says 3"):
        TarWriter(memory).add(Entry(b"a", REGULAR, stored=3), b"four")
    (tmp_path / "short").write_bytes(b"abc")
    source = os.open(tmp_path / "short", os.O_RDONLY)
    try:
        with LayerFile({"path": str(tmp_path / "layer"), "kind": "erofs"}) as layer:
            writer = TarWriter(layer)
            writer.add(Entry(b"a", REGULAR, stored=10, size=10), source=source)
            writer.finish()
            layer.seal()
    finally:
        os.close(source)
    assert (tmp_path / "layer").read_bytes()[4096 + 512 : 4096 + 522] == b"abc" + bytes(7)


def test_what_is_not_sealed_is_gone(tmp_path: Path) -> None:
    """Also when the bytes are no tar."""
    with LayerFile({"path": str(tmp_path / "layer"), "kind": "erofs"}) as layer:
        layer.write(b"half a header")
    assert os.listdir(tmp_path) == []
