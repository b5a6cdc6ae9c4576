"""Image archives as tar files: writing one as a stream, and taking a received one apart safely.

Knows tar, not images: what the entries mean is `engine.image_archives`' business.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import tarfile
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.content.compression import READ_FAULTS, open_decompressed

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


async def stream(members: Sequence[Member]) -> AsyncIterator[bytes]:
    """The tar file, in pieces of at most 1 MiB.

    Raises EngineFailure when a source is shorter than promised.
    """
    written = 0
    for member in members:
        header = _header(member)
        yield header
        written += len(header)
        if member.content is not None:
            yield member.content
            size = len(member.content)
        elif member.source is not None:
            with await asyncio.to_thread(member.source.open, "rb") as file:
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


@dataclass(slots=True)
class Unpacked:
    """A received archive.

    Its regular files lie below one directory under names of ours, so no name of theirs is a path.

    links: symbolic and hard links, by normalised name; old archives share layers by them.
    """

    files: dict[str, Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def path(self, name: str) -> Path:
        """Where the content of `name` lies; links are followed inside the archive. Raises InvalidInput."""
        found = self._find(name)
        if found is None:
            raise InvalidInput(f"open {name[:200]}: no such file or directory in the archive")
        return found

    def read(self, name: str) -> bytes:
        """A small document. Raises InvalidInput."""
        path = self.path(name)
        if path.stat().st_size > DOCUMENT_LIMIT:
            raise InvalidInput(f"{name[:200]} is larger than {DOCUMENT_LIMIT} bytes")
        return path.read_bytes()

    def _find(self, name: str) -> Path | None:
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


def unpack(source: Path, into: Path, stop: threading.Event) -> Unpacked:
    """Take the (compressed) archive apart into the new directory `into`.

    For a thread: returns soon after `stop` is set.

    Raises InvalidInput (not a tar, damaged), EngineFailure (disk).
    """
    into.mkdir(mode=0o700)
    unpacked = Unpacked()
    try:
        with (
            open_decompressed(source) as plain,
            tarfile.open(fileobj=plain, mode="r|", bufsize=_CHUNK) as archive,
        ):
            for number, member in enumerate(archive):
                if stop.is_set():
                    return unpacked
                if number >= MEMBER_LIMIT:
                    raise InvalidInput(f"the archive has more than {MEMBER_LIMIT} entries")
                _take(archive, member, into / str(number), unpacked, stop)
    except (tarfile.TarError, *READ_FAULTS) as error:
        raise InvalidInput(f"the archive is damaged: {str(error)[:200] or type(error).__name__}") from error
    except OSError as error:
        if isinstance(error, READ_FAULTS) or error.errno is None:
            raise InvalidInput(f"the archive is damaged: {str(error)[:200]}") from error
        why = "no space left on device" if error.errno == errno.ENOSPC else (error.strerror or "").lower()
        raise EngineFailure(f"cannot unpack the archive: {why}") from error
    return unpacked


def _take(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, unpacked: Unpacked, stop: threading.Event
) -> None:
    name = normalise(member.name)
    if name is None:
        raise InvalidInput(f"the archive's entry {member.name[:200]!r} leads out of it")
    if member.issym():
        linked = normalise(posixpath.join(posixpath.dirname(name), member.linkname))
    elif member.islnk():
        linked = normalise(member.linkname)
    elif member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        with target.open("xb", buffering=0) as file:
            _copy(content, file, member.size, stop)
        unpacked.files[name] = target
        unpacked.links.pop(name, None)
        return
    else:
        return
    if linked is not None:
        unpacked.links[name] = linked
        unpacked.files.pop(name, None)


def _copy(content: IO[bytes], file: IO[bytes], size: int, stop: threading.Event) -> None:
    left = size
    while left and not stop.is_set():
        chunk = content.read(min(_CHUNK, left))
        if not chunk:
            raise InvalidInput("the archive is damaged: unexpected end of data")
        view = memoryview(chunk)
        while view:
            view = view[file.write(view) :]
        left -= len(chunk)
