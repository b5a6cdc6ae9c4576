"""A tar into a directory of a container, for a layer worker: every parent resolved inside the root by the kernel, every change by fd.

Links of the container are followed, but inside its root only. A file is made anew, never written through what is there.
Source: moby's pkg/archive Unpack, whose order and messages are kept.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from ketch_wire.faults import EngineFailure
from ketchd.kernel.openat import (
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    make_directories,
    open_in_root,
)
from ketchd.layers.descent import remove_at
from ketchd.layers.tarheaders import BLOCKDEV, CHARACTER, DIRECTORY, FIFO, HARDLINK, SYMLINK, Entry

_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_NODES = {CHARACTER: stat.S_IFCHR, BLOCKDEV: stat.S_IFBLK, FIFO: stat.S_IFIFO}


class TreeExtract:
    """Extracts into `target`, an fd of the directory that lies at `path` in `root`; both stay the caller's.

    no_overwrite: a directory never replaces a file, nor a file a directory. owner: (uid, gid) for everything, None: as the
    tar says.
    """

    def __init__(
        self, root: int, target: int, path: str, *, no_overwrite: bool, owner: tuple[int, int] | None
    ) -> None:
        self._root = root
        self._target = target
        self._path = path.removesuffix("/.").rstrip("/")
        self._no_overwrite = no_overwrite
        self._owner = owner
        self._parent: tuple[str, int] | None = None

    def run(self, entries: Sequence[Entry], tar: int) -> None:
        """Make every entry; `tar` is the fd of the plain tar. Raises EngineFailure, OSError; what was made before stays."""
        times: list[tuple[str, int]] = []
        umask = os.umask(0)
        try:
            for entry in entries:
                name = self._inside(entry.name)
                if name == ".":
                    continue
                self._make(entry, name, tar)
                if entry.type == DIRECTORY:
                    times.append((name, entry.mtime_ns))
            for name, when in reversed(times):
                self._set_directory_time(name, when)
        finally:
            os.umask(umask)
            self._forget_parent()

    def _inside(self, raw: bytes) -> str:
        text = os.fsdecode(raw)
        if "\0" in text:
            raise EngineFailure("Error processing tar file: a name contains a NUL byte")
        clean = os.path.normpath(text.lstrip("/") or ".")
        if clean == ".." or clean.startswith("../"):
            raise EngineFailure(
                f'Error processing tar file: "{text[:200]}" is outside of "{self._path or "/"}"'
            )
        return clean

    def _make(self, entry: Entry, name: str, tar: int) -> None:
        head, _, last = name.rpartition("/")
        parent = self._open_parent(head)
        exists = self._clear_way(parent, last, entry, name)
        if entry.type == DIRECTORY:
            if not exists:
                os.mkdir(last, entry.mode, dir_fd=parent)
            fd = os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                self._dress(fd, entry)
            finally:
                os.close(fd)
        elif entry.type == HARDLINK:
            self._link(entry, parent, last)
        elif entry.type == SYMLINK:
            os.symlink(os.fsdecode(entry.link), last, dir_fd=parent)
            uid, gid = self._owner or (entry.uid, entry.gid)
            os.chown(last, uid, gid, dir_fd=parent, follow_symlinks=False)
            os.utime(last, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
        elif entry.type in _NODES:
            self._node(entry, parent, last)
        else:
            self._file(entry, parent, last, tar)

    def _clear_way(self, parent: int, last: str, entry: Entry, name: str) -> bool:
        """Remove what is in the way; says whether a directory stays that the entry is merged into."""
        try:
            there = os.stat(last, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        is_directory, becomes_directory = stat.S_ISDIR(there.st_mode), entry.type == DIRECTORY
        if is_directory and becomes_directory:
            return True
        if self._no_overwrite and is_directory != becomes_directory:
            full = f"{self._path}/{name}"
            if is_directory:
                what = f'cannot overwrite directory "{full}" with non-directory "{self._path or "/"}"'
            else:
                what = f'cannot overwrite non-directory "{full}" with directory "{self._path or "/"}"'
            raise EngineFailure(what)
        if is_directory:
            self._forget_parent_below(name)
            remove_at(last, parent)
        else:
            os.unlink(last, dir_fd=parent)
        return False

    def _file(self, entry: Entry, parent: int, last: str, tar: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(last, flags, 0o600, dir_fd=parent)
        try:
            source = entry.offset
            for offset, length in [(0, entry.stored)] if entry.sparse is None else entry.sparse:
                if offset != os.lseek(file, 0, os.SEEK_CUR):
                    os.lseek(file, offset, os.SEEK_SET)
                end = source + length
                while source < end:
                    sent = os.sendfile(file, tar, source, end - source)
                    if not sent:
                        raise EngineFailure("Error processing tar file: unexpected EOF")
                    source += sent
            if entry.sparse is not None:
                os.ftruncate(file, entry.size)
            self._dress(file, entry)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _node(self, entry: Entry, parent: int, last: str) -> None:
        kind = _NODES[entry.type]
        os.mknod(last, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)
        node = os.open(last, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if stat.S_IFMT(os.fstat(node).st_mode) != kind:
                raise EngineFailure(f"{last} was replaced while it was made")
            held = f"/proc/self/fd/{node}"  # chown and chmod of the node that was looked at, whatever its name is now
            uid, gid = self._owner or (entry.uid, entry.gid)
            os.chown(held, uid, gid)
            os.chmod(held, entry.mode)
            os.utime(held, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(node)

    def _link(self, entry: Entry, parent: int, last: str) -> None:
        target = self._inside(entry.link)
        head, _, name = target.rpartition("/")
        own = os.dup(parent)
        try:
            os.link(name, last, src_dir_fd=self._open_parent(head), dst_dir_fd=own, follow_symlinks=False)
        finally:
            os.close(own)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Owner, then mode (chown takes set-id bits away), then extended attributes."""
        uid, gid = self._owner or (entry.uid, entry.gid)
        os.fchown(fd, uid, gid)
        os.fchmod(fd, entry.mode)
        for name, value in entry.xattrs.items():
            if name.startswith((b"trusted.overlay.", b"system.")):
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise

    def _set_directory_time(self, name: str, when: int) -> None:
        head, _, last = name.rpartition("/")
        try:
            parent = self._open_parent(head)
            os.utime(last, ns=(when, when), dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            pass  # a later entry replaced it

    def _open_parent(self, head: str) -> int:
        """The directory `head` below the target, made if missing; ours, until the next call."""
        if not head:
            return self._target
        if self._parent is not None and self._parent[0] == head:
            return self._parent[1]
        self._forget_parent()
        opened = self._resolve(head)
        self._parent = (head, opened)
        return opened

    def _resolve(self, head: str) -> int:
        try:
            return open_in_root(
                self._target, head, _DIRECTORY, resolve=RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
            )
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOENT):
                raise
        # A link on the way leads where the container sees it lead: from its root, not from the target.
        return make_directories(self._root, f"{self._path}/{head}")

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _forget_parent_below(self, name: str) -> None:
        if self._parent is not None and f"{self._parent[0]}/".startswith(f"{name}/"):
            self._forget_parent()
