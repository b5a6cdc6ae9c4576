"""Reading tars: every dialect as Python's tarfile and GNU tar write them; hostile bytes give a typed fault, never anything else."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ketch_testing.tars import Drawn, Member, make_tar, tars
from ketch_wire.faults import InvalidInput
from ketchd.layers import erofs
from ketchd.layers.tarheaders import (
    DIRECTORY,
    HARDLINK,
    REGULAR,
    SYMLINK,
    Entry,
    entries,
    header,
)
from ketchd.layers.tree import build


def read(tar: bytes) -> list[Entry]:
    return list(entries(tar, len(tar)))


def index(tar: bytes) -> erofs.Index:
    return erofs.index(build(entries(tar, len(tar))).root, len(tar))


def raw_header(**fields: bytes) -> bytes:
    """A ustar header of a file `x` with the named fields overwritten and a right checksum."""
    places = {
        "name": 0, "mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "type": 156, "link": 157,
        "magic": 257, "major": 329, "minor": 337, "prefix": 345, "sparse": 386, "extended": 482, "real": 483,
    }  # fmt: skip
    block = bytearray(header(Entry(b"x", REGULAR)))
    for name, value in fields.items():
        block[places[name] : places[name] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@given(drawn=tars())
def test_entries_are_what_tarfile_reads(drawn: Drawn) -> None:
    """Names, links, numbers, times, attributes and data, whatever the dialect."""
    tar = drawn.tar
    found = read(tar)
    assert len(found) == len(drawn.members)
    for entry, member in zip(found, drawn.members, strict=True):
        assert entry.name.rstrip(b"/") == member.name.encode()
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert tar[entry.offset : entry.offset + entry.size] == member.data
        assert entry.link == member.target.encode()
        assert (entry.major, entry.minor) == member.device
        if drawn.format == tarfile.PAX_FORMAT:
            assert entry.mtime_ns == int(member.mtime * 2) * 500_000_000
            assert entry.xattrs == {key.encode(): value for key, value in member.xattrs.items()}
        else:
            assert entry.mtime_ns == int(member.mtime) * 10**9


@given(drawn=tars())
def test_what_we_write_reads_back_the_same(drawn: Drawn) -> None:
    """By our own reader and by tarfile; and the same entry gives the same bytes."""
    for entry in read(drawn.tar):
        written = header(entry)
        assert written == header(entry) and len(written) % 512 == 0
        (again,) = read(written + bytes((entry.stored + 511) // 512 * 512))
        entry.name = entry.name.rstrip(b"/") + (b"/" if entry.type == DIRECTORY else b"")
        again.offset = entry.offset
        assert again == entry


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("dialect", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_the_dialects_of_gnu_tar(dialect: str, tmp_path: Path) -> None:
    """A small tree as each `--format` has it."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"content")
    (tmp_path / "d" / "link").symlink_to("file")
    (tmp_path / "d" / "hard").hardlink_to(tmp_path / "d" / "file")
    tar = subprocess.run(
        ["tar", "-C", str(tmp_path), f"--format={dialect}", "--sort=name", "-cf", "-", "d"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    found = read(tar)
    assert [(entry.name, entry.type) for entry in found] == [
        (b"d/", DIRECTORY), (b"d/file", REGULAR), (b"d/hard", HARDLINK), (b"d/link", SYMLINK),
    ]  # fmt: skip
    assert tar[found[1].offset : found[1].offset + found[1].size] == b"content"
    assert (found[2].link, found[3].link) == (b"d/file", b"file")


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("options", [["gnu"], ["posix", "0.0"], ["posix", "0.1"], ["posix", "1.0"]])
@pytest.mark.parametrize("pieces", [1, 3, 60])
def test_sparse_files(options: list[str], pieces: int, tmp_path: Path) -> None:
    """Every format that GNU tar has for them, with maps that need more than one block."""
    content = bytearray(pieces * 65536)
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(len(content))
        for at in range(0, len(content), 65536):
            content[at + 4096 : at + 4100] = b"%04d" % (at // 65536)
            file.seek(at)
            file.write(content[at : at + 8192])
    subprocess.run(["fallocate", "--dig-holes", str(tmp_path / "holes")], check=True)
    command = ["tar", "-C", str(tmp_path), "--sparse", f"--format={options[0]}", "-cf", "-", "holes"]
    if options[1:]:
        command.insert(1, f"--sparse-version={options[1]}")
    tar = subprocess.run(command, capture_output=True, check=True).stdout
    (entry,) = read(tar)
    if entry.sparse is None:
        pytest.skip("this filesystem has no holes")
    found = bytearray(entry.size)
    at = entry.offset
    for offset, length in entry.sparse:
        found[offset : offset + length] = tar[at : at + length]
        at += length
    assert entry.name == b"holes" and found == content


def test_the_records_of_several_headers_add_up() -> None:
    """Global ones hold until they change; local ones for one member; a PAX path wins over a GNU long name."""

    def extended(kind: bytes, body: bytes) -> bytes:
        return (
            raw_header(name=b"h\0", type=kind, size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)
        )

    tar = (
        extended(b"g", b"10 uid=12\n") + raw_header(name=b"one\0")
        + extended(b"L", b"long name\0") + extended(b"x", b"13 path=local\n"[:0] + b"14 path=local\n")
        + raw_header(name=b"two\0") + extended(b"g", b"9 uid=3\n"[:0] + b"9 uid=03\n"[:0] + b"9 uid=30\n"[:0] + b"10 uid=30\n")
        + raw_header(name=b"three\0")
    )  # fmt: skip
    assert [(entry.name, entry.uid) for entry in read(tar)] == [(b"one", 12), (b"local", 12), (b"three", 30)]


@pytest.mark.parametrize(
    "tar",
    [
        raw_header(size=b"\x80" + b"\xff" * 11),
        raw_header(size=b"77777777777\0"),
        raw_header(size=b"\xff" * 12),
        raw_header(mtime=b"\x80" + b"\x7f" * 11),
        raw_header(mtime=b"hello"),
        raw_header(uid=b"\x80\x00\x00\x01\xff\xff\xff\xff"),
        raw_header(type=b"x", size=b"00000000005\0") + b"5 a=\n" + bytes(507),
        raw_header(type=b"x", size=b"00000000012\0") + b"99 path=ab" + bytes(502),
        raw_header(type=b"x", size=b"00000000014\0") + b"12 size=-1\n\0" + bytes(500) + raw_header(),
        raw_header(type=b"x", size=b"17777777777\0"),
        raw_header(type=b"L", size=b"77777777777\0"),
        raw_header(type=b"S", sparse=b"00000000777\0" + b"00000000010\0", real=b"00000000001\0"),
        raw_header(type=b"S", extended=b"\x01", real=b"00000000001\0"),
        raw_header()[:-1],
        b"\xff" * 1024,
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(tar: bytes) -> None:
    """Sizes beyond everything, numbers that are none, records that lie about their length, maps that overlap."""
    with pytest.raises(InvalidInput):
        index(tar)


@settings(max_examples=400, deadline=None)
@given(drawn=tars(max_members=4), data=st.data())
def test_damaged_tars_never_crash(drawn: Drawn, data: st.DataObject) -> None:
    """Whatever bytes change: a tree or InvalidInput. The checksums are made right again, so that the damage gets through."""
    tar = bytearray(drawn.tar)
    for _ in range(data.draw(st.integers(1, 6))):
        block = data.draw(st.integers(0, len(tar) // 512 - 1)) * 512
        place = data.draw(st.sampled_from([0, 100, 108, 124, 136, 156, 157, 257, 265, 345, 386, 482, 483]))
        junk = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=24),
                st.sampled_from(
                    [b"\x80" + b"\xff" * 7, b"\xff" * 12, b"S", b"x", b"L", b"K", b"g", b"7" * 11, b"\0" * 12]
                ),
            )
        )
        tar[block + place : block + place + len(junk)] = junk
        tar[block + 148 : block + 156] = b" " * 8
        tar[block + 148 : block + 156] = f"{sum(tar[block : block + 512]):06o}\0 ".encode()
    cut = data.draw(st.integers(0, len(tar)))
    try:
        index(bytes(tar[:cut]) if cut % 3 == 0 else bytes(tar))
    except InvalidInput:
        pass


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000))
def test_noise_never_crashes(noise: bytes) -> None:
    """Bytes that were never a tar."""
    try:
        index(noise)
    except InvalidInput:
        pass


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [b"path", b"linkpath", b"uid", b"gid", b"size", b"mtime", b"GNU.sparse.major", b"GNU.sparse.minor",
             b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.name", b"GNU.sparse.offset",
             b"GNU.sparse.numbytes", b"SCHILY.xattr.user.x", b"SCHILY.xattr."]
        ),
        st.one_of(st.binary(max_size=30), st.sampled_from([b"1", b"0", b"-1", b"9" * 30, b"1.5", b"1e3", b"0,1,2,3", b"5,5,1,1"])),
    ),
    st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"V", b"M", b"\0"]),
    st.binary(max_size=600),
)  # fmt: skip
def test_odd_records_never_crash(records: dict[bytes, bytes], kind: bytes, content: bytes) -> None:
    """PAX records of known keys with values that nobody would write."""

    def record(key: bytes, value: bytes) -> bytes:
        length = len(key) + len(value) + 3
        total = length + len(str(length))
        total = length + len(str(total))
        return b"%d %s=%s\n" % (total, key, value)

    body = b"".join(record(key, value) for key, value in records.items())
    tar = raw_header(type=b"x", size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)
    tar += raw_header(type=kind, size=b"%011o\0" % len(content)) + content + bytes(-len(content) % 512)
    try:
        index(tar)
    except InvalidInput:
        pass


