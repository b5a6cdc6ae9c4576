"""Image archives as tar files: writing one as a stream, and looking through a received one.

Knows tar, not images: what the entries mean is the business of `engine.save` and `engine.load`.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import posixpath
import tarfile
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field
from pathlib import Path

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.layers.placing import disk_fault
from ketchd.layers.tarheaders import HARDLINK, REGULAR, SYMLINK, Entry, entries
from ketchd.model.digest import Digest

_CHUNK = 1024 * 1024
MEMBER_LIMIT = 200_000
DOCUMENT_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive to write: `content`, or `size` bytes of the file `source` from `offset`.

    With neither it is a directory.

    mtime in seconds.
    """

    name: str
    mtime: int
    content: bytes | None = None
    source: Path | None = None
    offset: int = 0
    size: int = 0


async def stream(members: AsyncIterable[Member]) -> AsyncGenerator[bytes, None]:
    """The tar file, in pieces of at most 1 MiB. A member's source is opened before the next member is asked for.

    Raises EngineFailure when a source is shorter than promised.
    """
    written = 0
    async for member in members:
        header = _header(member)
        yield header
        written += len(header)
        if member.content is not None:
            yield member.content
            size = len(member.content)
        elif member.source is not None:
            with await asyncio.to_thread(member.source.open, "rb", 0) as file:
                left, position = member.size, member.offset
                while left:
                    chunk = await asyncio.to_thread(os.pread, file.fileno(), min(_CHUNK, left), position)
                    if not chunk:
                        raise EngineFailure(f"{member.name} ended {left} bytes early")
                    yield chunk
                    left -= len(chunk)
                    position += len(chunk)
            size = member.size
        else:
            size = 0
        if size % 512:
            yield b"\0" * (512 - size % 512)
        written += size + -size % 512
    yield b"\0" * (1024 + -(written + 1024) % tarfile.RECORDSIZE)


def _header(member: Member) -> bytes:
    entry = tarfile.TarInfo(member.name)
    entry.mtime = member.mtime
    if member.content is None and member.source is None:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    else:
        entry.mode = 0o644
        entry.size = len(member.content) if member.content is not None else member.size
    return entry.tobuf(tarfile.PAX_FORMAT)


@dataclass(frozen=True, slots=True)
class Piece:
    """A member's content: `size` bytes of the archive from `offset`."""

    offset: int
    size: int


@dataclass(slots=True)
class Contents:
    """A received archive, looked through and left where it is: no name of theirs ever becomes a path.

    path: the plain tar. files: the last of a name counts. links: symbolic and hard links, by normalised name; old archives
    share layers by them.
    """

    path: Path
    files: dict[str, Piece] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def piece(self, name: str) -> Piece:
        """Where the content of `name` lies; links are followed inside the archive. Raises InvalidInput."""
        found = self._find(name)
        if found is None:
            raise InvalidInput(f"open {name[:200]}: no such file or directory in the archive")
        return found

    def read(self, name: str) -> bytes:
        """A small document. Raises InvalidInput."""
        piece = self.piece(name)
        if piece.size > DOCUMENT_LIMIT:
            raise InvalidInput(f"{name[:200]} is larger than {DOCUMENT_LIMIT} bytes")
        with self.path.open("rb", 0) as file:
            return os.pread(file.fileno(), piece.size, piece.offset)

    def _find(self, name: str) -> Piece | None:
        wanted = normalise(name)
        for _ in range(16):
            if wanted is None:
                return None
            if wanted in self.files:
                return self.files[wanted]
            wanted = self.links.get(wanted)
        return None


def normalise(name: str) -> str | None:
    """A member's name relative to the archive's root; None when it leads out of it."""
    clean = posixpath.normpath(name.lstrip("/"))
    return None if clean == ".." or clean.startswith("../") else clean


def look_through(path: Path) -> Contents:
    """The members of the plain tar at `path`. For a thread. Raises InvalidInput (not a tar, damaged)."""
    contents = Contents(path)
    with path.open("rb", 0) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return contents
        # The mapping goes with its last reference: a fault on the way still holds pieces of it.
        mapped = memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))
        for number, entry in enumerate(entries(mapped, size)):
            if number >= MEMBER_LIMIT:
                raise InvalidInput(f"the archive has more than {MEMBER_LIMIT} entries")
            _take(entry, contents)
    return contents


def copy_piece(archive: Path, piece: Piece, target: Path) -> Digest:
    """Write the piece to the new file `target`; returns its digest. For a thread. Raises EngineFailure (disk full)."""
    hashed = hashlib.sha256()
    try:
        with archive.open("rb", 0) as source, target.open("xb") as file:
            at, end = piece.offset, piece.offset + piece.size
            while at < end and (chunk := os.pread(source.fileno(), min(_CHUNK, end - at), at)):
                hashed.update(chunk)
                file.write(chunk)
                at += len(chunk)
    except OSError as error:
        raise disk_fault(error, "cannot take a blob out of the archive") from error
    return Digest(f"sha256:{hashed.hexdigest()}")


def _take(entry: Entry, contents: Contents) -> None:
    text = os.fsdecode(entry.name)
    name, target = normalise(text), os.fsdecode(entry.link)
    if name is None:
        raise InvalidInput(f"the archive's entry {text[:200]!r} leads out of it")
    if entry.type == SYMLINK:
        linked = normalise(posixpath.join(posixpath.dirname(name), target))
    elif entry.type == HARDLINK:
        linked = normalise(target)
    elif entry.type == REGULAR and entry.sparse is None:
        contents.files[name] = Piece(entry.offset, entry.stored)
        contents.links.pop(name, None)
        return
    else:
        return
    if linked is not None:
        contents.links[name] = linked
        contents.files.pop(name, None)
