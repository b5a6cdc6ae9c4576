"""A layer while COPY puts it together: members by path over what the layers below have, written once and sorted."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.build.members import check_names
from ketchd.build.roottree import RootTree
from ketchd.layers.layerfile import LayerFile
from ketchd.layers.tarheaders import DIRECTORY, SYMLINK, Entry
from ketchd.layers.tarwrite import TarWriter

Write = Callable[[TarWriter, Entry], None]


@dataclass(slots=True)
class Draft:
    """The layer's members by path, until they are written in path order. What it makes itself is of 1970, whenever that is."""

    root: RootTree | None
    owner: tuple[int, int] | None
    chmod: int | None
    members: dict[str, tuple[Entry, Write]] = field(default_factory=dict)
    links: dict[tuple[int, int], str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)

    def below(self, path: str) -> Entry | None:
        """What the layers below have at `path`, a link itself; None for nothing."""
        return self.root.entry(path) if self.root is not None else None

    def is_directory(self, path: str) -> bool:
        """Whether a directory is at `path`, in this layer or below."""
        if path in self.members:
            return self.members[path][0].type == DIRECTORY
        found = self.root.entry(path, follow=True) if self.root is not None else None
        return not path or (found is not None and found.type == DIRECTORY)

    def make_parents(self, path: str) -> None:
        """Every directory above `path`: as it is below, or new, 0755. Raises InvalidInput where something else lies."""
        parents: list[str] = []
        parent = posixpath.dirname(path)
        while parent and parent not in self.members:
            parents.append(parent)
            parent = posixpath.dirname(parent)
        if parent and self.members[parent][0].type != DIRECTORY:
            raise InvalidInput(f"cannot copy to non-directory: /{parent}")
        for parent in reversed(parents):
            self.keep_or_make(parent)

    def keep_or_make(self, path: str) -> None:
        """The directory `path`: as it is below, or new, 0755."""
        if path in self.members:
            return
        known = self.below(path)
        if known is not None and known.type != DIRECTORY:
            raise InvalidInput(f"cannot copy to non-directory: /{path}")
        uid, gid = self.owner or (0, 0)
        entry = known or Entry(b"", DIRECTORY, 0o755, uid, gid, mtime_ns=0)
        self.members[path] = (entry, nothing)

    def through_links(self, path: str) -> str:
        """The path with the links of the root below followed in its directories, unless this layer has them already."""
        parent, name = posixpath.split(path)
        if not parent or parent in self.members or self.root is None:
            return path
        if parent not in self.real:
            self.real[parent] = self.root.real(parent) or parent
        return f"{self.real[parent]}/{name}".lstrip("/")

    def put(self, path: str, entry: Entry, write: Write, *, replaces: bool = False) -> None:
        """One member. replaces: what lies there goes, whatever it is. Raises InvalidInput."""
        check_names(path)
        if len(path) > 4095:
            raise InvalidInput(f"/{path[:80]}… is longer than a path can be")
        self.make_parents(path)
        if not replaces:
            here = self.members.get(path)
            known = here[0] if here is not None else self.below(path)
            if known is not None and (known.type == DIRECTORY) != (entry.type == DIRECTORY):
                if entry.type == DIRECTORY:
                    raise InvalidInput(f"cannot copy to non-directory: /{path}")
                raise InvalidInput(f"cannot overwrite directory /{path} with a file")
        self.members[path] = (entry, write)

    def dressed(self, entry: Entry, *, owned: bool) -> Entry:
        """The entry as it goes into the layer. owned: it keeps its owner unless `--chown` says otherwise."""
        uid, gid = self.owner or ((entry.uid, entry.gid) if owned else (0, 0))
        mode = entry.mode if self.chmod is None or entry.type == SYMLINK else self.chmod
        return replace(entry, uid=uid, gid=gid, mode=mode)

    def write(self, place: dict[str, Any]) -> dict[str, Any]:
        """Everything into a layer file, sorted, the end sealed."""
        with LayerFile(place) as layer:
            writer = TarWriter(layer)
            for path in sorted(self.members, key=os.fsencode):
                entry, write = self.members[path]
                write(writer, replace(entry, name=os.fsencode(path), sparse=None))
            writer.finish()
            return layer.seal()


def nothing(writer: TarWriter, entry: Entry) -> None:
    """A member without bytes."""
    writer.add(replace(entry, size=0, stored=0))
