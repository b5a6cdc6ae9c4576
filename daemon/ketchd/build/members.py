"""A context's tar as the tree that COPY selects from: paths, links followed inside it, wildcards, what .dockerignore leaves out. Pure.

Nothing is unpacked: a member is its header and where its data lies in the tar.
"""

from __future__ import annotations

import posixpath
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ketch_wire.faults import InvalidInput, NotFound
from ketchd.build.ignorefile import IgnoreRules, compile_rules, has_wildcards
from ketchd.layers.tarheaders import DIRECTORY, HARDLINK, SYMLINK, Entry, bad
from ketchd.model import pathmatch

_LINK_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Member:
    """One thing to copy. relative: its path below what was selected, "" for that itself. origin: its path in the source."""

    relative: str
    entry: Entry
    origin: str


@dataclass(frozen=True, slots=True)
class Selected:
    """What one source argument (or one match of a wildcard) names: the members in path order, itself first.

    name: its last part as asked for, the name that it gets inside a directory; links are followed, the name is not.
    """

    name: str
    path: str
    is_directory: bool
    members: tuple[Member, ...]


@dataclass(slots=True)
class ContextIndex:
    """The members by clean path (`a/b`, the root is ""), in path order."""

    entries: dict[str, Entry] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    hard: set[int] = field(default_factory=set)  # data offsets that several names share

    @staticmethod
    def of(entries: Iterable[Entry], rules: IgnoreRules | None = None) -> ContextIndex:
        """The tree that extracting the tar would leave, without what `rules` exclude. Raises InvalidInput."""
        index = ContextIndex()
        index.entries[""] = Entry(b"", DIRECTORY, 0o755)
        hidden: dict[str, Entry] = {}
        for entry in entries:
            path = clean_name(entry.name)
            if entry.type == HARDLINK:
                entry = index._linked(path, entry, hidden)
            if not path:
                index.entries[""] = entry
            elif rules is not None and rules and rules.excludes(path):
                hidden[path] = entry
            else:
                index._add(path, entry, hidden)
        index.paths = sorted(index.entries)
        return index

    def _linked(self, path: str, entry: Entry, hidden: dict[str, Entry]) -> Entry:
        target = clean_name(entry.link)
        found = self.entries.get(target) or hidden.get(target)
        if found is None or found.type == DIRECTORY:
            raise bad(f"hard link {path[:80]!r} to {target[:80]!r}, which is not in the context")
        self.hard.add(found.offset)
        return replace(found, name=entry.name)

    def _add(self, path: str, entry: Entry, hidden: dict[str, Entry]) -> None:
        before = self.entries.get(path)
        if before is not None and before.type == DIRECTORY and entry.type != DIRECTORY:
            for below in [name for name in self.entries if name.startswith(path + "/")]:
                del self.entries[below]
        parent = posixpath.dirname(path)
        while parent and parent not in self.entries:
            self.entries[parent] = hidden.get(parent) or Entry(parent.encode(), DIRECTORY, 0o755)
            parent = posixpath.dirname(parent)
        self.entries[path] = entry

    def resolve(self, path: str) -> str | None:
        """Where `path` leads when links are followed inside the context; None when nothing is there."""
        done, links = "", 0
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        while todo:
            part = todo.pop()
            if part == "..":
                done = posixpath.dirname(done)
                continue
            at = f"{done}/{part}" if done else part
            entry = self.entries.get(at)
            if entry is None:
                return None
            if entry.type != SYMLINK:
                done = at
                continue
            links += 1
            if links > _LINK_LIMIT:
                return None
            target = entry.link.decode("utf-8", "surrogateescape")
            if target.startswith("/"):
                done = ""
            todo += [step for step in reversed(target.split("/")) if step not in ("", ".")]
        return done

    def below(self, path: str) -> Iterator[str]:
        """Every path inside the directory `path`, in order."""
        prefix = path + "/" if path else ""
        at = bisect_left(self.paths, prefix) if prefix else 1
        while at < len(self.paths) and self.paths[at].startswith(prefix):
            yield self.paths[at]
            at += 1

    def select(self, source: str, exclude: tuple[str, ...] = ()) -> list[Selected]:
        """What a source argument names. Raises NotFound in dockerd's words; a wildcard may name nothing."""
        wanted = clean_source(source)
        if not has_wildcards(wanted):
            return [self.named(wanted, exclude)]
        expression = pathmatch.pattern(wanted)
        return [self.named(path, exclude) for path in self.paths[1:] if expression.fullmatch(path)]

    def named(self, wanted: str, exclude: tuple[str, ...] = ()) -> Selected:
        """What lies at the clean path `wanted`, which is no pattern. Raises NotFound."""
        found = self.resolve(wanted)
        if found is None:
            raise NotFound(
                "file not found in build context or excluded by .dockerignore: "
                f"stat {wanted}: file does not exist"
            )
        entry = self.entries[found]
        members = [Member("", entry, found)]
        if entry.type == DIRECTORY:
            rules = compile_rules(exclude)
            skip = len(found) + 1 if found else 0
            members += [
                Member(path[skip:], self.entries[path], path)
                for path in self.below(found)
                if not rules.excludes(path[skip:])
            ]
        elif exclude and compile_rules(exclude).excludes(posixpath.basename(wanted)):
            members = []
        return Selected(posixpath.basename(wanted), found, entry.type == DIRECTORY, tuple(members))


def clean_name(name: bytes) -> str:
    """A member's path: no slash at either end, no `.`; one that leaves the root is refused. Raises InvalidInput."""
    text = name.decode("utf-8", "surrogateescape")
    if text.startswith("./"):
        text = text[2:]
    if "//" not in text and "./" not in text and "/." not in text and text not in (".", ".."):
        return text.strip("/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise bad(f"{name[:80]!r} leaves the root")
    return "/".join(parts)


def clean_source(source: str) -> str:
    """A COPY source: `..` and a leading slash stay inside the root; "" is the root."""
    return posixpath.normpath("/" + source).lstrip("/") if source not in ("", "/", ".") else ""


def check_names(path: str) -> None:
    """Raises InvalidInput for a name that means a whiteout in a layer."""
    if ".wh." in path and any(part.startswith(".wh.") for part in path.split("/")):
        raise InvalidInput(f"{path} cannot be in a layer: names that begin with .wh. mean whiteouts there")
