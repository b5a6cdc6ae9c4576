"""What COPY's sources hold, as a digest: names, modes, links and bytes, but no times. Jobs of layer workers, and small ones inline.

`file:HEX`, `dir:HEX` or `multi:HEX` is what history shows; per-file digests are kept to say later what changed.
Source: moby pkg/tarsum version 1 leaves times out; BuildKit's contenthash.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ketch_wire.faults import NotFound
from ketchd.build.ignorefile import compile_rules, parse
from ketchd.build.members import ContextIndex, Selected
from ketchd.build.roottree import RootTree, mounted
from ketchd.layers.tarheaders import REGULAR, Entry, entries
from ketchd.layers.worker import JobPort

FILES_KEPT = 400  # per-file digests kept for an explanation; more are grouped by directory
_CHUNK = 1 << 20
_HEAD = struct.Struct("<cIIIIII")


class TarContext:
    """A context's tar, mapped, and its index. Close it (or use it in a `with`). base: where the tar begins in the file."""

    base = 0
    _map: mmap.mmap | None

    def __init__(self, path: str, ignore: str | None = None, *, keep: bool = False) -> None:
        """ignore: an ignore file's text. keep: remember the headers for the next job about the same tar."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self._fd).st_size
            self._map = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) if self.size else None
        except BaseException:
            os.close(self._fd)
            raise
        self.view: memoryview = memoryview(self._map) if self._map is not None else memoryview(b"")
        try:
            found = _headers(path, self.view, self.size) if keep else entries(self.view, self.size)
            self.index = ContextIndex.of(found, compile_rules(parse(ignore or "")))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TarContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The tar's descriptor."""
        return self._fd

    def select(self, source: str, exclude: tuple[str, ...] = ()) -> list[Selected]:
        """See ContextIndex.select."""
        return self.index.select(source, exclude)

    def named(self, wanted: str) -> Selected:
        """See ContextIndex.named."""
        return self.index.named(wanted)

    def pieces(self, entry: Entry) -> Iterator[bytes | memoryview]:
        """A regular member's bytes; holes of sparse files as zeros."""
        if entry.sparse is None:
            yield self.view[entry.offset : entry.offset + entry.size]
            return
        position, at = 0, entry.offset
        for offset, length in entry.sparse:
            yield from _zeros(offset - position)
            yield self.view[at : at + length]
            at, position = at + length, offset + length
        yield from _zeros(entry.size - position)

    def close(self) -> None:
        """May be called twice. The mapping goes with the last view of it: a fault on its way still holds some."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._map, self.view = -1, None, memoryview(b"")


_kept: dict[str, list[Entry]] = {}


def _headers(path: str, view: memoryview, size: int) -> list[Entry]:
    """The tar's members; those of the newest tar are kept, since a build asks about its context again and again."""
    if path not in _kept:
        _kept.clear()
        _kept[path] = list(entries(view, size))
    return _kept[path]


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, _CHUNK))
        count -= _CHUNK


def select_all(
    tree: TarContext | RootTree, sources: Iterable[str], exclude: tuple[str, ...], keyword: str
) -> list[Selected]:
    """Every source's selections in order. Raises NotFound: `COPY failed: …`."""
    found: list[Selected] = []
    try:
        for source in sources:
            found += tree.select(source, exclude)
    except NotFound as error:
        raise NotFound(f"{keyword} failed: {error.message}") from None
    return found