def test_entries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar of nothing but headers takes memory that its size does not show: there may be so many and no more."""
    monkeypatch.setattr("ketchd.layers.tarheaders.ENTRY_LIMIT", 3)
    members = [Member(f"file{number}") for number in range(4)]
    assert len(read(make_tar(*members[:3]))) == 3
    with pytest.raises(InvalidInput, match="more than 3 entries"):
        read(make_tar(*members))


def test_a_deep_tar_stays_small() -> None:
    """What a tar implies is bounded: paths that a system call takes, and not more of them than a layer could need."""
    deep = [Member("/".join([str(number)] + ["d"] * 1500), data=b"") for number in range(12)]
    with pytest.raises(InvalidInput, match="missing"):
        index(make_tar(*deep))
    with pytest.raises(InvalidInput, match="4095"):
        index(make_tar(Member("/".join(["d"] * 2100), "directory")))


def test_a_superblock_says_what_the_index_holds() -> None:
    """So that fsck needs no look at the tar."""
    made = index(make_tar(Member("a", data=b"1")))
    meta, seal = erofs.read_head(bytes(made.parts[0][1]))
    assert meta == made.parts[1][0] and len(seal) == 16 and seal != bytes(16)
    assert made.size % 4096 == 0
    magic, inodes = struct.unpack_from("<I", made.parts[0][1], 1024)[0], made.inodes
    assert (magic, inodes) == (0xE0F5E1E2, 2)
