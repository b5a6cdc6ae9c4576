"""Tars for tests: written member by member, and drawn by hypothesis in every dialect that images hold."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field

from hypothesis import strategies as st

TYPES = {
    "file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE, "character": tarfile.CHRTYPE, "block": tarfile.BLKTYPE,
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One member. target: of links. device: (major, minor). mtime: seconds, with a fraction in PAX only."""

    name: str
    type: str = "file"
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_600_000_000
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)


def make_tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    """The members in their order, as Python's tarfile writes them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.mode, info.uid, info.gid = TYPES[member.type], member.mode, member.uid, member.gid
            info.mtime = member.mtime if format == tarfile.PAX_FORMAT else int(member.mtime)  # type: ignore[assignment]
            info.linkname = member.target
            info.devmajor, info.devminor = member.device
            info.pax_headers = {
                f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
                for key, value in member.xattrs.items()
            }
            info.size = len(member.data) if member.type == "file" else 0
            tar.addfile(info, io.BytesIO(member.data))
    return buffer.getvalue()


_PARTS = st.sampled_from(["a", "b", "c", "ä", "dir", "x" * 120, "y" * 255, "a-b", "with space"])
_NAMES = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)
_TIMES = st.one_of(
    st.integers(-10, 15_032_385_535),
    st.integers(0, 1 << 31),
    st.builds(lambda n: n + 0.5, st.integers(0, 1 << 31)),
)


@st.composite
def members(draw: st.DrawFn) -> Member:
    """One member that GNU tar extracts inside its directory: names and link targets never lead out."""
    kind = draw(
        st.sampled_from(
            ["file", "file", "directory", "directory", "link", "hardlink", "fifo", "character", "block"]
        )
    )
    return Member(
        draw(_NAMES),
        kind,
        data=draw(st.one_of(st.binary(max_size=40), st.sampled_from([b"z" * 511, b"z" * 512, b"z" * 5000])))
        if kind == "file"
        else b"",
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.sampled_from([0, 0, 1000, 65534, 2_097_152, 4_000_000_000])),
        gid=draw(st.sampled_from([0, 0, 1000, 3_000_000])),
        mtime=draw(_TIMES),
        target=draw(_NAMES) if kind in ("link", "hardlink") else "",
        device=(draw(st.integers(1, 255)), draw(st.integers(0, 300))) if kind in ("character", "block") else (0, 0),
        xattrs=draw(
            st.dictionaries(st.sampled_from(["user.a", "user.bb"]), st.sampled_from([b"v", b"", b"\xff\xfe"]), max_size=2)
        )
        if kind in ("file", "directory")
        else {},
    )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A whole tar, shown by its members. format: tarfile's number of the dialect."""

    members: tuple[Member, ...]
    format: int

    @property
    def tar(self) -> bytes:
        """Its bytes."""
        return make_tar(*self.members, format=self.format)


def tars(*, max_members: int = 12) -> st.SearchStrategy[Drawn]:
    """Whole tars, PAX or GNU."""
    return st.builds(
        Drawn,
        st.lists(members(), max_size=max_members).map(tuple),
        st.sampled_from([tarfile.PAX_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    )