def describe(
    selected: Sequence[Selected], digest_of: Callable[[Any], str], *, owners: bool
) -> tuple[str, str, dict[str, str]]:
    """(digest of everything, the label that history shows, path -> short digest). digest_of: a regular member's bytes."""
    labels: list[str] = []
    files: dict[str, str] = {}
    whole = hashlib.sha256()
    for one in selected:
        own = hashlib.sha256()
        for member in one.members:
            entry = member.entry
            head = _HEAD.pack(
                entry.type, entry.mode, entry.uid if owners else 0, entry.gid if owners else 0, entry.major, entry.minor,
                len(entry.xattrs),
            )  # fmt: skip
            line = hashlib.sha256(head + entry.link + b"\0")
            for name in sorted(entry.xattrs):
                line.update(name + b"\0" + entry.xattrs[name] + b"\0")
            if entry.type == REGULAR:
                line.update(digest_of(member).encode())
            found = line.hexdigest()
            own.update(member.relative.encode("utf-8", "surrogateescape") + b"\0" + found.encode() + b"\0")
            if entry.type != b"5":
                shown = member.origin.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                files[shown] = found[:16]
        labels.append(("dir:" if one.is_directory else "file:") + own.hexdigest())
        whole.update(one.name.encode("utf-8", "surrogateescape") + b"\0" + labels[-1].encode() + b"\0")
    label = (
        labels[0] if len(labels) == 1 else "multi:" + hashlib.sha256(",".join(labels).encode()).hexdigest()
    )
    return whole.hexdigest(), label, grouped(files)


def grouped(files: dict[str, str]) -> dict[str, str]:
    """At most about FILES_KEPT of them: whole directories as one where there are too many."""
    depth = max((path.count("/") for path in files), default=0)
    while len(files) > FILES_KEPT and depth > 0:
        merged: dict[str, list[str]] = {}
        for path, digest in files.items():
            parts = path.rstrip("/").split("/")
            name = "/".join(parts[:depth]) + "/" if len(parts) > depth else path
            merged.setdefault(name, []).append(digest)
        files = {
            path: found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()[:16]
            for path, found in merged.items()
        }
        depth -= 1
    if len(files) > FILES_KEPT:
        return {"files": hashlib.sha256("".join(files.values()).encode()).hexdigest()[:16]}
    return files


@contextmanager
def opened_source(source: dict[str, Any], port: JobPort | None) -> Iterator[TarContext | RootTree]:
    """source: {tar, ignore} for a context, {layers} for a root."""
    if "tar" in source:
        with TarContext(source["tar"], source.get("ignore"), keep=port is not None) as context:
            yield context
    else:
        assert port is not None
        with mounted(source["layers"], port) as root:
            yield root


def digest_member(tree: TarContext | RootTree, member: Any) -> str:
    """sha256 of a regular member's bytes, in hex."""
    hasher = hashlib.sha256()
    if isinstance(tree, TarContext):
        for piece in tree.pieces(member.entry):
            hasher.update(piece)
        return hasher.hexdigest()
    with os.fdopen(tree.open(member.origin), "rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def measure(arguments: dict[str, Any], port: JobPort | None) -> dict[str, Any]:
    """Job. arguments: source (see opened_source), sources, exclude, keyword, owners. Returns {content, label, files, many}."""
    with opened_source(arguments["source"], port) as tree:
        selected = select_all(tree, arguments["sources"], tuple(arguments["exclude"]), arguments["keyword"])
        content, label, files = describe(
            selected, lambda member: digest_member(tree, member), owners=arguments["owners"]
        )
    return {"content": content, "label": label, "files": files, "count": len(selected)}


def read_files(arguments: dict[str, Any], port: JobPort | None) -> dict[str, Any]:
    """Job. arguments: tar, names, limit (bytes). Returns {files: {name: bytes or None}}: small files of a context, links followed
    inside it; None for what is not there, is no file or is too long."""
    found: dict[str, bytes | None] = {}
    with TarContext(arguments["tar"], keep=port is not None) as context:
        for name in arguments["names"]:
            at = context.index.resolve(name)
            entry = context.index.entries.get(at) if at is not None else None
            if entry is None or entry.type != REGULAR or entry.size > arguments["limit"]:
                found[name] = None
            else:
                found[name] = b"".join(bytes(piece) for piece in context.pieces(entry))
    return {"files": found}
