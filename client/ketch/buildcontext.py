"""A directory as the tar that a build is made from: what `.dockerignore` leaves, owned by root, in the order of names. Acting.

The headers are written here instead of by tarfile: ten thousand small files are a common context, and this takes a third
of the time. Source: POSIX pax; docker/docker pkg/archive (TarWithOptions).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ketch.faults import CommandFailed
from ketch.ignorefile import Ignore

BLOCK = 512
CHUNK = 256 * 1024
_LARGEST_OCTAL = 0o77777777777

File, HardLink, SymLink, CharDevice, BlockDevice, Directory, Fifo = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KINDS = {
    stat.S_IFREG: File,
    stat.S_IFLNK: SymLink,
    stat.S_IFCHR: CharDevice,
    stat.S_IFBLK: BlockDevice,
    stat.S_IFDIR: Directory,
    stat.S_IFIFO: Fifo,
}


def header(
    name: bytes,
    kind: bytes,
    mode: int,
    size: int,
    mtime: int,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    records: dict[bytes, bytes] | None = None,
) -> bytes:
    """One ustar header, with a pax header before it for `records` and where a value does not fit."""
    records = dict(records or {})
    if len(name) > 100:
        records[b"path"] = name
    if len(link) > 100:
        records[b"linkpath"] = link
    if size > _LARGEST_OCTAL:
        records[b"size"] = b"%d" % size
    if not 0 <= mtime <= _LARGEST_OCTAL:
        records[b"mtime"] = b"%d" % mtime
        mtime = 0
    return pax(records) + ustar(name[:100], kind, mode, min(size, _LARGEST_OCTAL), mtime, link[:100], device)


def ustar(
    name: bytes, kind: bytes, mode: int, size: int, mtime: int, link: bytes, device: tuple[int, int]
) -> bytes:
    """512 bytes; owner and group are root's."""
    block = b"%-100b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%-100bustar\00000%-64b%07o\0%07o\0%-167b" % (
        name, mode, 0, 0, size, mtime, kind, link, b"", *device, b"",
    )  # fmt: skip
    # The format pads with spaces where tar wants zeros.
    block = (
        name.ljust(100, b"\0") + block[100:157] + link.ljust(100, b"\0") + block[257:265]
        + bytes(64) + block[329:345] + bytes(167)
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def pax(records: dict[bytes, bytes]) -> bytes:
    """A pax header with `records`; nothing for none."""
    if not records:
        return b""
    content = b"".join(_record(key, value) for key, value in records.items())
    padding = bytes(-len(content) % BLOCK)
    return ustar(b"PaxHeaders.0/entry", b"x", 0o644, len(content), 0, b"", (0, 0)) + content + padding


def _record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while length != len(key) + len(value) + 3 + len(str(length)):
        length = len(key) + len(value) + 3 + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


class ContextTar:
    """The tar of one directory, in parts of about 256 KiB. `size` counts the bytes that were given."""

    def __init__(
        self,
        root: str,
        ignore: Ignore,
        extra: dict[str, bytes] | None = None,
        out: frozenset[str] = frozenset(),
    ) -> None:
        """`extra`: files to add, which the directory does not have; `out`: paths that these stand for."""
        self._root = os.fsencode(root)
        self._ignore = ignore
        self._extra = extra or {}
        self._out = out
        self._seen: dict[tuple[int, int], bytes] = {}
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        """Raises CommandFailed for what cannot be read, or shrinks meanwhile."""
        kept: list[bytes] = []
        length = 0
        for part in self._parts():
            kept.append(part)
            length += len(part)
            if length >= CHUNK:
                self.size += length
                yield b"".join(kept)
                kept, length = [], 0
        kept.append(bytes(2 * BLOCK))
        self.size += length + 2 * BLOCK
        yield b"".join(kept)

    def _parts(self) -> Iterator[bytes]:
        yield from self._directory("", frozenset(), [])
        for name, content in self._extra.items():
            yield header(os.fsencode(name), File, 0o600, len(content), 0)
            yield content + bytes(-len(content) % BLOCK)

    def _directory(self, path: str, matched: frozenset[int], owed: list[bytes]) -> Iterator[bytes]:
        """What is in a directory. `owed`: headers of parents that are out, due as soon as something in them is not."""
        try:
            with os.scandir(os.path.join(self._root, os.fsencode(path))) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise unreadable(self._root, path, error) from error
        prefix = path + "/" if path else ""
        for entry in listed:
            name = prefix + os.fsdecode(entry.name)
            if name in self._out:
                continue
            found = self._ignore.matches(name, matched) if self._ignore else matched
            is_directory = entry.is_dir(follow_symlinks=False)
            if self._ignore.is_out(found):
                if is_directory and self._ignore.may_return_below(name):
                    mark = len(owed)
                    owed.append(self._header(entry, name)[0])
                    yield from self._directory(name, found, owed)
                    # Empty when it was paid; else this directory's own goes.
                    del owed[mark:]
                continue
            yield from owed
            owed.clear()
            yield from self._entry(entry, name)
            if is_directory:
                yield from self._directory(name, found, [])

    def _header(self, entry: os.DirEntry[bytes], name: str) -> tuple[bytes, int]:
        """The header of an entry, and the number of its bytes that follow."""
        try:
            info = entry.stat(follow_symlinks=False)
            kind = _KINDS.get(stat.S_IFMT(info.st_mode))
            if kind is None:
                return b"", 0
            raw, link, size = os.fsencode(name), b"", 0
            device = (0, 0)
            if kind == Directory:
                raw += b"/"
            elif kind == SymLink:
                link = os.readlink(entry.path)
            elif info.st_nlink > 1:
                link = self._seen.setdefault((info.st_dev, info.st_ino), raw)
                if link != raw:
                    return header(raw, HardLink, stat.S_IMODE(info.st_mode), 0, int(info.st_mtime), link), 0
                link = b""
            if kind == File:
                size = info.st_size
            elif kind in (CharDevice, BlockDevice):
                device = os.major(info.st_rdev), os.minor(info.st_rdev)
        except OSError as error:
            raise unreadable(self._root, name, error) from error
        # Only programs have capabilities: no look at the attributes of thousands of plain files.
        records = _capabilities(entry.path) if kind == File and info.st_mode & 0o111 else None
        mode = stat.S_IMODE(info.st_mode)
        return header(raw, kind, mode, size, int(info.st_mtime), link, device, records), size

    def _entry(self, entry: os.DirEntry[bytes], name: str) -> Iterator[bytes]:
        made, size = self._header(entry, name)
        if made:
            yield made
        if not size:
            return
        left = size
        try:
            with open(entry.path, "rb", buffering=0) as file:
                while left:
                    part = file.read(min(left, CHUNK))
                    if not part:
                        raise CommandFailed(f"file {name!r} of the build context shrank while it was read")
                    left -= len(part)
                    yield part
        except OSError as error:
            raise unreadable(self._root, name, error) from error
        if size % BLOCK:
            yield bytes(-size % BLOCK)


def _capabilities(path: bytes) -> dict[bytes, bytes]:
    """The pax record of a file's capabilities, if it has some."""
    try:
        kept = os.getxattr(path, b"security.capability", follow_symlinks=False)
    except OSError:
        return {}
    return {b"SCHILY.xattr.security.capability": kept}


def unreadable(root: bytes, name: str, error: OSError) -> CommandFailed:
    """What a context that cannot be read is told."""
    path = os.path.join(os.fsdecode(root), name)
    if isinstance(error, PermissionError):
        return CommandFailed(f"error checking context: no permission to read from '{path}'")
    return CommandFailed(f"error checking context: {path}: {(error.strerror or str(error)).lower()}")
