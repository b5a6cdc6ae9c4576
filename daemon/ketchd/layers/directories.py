"""Directory layers, for hosts whose kernel mounts no EROFS: `layers/sha256/HEX/{root,record}`.

`root` is the lower directory. It is made of the same tree that the EROFS index is made of, so both kinds mean the same, and
nothing of the tar is ever resolved by the kernel: every name is created inside a directory that this code made.

The diff ID is the hash of the tar, so the tar must come back byte for byte (push, save). `record` is a split of it, as dockerd's
tar-split: headers, padding and data that a later entry replaced, as they were; the rest is read from `root`. Keeping the
compressed blob instead would store every file twice and tie the layer to a blob that disk pressure may take away.
"""

from __future__ import annotations

import errno
import gzip
import io
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

from ketch_wire.faults import EngineFailure
from ketchd.kernel.files import syncfs
from ketchd.kernel.openat import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_in_root
from ketchd.layers.erofs import HEAD
from ketchd.layers.layerfile import PIECE, Hasher, copy_range, write_all
from ketchd.layers.tarheaders import entries
from ketchd.layers.tree import S_IFLNK, S_IFREG, Node, Tree, build
from ketchd.layers.worker import JobPort

_THREADS = 3
_BATCH = 64
_PIECE_HEAD = struct.Struct("<BQQI")  # kind, length, offset in the file, length of the path that follows
_RAW, _FILE = 0, 1
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMAT = 0o170000
_RESOLVE = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


def unpack(spool: int, tar_size: int, tree: Tree, path: str) -> int:
    """Turn the spooled tar at `path` (open as `spool`, behind HEAD) into the directory layer `path`; its bytes on disk.

    Synced; the spool is empty afterwards. Raises OSError; then part of the directory may be there, for the caller to remove.
    """
    os.unlink(path)
    os.mkdir(path, 0o710)
    os.mkdir(os.path.join(path, "root"), 0o755)
    root = os.open(os.path.join(path, "root"), _OPEN_DIRECTORY)
    try:
        pieces = _Unpacking(spool, root).run(tree)
        _write_record(os.path.join(path, "record"), spool, tar_size, pieces)
        os.ftruncate(spool, 0)  # it is open still, and syncfs would write it to the disk
        syncfs(root, path)
    finally:
        os.close(root)
    return _disk_size(path)


