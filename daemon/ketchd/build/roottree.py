"""An image's root, mounted in a layer worker, as the tree that COPY --from selects from and COPY's destination is looked up in.

Acts on fds that cannot leave the root. Nothing is executed or loaded from it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import InvalidInput, NotFound
from ketch_wire.launch import LayerMount
from ketchd.build.ignorefile import compile_rules, has_wildcards
from ketchd.build.members import Member, Selected, clean_source
from ketchd.kernel.openat import open_in_root
from ketchd.layers.mounting import mount_chain
from ketchd.layers.tarheaders import BLOCKDEV, CHARACTER, DIRECTORY, FIFO, REGULAR, SYMLINK, Entry
from ketchd.layers.worker import JobPort
from ketchd.model import pathmatch

_HERE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: REGULAR, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHARACTER, stat.S_IFBLK: BLOCKDEV,
    stat.S_IFDIR: DIRECTORY, stat.S_IFIFO: FIFO,
}  # fmt: skip
_ID_LIMIT = 0xFFFFFFFE
_FILE_LIMIT = 16 * 1024 * 1024
_LINK_LIMIT = 255


@dataclass(frozen=True, slots=True)
class RootTree:
    """A root as an O_PATH fd. path: where it is mounted in this process's namespace."""

    fd: int
    path: str

    def entry(self, path: str, *, follow: bool = False) -> Entry | None:
        """What lies at `path` (relative to the root), the last link followed or not; None for nothing. Raises OSError."""
        try:
            opened = open_in_root(self.fd, path or ".", os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            return _entry(opened)
        finally:
            os.close(opened)

    def real(self, path: str) -> str | None:
        """The path that `path` comes to when every link is followed inside the root; None when nothing is there."""
        try:
            opened = open_in_root(self.fd, path or ".", os.O_PATH)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            shown = os.readlink(f"/proc/self/fd/{opened}")
        finally:
            os.close(opened)
        return shown[len(self.path) :].strip("/")

    def follow(self, path: str) -> str:
        """Where something written to `path` would come: every link on the way followed inside the root, what is missing as it is."""
        done, links = "", 0
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        while todo:
            part = todo.pop()
            if part == "..":
                done = posixpath.dirname(done)
                continue
            at = f"{done}/{part}" if done else part
            entry = self.entry(at)
            if entry is None or entry.type != SYMLINK:
                done = at
                continue
            links += 1
            if links > _LINK_LIMIT:
                raise InvalidInput(f"too many links in /{path}")
            target = os.fsdecode(entry.link)
            if target.startswith("/"):
                done = ""
            todo += [step for step in reversed(target.split("/")) if step not in ("", ".")]
        return done

    def open(self, path: str) -> int:
        """A regular file for reading; no link is followed at its end. Raises OSError."""
        return open_in_root(self.fd, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def read(self, path: str) -> bytes | None:
        """A small regular file, links followed inside the root; None when it is none."""
        try:
            opened = open_in_root(self.fd, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        with os.fdopen(opened, "rb") as file:
            info = os.fstat(file.fileno())
            return file.read(_FILE_LIMIT) if stat.S_ISREG(info.st_mode) else None

    def names(self, path: str) -> list[str]:
        """The directory's entries, sorted bytewise. Raises OSError."""
        opened = open_in_root(self.fd, path or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(opened), key=os.fsencode)
        finally:
            os.close(opened)

    def select(self, source: str, exclude: tuple[str, ...] = ()) -> list[Selected]:
        """What a source argument names, as `ContextIndex.select`. Raises NotFound."""
        wanted = clean_source(source)
        if not has_wildcards(wanted):
            return [self.named(wanted, exclude)]
        found = [""]
        for part in wanted.split("/"):
            expression = pathmatch.pattern(part)
            found = [
                f"{directory}/{name}".lstrip("/")
                for directory in found
                if self._is_directory(directory)
                for name in (self.names(directory) if has_wildcards(part) else [part])
                if not has_wildcards(part) or expression.fullmatch(name)
            ]
        return [self.named(path, exclude) for path in found if self.entry(path) is not None]

    def _is_directory(self, path: str) -> bool:
        entry = self.entry(path, follow=True)
        return entry is not None and entry.type == DIRECTORY

    def named(self, wanted: str, exclude: tuple[str, ...] = ()) -> Selected:
        """What lies at the clean path `wanted`, which is no pattern. Raises NotFound."""
        found = self.real(wanted)
        entry = None if found is None else self.entry(found)
        if found is None or entry is None:
            raise NotFound(f"stat {wanted}: file does not exist")
        members = [Member("", entry, found)]
        rules = compile_rules(exclude)
        if entry.type == DIRECTORY:
            self._walk(found, "", rules.excludes if exclude else None, members)
        elif exclude and rules.excludes(posixpath.basename(wanted)):
            members = []
        return Selected(posixpath.basename(wanted), found, entry.type == DIRECTORY, tuple(members))

    def _walk(self, directory: str, relative: str, excludes: Any, members: list[Member]) -> None:
        waiting = [(directory, relative, self.names(directory)[::-1])]
        while waiting:
            directory, relative, names = waiting[-1]
            if not names:
                waiting.pop()
                continue
            name = names.pop()
            path = f"{directory}/{name}" if directory else name
            inner = f"{relative}/{name}" if relative else name
            entry = self.entry(path)
            if entry is None or (excludes is not None and excludes(inner)):
                continue
            members.append(Member(inner, entry, path))
            if entry.type == DIRECTORY:
                waiting.append((path, inner, self.names(path)[::-1]))

    def owner(self, text: str) -> tuple[int, int]:
        """`user[:group]`, by the root's own passwd and group files. Raises InvalidInput in dockerd's words."""
        user, sign, group = text.partition(":")
        uid, primary = self._user(user)
        gid = self._group(group) if sign and group else primary
        return uid, gid

    def _user(self, text: str) -> tuple[int, int]:
        if text.isdigit() and int(text) <= _ID_LIMIT:
            return int(text), int(text)
        for fields in self._lines("etc/passwd", 4):
            if fields[0] == text and fields[2].isdigit() and fields[3].isdigit():
                return int(fields[2]), int(fields[3])
        raise _no_such("uid", "user", text)

    def _group(self, text: str) -> int:
        if text.isdigit() and int(text) <= _ID_LIMIT:
            return int(text)
        for fields in self._lines("etc/group", 3):
            if fields[0] == text and fields[2].isdigit():
                return int(fields[2])
        raise _no_such("gid", "group", text)

    def _lines(self, path: str, fields: int) -> Iterator[list[str]]:
        content = self.read(path) or b""
        for line in content.decode("utf-8", "replace").splitlines():
            parts = line.split(":")
            if len(parts) >= fields:
                yield parts


def _no_such(kind: str, what: str, name: str) -> InvalidInput:
    return InvalidInput(
        f"unable to convert uid/gid chown string to host mapping: can't find {kind} for {what} {name}: no such {what}: {name}"
    )


def _entry(opened: int) -> Entry | None:
    """None for a socket, which means nothing without its process."""
    info = os.fstat(opened)
    kind = _TYPES.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return None
    entry = Entry(
        b"",
        kind,
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        mtime_ns=info.st_mtime_ns // 10**9 * 10**9,
    )
    if kind == REGULAR:
        entry.size = entry.stored = info.st_size
        # Names of one file are told by device and inode; overlayfs gives each layer a device of its own.
        entry.offset = (info.st_dev << 64) + info.st_ino if info.st_nlink > 1 else 0
    elif kind == SYMLINK:
        entry.link = os.fsencode(os.readlink("", dir_fd=opened))
    elif kind in (CHARACTER, BLOCKDEV):
        entry.major, entry.minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    if kind in (REGULAR, DIRECTORY):
        place = f"/proc/self/fd/{opened}"
        for name in sorted(os.listxattr(place)):
            if name == "security.capability" or name.startswith("user."):
                entry.xattrs[name.encode()] = os.getxattr(place, name)
    return entry


@contextmanager
def mounted(layers: list[dict[str, str]], port: JobPort) -> Iterator[RootTree]:
    """The chain (TOP FIRST, as a job's arguments carry it) as a read-only root, until the job ends; an empty one for none."""
    target = port.scratch()
    if layers:
        mount_chain([LayerMount(**layer) for layer in layers], target, None, None, True)
    opened = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield RootTree(opened, target)
    finally:
        os.close(opened)
