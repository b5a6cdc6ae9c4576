"""Where the bytes of COPY's and ADD's members come from: the context's tar, a mounted root, an archive that ADD unpacks."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.build.contenthash import TarContext
from ketchd.build.layerdraft import Draft, Write, nothing
from ketchd.build.members import Member, Selected, clean_name
from ketchd.build.roottree import RootTree
from ketchd.layers.inflate import inflate
from ketchd.layers.layerfile import write_all
from ketchd.layers.tarheaders import BLOCK, DIRECTORY, HARDLINK, REGULAR, Entry, entries
from ketchd.layers.tarwrite import TarWriter

_CHUNK = 1 << 20
_HEAD = 1 << 16
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


def from_source(tree: TarContext | RootTree, member: Member) -> Write:
    """Write a regular member with its bytes from the source."""

    def write(writer: TarWriter, entry: Entry) -> None:
        if isinstance(tree, RootTree):
            opened = tree.open(member.origin)
            try:
                writer.add(entry, source=opened)
            finally:
                os.close(opened)
        elif member.entry.sparse is not None:
            _expanded(writer, entry, tree.pieces(member.entry))
        elif entry.stored <= _CHUNK // 4:
            writer.add(entry, bytes(tree.view[member.entry.offset : member.entry.offset + entry.stored]))
        else:
            writer.add(entry, source=tree.fd, offset=tree.base + member.entry.offset)

    return write


def _expanded(writer: TarWriter, entry: Entry, pieces: Iterator[bytes | memoryview]) -> None:
    """A sparse file, holes as zeros, through a file without a name: it may be larger than memory."""
    opened = os.memfd_create("sparse", os.MFD_CLOEXEC)
    try:
        position = 0
        for piece in pieces:
            if isinstance(piece, memoryview):
                write_all(opened, piece, position)
            position += len(piece)
        os.ftruncate(opened, entry.stored)
        writer.add(entry, source=opened)
    finally:
        os.close(opened)


def linked(output: Draft, identity: int, member: Member, tree: TarContext | RootTree) -> Write:
    """The first name of a file that has several carries the bytes, the others link to it."""

    def write(writer: TarWriter, entry: Entry) -> None:
        first = output.links.get((id(tree), identity))
        if first is not None:
            writer.add(replace(entry, type=HARDLINK, link=os.fsencode(first), size=0, stored=0))
            return
        output.links[id(tree), identity] = os.fsdecode(entry.name)
        from_source(tree, member)(writer, entry)

    return write


def from_bytes(content: bytes) -> Write:
    def write(writer: TarWriter, entry: Entry) -> None:
        writer.add(entry, content)

    return write


def unpack(
    output: Draft,
    target: str,
    one: Selected,
    tree: TarContext | RootTree,
    arguments: dict[str, Any],
    opened: list[Any],
) -> bool:
    """ADD of a local archive: its members below the target. False when it is none."""
    if not one.members or one.members[0].entry.type != REGULAR:
        return False
    member = one.members[0]
    if isinstance(tree, TarContext):
        offset, size, fd = member.entry.offset, member.entry.stored, os.dup(tree.fd)
    else:
        fd = tree.open(member.origin)
        offset, size = 0, os.fstat(fd).st_size
    try:
        return member.entry.sparse is None and unpack_fd(output, target, fd, offset, size, arguments, opened)
    finally:
        os.close(fd)


def unpack_fd(
    output: Draft,
    target: str,
    fd: int,
    offset: int,
    size: int,
    arguments: dict[str, Any],
    opened: list[Any],
) -> bool:
    head = os.pread(fd, min(size, _HEAD), offset)
    if not head.startswith(_MAGIC):
        if not _is_tar(head):
            return False
        plain, start = os.dup(fd), offset
    else:
        plain, start = _inflated(fd, offset, size, arguments["place"]["path"]), 0
        if plain < 0:
            return False
        size = os.fstat(plain).st_size
    archive = _Archive(plain, start, size)
    opened.append(archive)
    if target:
        output.make_parents(f"{target}/x")
    known: dict[str, Entry] = {}
    shared: set[int] = set()
    for entry in entries(archive.view, size):
        path = clean_name(entry.name)
        if entry.type == HARDLINK:
            there = known.get(clean_name(entry.link))
            if there is None or there.type == DIRECTORY:
                raise InvalidInput(f"hard link {path[:80]!r} leads to nothing in the archive")
            entry = there
            shared.add(entry.offset)
        known[path] = entry
    for path, entry in known.items():
        if not path:
            continue
        whole = output.through_links(f"{target}/{path}".lstrip("/"))
        dressed = replace(entry, uid=output.owner[0], gid=output.owner[1]) if output.owner else entry
        if entry.type == REGULAR:
            member = Member("", entry, path)
            write = (
                linked(output, entry.offset, member, archive)
                if entry.offset in shared
                else from_source(archive, member)
            )
            output.put(whole, replace(dressed, stored=entry.size), write, replaces=True)
        else:
            output.put(whole, dressed, nothing, replaces=True)
    return True


class _Archive(TarContext):
    """An archive inside something else, mapped: the bytes of its members, without an index."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self.size, self.base = size, start
        page = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(fd, start - page + size, prot=mmap.PROT_READ, offset=page)
        self.view = memoryview(self._map)[start - page :]


def _is_tar(head: bytes) -> bool:
    if len(head) < BLOCK or not head[:BLOCK].strip(b"\0"):
        return False
    try:
        next(entries(head[:BLOCK] + bytes(BLOCK), BLOCK), None)
    except InvalidInput as fault:
        return "cut short" in fault.message
    return True


def _inflated(fd: int, offset: int, size: int, beside: str) -> int:
    """The decompressed archive in a file without a name; -1 when what is inside is no tar."""
    position, end = offset, offset + size

    def read(length: int) -> bytes:
        nonlocal position
        piece = os.pread(fd, min(length, end - position), position)
        position += len(piece)
        return piece

    try:
        plain = os.open(os.path.dirname(beside), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EngineFailure(f"cannot unpack: {error.strerror or error}".lower()) from error
    written, fine = 0, False
    try:
        for piece in inflate(read):
            if written == 0 and not _is_tar(piece[:_HEAD].ljust(BLOCK, b"\0")):
                return -1
            write_all(plain, piece, written)
            written += len(piece)
        fine = written > 0
        return plain if fine else -1
    except InvalidInput:
        if written:
            raise
        return -1
    finally:
        if not fine:
            os.close(plain)