class _Unpacking:
    """One tree on its way to the disk: directories here, leaves on threads, then links, then the directories' own metadata.

    The spool is never mapped: all of it would be counted as this process's memory.
    """

    def __init__(self, spool: int, root: int) -> None:
        self._spool = spool
        self._root = root

    def run(self, tree: Tree) -> list[tuple[int, int, int, bytes]]:
        """Where the data of the tar went: (offset in the tar, length, offset in the file, path), in the tar's order."""
        pieces: list[tuple[int, int, int, bytes]] = []
        directories: list[tuple[bytes, Node]] = []
        links: list[tuple[bytes, bytes]] = []
        first: dict[int, bytes] = {}
        batches: list[Future[None]] = []
        with ThreadPoolExecutor(_THREADS) as threads:
            stack: list[tuple[bytes, Node]] = [(b"", tree.root)]
            try:
                while stack:
                    prefix, directory = stack.pop()
                    directories.append((prefix, directory))
                    leaves: list[tuple[bytes, Node]] = []
                    assert directory.children is not None
                    for name, node in directory.children.items():
                        path = prefix + name
                        if node.children is not None:
                            os.mkdir(path, 0o700, dir_fd=self._root)
                            stack.append((path + b"/", node))
                        elif node.nlink > 1 and (earlier := first.setdefault(id(node), path)) != path:
                            links.append((earlier, path))
                        else:
                            leaves.append((name, node))
                            _add_pieces(pieces, node, path)
                    for at in range(0, len(leaves), _BATCH):
                        batches.append(threads.submit(self._leaves, prefix, leaves[at : at + _BATCH]))
                for batch in batches:
                    batch.result()
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        for earlier, path in links:
            os.link(earlier, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        for prefix, directory in reversed(directories):
            opened = os.open(prefix or b".", _OPEN_DIRECTORY, dir_fd=self._root)
            try:
                _set_metadata(opened, directory)
            finally:
                os.close(opened)
        pieces.sort()
        return pieces

    def _leaves(self, prefix: bytes, leaves: list[tuple[bytes, Node]]) -> None:
        directory = os.open(prefix or b".", _OPEN_DIRECTORY, dir_fd=self._root)
        try:
            for name, node in leaves:
                if node.mode & _FORMAT == S_IFREG:
                    self._file(directory, name, node)
                else:
                    _special(directory, name, node)
        finally:
            os.close(directory)

    def _file(self, directory: int, name: bytes, node: Node) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            if node.sparse is not None:
                os.ftruncate(opened, node.size)
                at = node.offset
                for offset, length in node.sparse:
                    copy_range(self._spool, opened, HEAD + at, offset, length)
                    at += length
            elif node.size:
                copy_range(self._spool, opened, HEAD + node.offset, 0, node.size)
            _set_metadata(opened, node)
        finally:
            os.close(opened)


def _special(directory: int, name: bytes, node: Node) -> None:
    """A link, a device (or whiteout) or a fifo."""
    if node.mode & _FORMAT == S_IFLNK:
        os.symlink(node.target, name, dir_fd=directory)
    else:
        os.mknod(name, node.mode, os.makedev(node.major, node.minor), dir_fd=directory)
    os.chown(name, node.uid, node.gid, dir_fd=directory, follow_symlinks=False)
    if node.mode & _FORMAT != S_IFLNK:
        os.chmod(name, node.mode & 0o7777, dir_fd=directory)
    if node.xattrs:
        _set_xattrs(b"/proc/self/fd/%d/" % directory + name, node.xattrs)
    os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=directory, follow_symlinks=False)


def _set_metadata(opened: int, node: Node) -> None:
    """Owner, then mode (chown drops set-id bits), attributes (chown drops capabilities), times last."""
    if node.uid or node.gid:
        os.fchown(opened, node.uid, node.gid)
    os.fchmod(opened, node.mode & 0o7777)
    if node.xattrs:
        _set_xattrs(opened, node.xattrs)
    os.utime(opened, ns=(node.mtime_ns, node.mtime_ns))


def _set_xattrs(target: int | bytes, xattrs: dict[bytes, bytes]) -> None:
    for key, value in xattrs.items():
        try:
            os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
        except OSError as error:
            # A namespace that this filesystem has not; EROFS drops the same. A lost capability would be another matter.
            if error.errno != errno.EOPNOTSUPP or key.startswith((b"security.", b"trusted.")):
                raise


def _add_pieces(pieces: list[tuple[int, int, int, bytes]], node: Node, path: bytes) -> None:
    if node.mode & _FORMAT != S_IFREG:
        return
    if node.sparse is None:
        if node.size:
            pieces.append((node.offset, node.size, 0, path))
        return
    at = node.offset
    for offset, length in node.sparse:
        if length:
            pieces.append((at, length, offset, path))
        at += length


def _open_record(path: str, mode: str) -> IO[bytes]:
    """Buffered: it is read and written in pieces of some bytes, each of which would be a call into the library."""
    from isal import igzip

    opened = cast(Any, igzip).open(path, mode, compresslevel=1)
    return io.BufferedWriter(opened, PIECE) if mode == "wb" else io.BufferedReader(opened, PIECE)


def _write_record(path: str, spool: int, tar_size: int, pieces: list[tuple[int, int, int, bytes]]) -> None:
    with _open_record(path, "wb") as record:
        position = 0
        for offset, length, in_file, name in [*pieces, (tar_size, 0, 0, b"")]:
            if offset > position:
                record.write(_PIECE_HEAD.pack(_RAW, offset - position, 0, 0))
            while position < offset:
                raw = os.pread(spool, min(PIECE, offset - position), HEAD + position)
                if not raw:
                    raise EngineFailure("a layer's tar ended too early")
                record.write(raw)
                position += len(raw)
            if length:
                record.write(_PIECE_HEAD.pack(_FILE, length, in_file, len(name)) + name)
            position = offset + length


