"""A directory as the tar that a build is made from: what `.dockerignore` leaves, owned by root, in the order of names. Acting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ketch.ignorefile import Ignore
from ketch.tarwriting import BLOCK, EntryWriter, File, header, in_large_parts

FAILED = "error checking context: "


class _Open(NamedTuple):
    """A directory under way: what is left of it, the next one last. matched: which patterns its path has matched.

    owed: headers of parents that are out, due as soon as something in them is not; from `mark` on its own.
    """

    entries: list[os.DirEntry[bytes]]
    prefix: str
    matched: frozenset[int]
    owed: list[bytes]
    mark: int


class ContextTar:
    """The tar of one directory, in parts of about 256 KiB."""

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
        self._writer = EntryWriter(FAILED)

    def __iter__(self) -> Iterator[bytes]:
        """Raises CommandFailed for what cannot be read, or shrinks meanwhile."""
        return in_large_parts(self._parts())

    def _parts(self) -> Iterator[bytes]:
        yield from self._tree()
        for name, content in self._extra.items():
            yield header(os.fsencode(name), File, 0o600, len(content), 0)
            yield content + bytes(-len(content) % BLOCK)

    def _tree(self) -> Iterator[bytes]:
        """What is in the directory, however deep."""
        waiting = [_Open(self._listed(""), "", frozenset(), [], 0)]
        while waiting:
            place = waiting[-1]
            if not place.entries:
                waiting.pop()
                # Empty when it was paid; else this directory's own goes.
                del place.owed[place.mark :]
                continue
            entry, owed = place.entries.pop(), place.owed
            name = place.prefix + os.fsdecode(entry.name)
            if name in self._out:
                continue
            found = self._ignore.matches(name, place.matched) if self._ignore else place.matched
            is_directory = entry.is_dir(follow_symlinks=False)
            if self._ignore.is_out(found):
                if is_directory and self._ignore.may_return_below(name):
                    mark = len(owed)
                    owed.append(self._writer.head(entry.path, os.fsencode(name), self._stat(entry))[0])
                    waiting.append(_Open(self._listed(name), name + "/", found, owed, mark))
                continue
            yield from owed
            owed.clear()
            yield from self._writer.entry(entry.path, os.fsencode(name), self._stat(entry))
            if is_directory:
                waiting.append(_Open(self._listed(name), name + "/", found, [], 0))

    def _listed(self, path: str) -> list[os.DirEntry[bytes]]:
        """What is in a directory, the first name last."""
        place = os.path.join(self._root, os.fsencode(path))
        try:
            with os.scandir(place) as entries:
                return sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise self._writer.unreadable(place, error) from error

    def _stat(self, entry: os.DirEntry[bytes]) -> os.stat_result:
        try:
            return entry.stat(follow_symlinks=False)
        except OSError as error:
            raise self._writer.unreadable(entry.path, error) from error