def _tar_pieces(layer: str) -> Iterator[bytes]:
    """The layer's tar again. Raises OSError, EngineFailure when something is missing or damaged."""
    root = os.open(os.path.join(layer, "root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _open_record(os.path.join(layer, "record"), "rb") as record:
            while head := record.read(_PIECE_HEAD.size):
                kind, length, offset, name_length = _PIECE_HEAD.unpack(head)
                if kind == _RAW:
                    yield from _exactly(record.read, length)
                    continue
                name = os.fsdecode(record.read(name_length))
                with open(open_in_root(root, name, os.O_RDONLY, resolve=_RESOLVE), "rb", buffering=0) as file:
                    file.seek(offset)
                    yield from _exactly(file.read, length)
    except (struct.error, EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise EngineFailure(f"layer {os.path.basename(layer)[:12]} is damaged on disk: {error}") from error
    finally:
        os.close(root)


def _exactly(read: Callable[[int], bytes], length: int) -> Iterator[bytes]:
    while length:
        piece = read(min(PIECE, length))
        if not piece:
            raise ValueError("a file became shorter")
        yield piece
        length -= len(piece)


def remake(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: layer (its directory), into (a free path), diff_id. Writes the tar; raises EngineFailure when it is another."""
    into = os.open(arguments["into"], os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if _remake(arguments["layer"], into) != arguments["diff_id"]:
            raise EngineFailure(f"layer {arguments['diff_id']} is damaged on disk")
    finally:
        os.close(into)
    return {}


def _remake(layer: str, into: int) -> str:
    hasher = Hasher()
    try:
        position = 0
        for piece in _tar_pieces(layer):
            hasher.feed(piece)
            write_all(into, piece, position)
            position += len(piece)
        return hasher.digest()
    finally:
        hasher.close()


def is_sound(layer: str, diff_id: str) -> bool:
    """Whether the tar comes back with its hash, and every inode is what the tar says."""
    with open(os.open(Path(layer).parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "rb") as spool:
        try:
            if _remake(layer, spool.fileno()) != diff_id:
                return False
        except EngineFailure:
            return False
        size = os.fstat(spool.fileno()).st_size
        if not size:
            return not os.listdir(os.path.join(layer, "root"))
        with mmap.mmap(spool.fileno(), 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as tar:
            tree = build(entries(tar, size))
    return _matches(os.path.join(os.fsencode(layer), b"root"), tree.root)


def _matches(path: bytes, node: Node) -> bool:
    stack = [(path, node)]
    while stack:
        path, node = stack.pop()
        info = os.lstat(path)
        wanted = (node.mode, node.uid, node.gid, node.mtime_ns)
        if (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns) != wanted:
            return False
        if node.children is not None:
            if sorted(os.listdir(path)) != sorted(node.children):
                return False
            stack += [(os.path.join(path, name), child) for name, child in node.children.items()]
        elif node.mode & _FORMAT == S_IFLNK:
            if os.readlink(path) != node.target:
                return False
        elif node.mode & _FORMAT == S_IFREG:
            if info.st_size != node.size or info.st_nlink != node.nlink:
                return False
        elif info.st_rdev != os.makedev(node.major, node.minor):
            return False
    return True


def _disk_size(path: str) -> int:
    """Bytes of the blocks of everything below `path`; hard links once."""
    total = os.lstat(path).st_blocks
    seen: set[int] = set()
    stack = [path]
    while stack:
        with os.scandir(stack.pop()) as found:
            for entry in found:
                info = entry.stat(follow_symlinks=False)
                if info.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if info.st_ino in seen:
                        continue
                    seen.add(info.st_ino)
                total += info.st_blocks
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return total * 512
