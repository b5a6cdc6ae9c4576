"""A tree of inodes as an EROFS index whose file data points into the tar before it. Pure: tree -> bytes and where they go.

The file: 4 KiB head with the superblock | the tar, byte for byte | data of sparse files, expanded | inodes | directories.
512-byte blocks, so a tar member's data is block-aligned where it lies. Source: the kernel's fs/erofs/erofs_fs.h.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from operator import itemgetter

from ketchd.layers.tarheaders import bad, shown
from ketchd.layers.tree import S_IFBLK, S_IFCHR, S_IFLNK, S_IFREG, Node

BLOCK, HEAD, SLOT = 512, 4096, 32
_INODE = struct.Struct("<HHHHQIIIIqII16x")  # struct erofs_inode_extended
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_DIRENT = struct.Struct("<QHBB")
# No inode has the number 0: readdir(3) skips its names, which are the ".." of every directory in the root.
_FIRST_SLOT = _INODE.size // SLOT
_XATTR_HEADER, _PLAIN, _INLINE = 12, 0, 2
_NO_BLOCK = 0xFFFFFFFF
_FILE_TYPES = (0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7, 0, 6)  # by the format bits of the mode, shifted down
_XATTR_PREFIXES = (
    (b"user.", 1), (b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3), (b"trusted.", 4), (b"security.", 6),
)  # fmt: skip


@dataclass(slots=True)
class Index:
    """What to write around the tar. parts: (file offset, bytes). copies: (from offset in the tar, length, to file offset),
    the data of sparse files. size: of the whole file, a multiple of 4096. inodes: how many there are."""

    parts: list[tuple[int, bytes | bytearray]] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    size: int = 0
    inodes: int = 0


def _up(value: int, step: int) -> int:
    return (value + step - 1) // step * step


def _xattr_body(xattrs: dict[bytes, bytes]) -> bytes:
    """struct erofs_xattr_ibody_header and the entries; empty for none."""
    if not xattrs:
        return b""
    body = bytearray()
    for name in sorted(xattrs):
        for prefix, number in _XATTR_PREFIXES:
            if name.startswith(prefix):
                rest, value = name[len(prefix) :], xattrs[name]
                if len(value) > 65535:
                    raise bad(f"attribute {shown(name)} is larger than 65535 bytes")
                entry = struct.pack("<BBH", len(rest), number, len(value)) + rest + value
                body += entry + bytes(-len(entry) % 4)
                break
    return bytes(_XATTR_HEADER) + bytes(body) if body else b""


def _order(root: Node) -> list[Node]:
    """Every inode once, the root first."""
    order: list[Node] = []
    seen: set[int] = set()
    stack = [root]
    while stack:
        directory = stack.pop()
        order.append(directory)
        assert directory.children is not None
        for child in directory.children.values():
            if child.children is not None:
                stack.append(child)
            elif id(child) not in seen:
                seen.add(id(child))
                order.append(child)
    return order


def _directory_bytes(directory: Node) -> bytes:
    """The entries in name order, packed into blocks: struct erofs_dirent array, then the names."""
    assert directory.children is not None
    children = [(b".", directory), (b"..", directory.parent or directory), *directory.children.items()]
    children.sort(key=_name)
    out: list[bytes] = []
    begin, used = 0, 0
    for number, (name, _) in enumerate(children):
        needs = _DIRENT.size + len(name)
        if used + needs > BLOCK:
            out.append(_pack_block(children[begin:number]).ljust(BLOCK, b"\0"))
            begin, used = number, 0
        used += needs
    out.append(_pack_block(children[begin:]))
    return b"".join(out)


_name = itemgetter(0)


def _pack_block(children: list[tuple[bytes, Node]]) -> bytes:
    heads: list[bytes] = []
    at = _DIRENT.size * len(children)
    for name, node in children:
        heads.append(_DIRENT.pack(node.nid, at, _FILE_TYPES[node.mode >> 12], 0))
        at += len(name)
    heads += map(_name, children)
    return b"".join(heads)


def _device(node: Node) -> int:
    """new_encode_dev of the kernel."""
    return (node.minor & 0xFF) | (node.major << 8) | ((node.minor & ~0xFF) << 12)


def index(root: Node, tar_length: int) -> Index:
    """The index of `root` for a tar of `tar_length` bytes that begins at HEAD."""
    result = Index()
    order = _order(root)
    result.inodes = len(order)
    position = _place_sparse(order, result, _up(HEAD + tar_length, BLOCK))
    meta = _up(position, 4096)
    slots, bodies = _place_inodes(order)
    table = bytearray(slots * SLOT)
    first_block = _up(meta + len(table), BLOCK)
    blocks = bytearray()
    for number, node in enumerate(order, 1):
        kind = node.mode & 0o170000
        start, size = _NO_BLOCK, node.size
        at = node.nid * SLOT
        own = xattrs = inline = b""
        if at in bodies:
            xattrs, inline = bodies[at]
            table[at + 64 : at + 64 + len(xattrs) + len(inline)] = xattrs + inline
        if node.children is not None:
            own = _directory_bytes(node)
            size = len(own)
        elif kind == S_IFREG:
            if size:
                start = node.blocks or (HEAD + node.offset) // BLOCK
        elif kind == S_IFLNK:
            own = b"" if inline else node.target
        elif kind in (S_IFCHR, S_IFBLK):
            start = _device(node)
        if own:
            start = (first_block + len(blocks)) // BLOCK
            blocks += own
            blocks += bytes(-len(own) % BLOCK)
        seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
        _INODE.pack_into(
            table, at, 1 | (_INLINE if inline else _PLAIN) << 1,
            (len(xattrs) - _XATTR_HEADER) // 4 + 1 if xattrs else 0,
            node.mode, 0, size, start, number, node.uid, node.gid, seconds, nanoseconds, node.nlink,
        )  # fmt: skip
    result.size = _up(first_block + len(blocks), 4096)
    if result.size // BLOCK >= _NO_BLOCK:
        raise bad("it is larger than a layer can be")
    table += bytes(first_block - meta - len(table))
    blocks += bytes(result.size - first_block - len(blocks))
    seal = hashlib.sha256(table)
    seal.update(blocks)
    head = _head(len(order), result.size, meta, root.nid, seal.digest()[:16])
    result.parts = [(0, head), (meta, table), (first_block, blocks)]
    return result


def _place_inodes(order: list[Node]) -> tuple[int, dict[int, tuple[bytes, bytes]]]:
    """Number the inodes; (how many slots they take, by offset in the table: what lies behind an inode: attributes, a link)."""
    bodies: dict[int, tuple[bytes, bytes]] = {}
    slot = _FIRST_SLOT
    for node in order:
        is_link = node.mode & 0o170000 == S_IFLNK
        if not node.xattrs and not is_link:
            node.nid = slot
            slot += _INODE.size // SLOT
            continue
        xattrs = _xattr_body(node.xattrs)
        extent = _INODE.size + len(xattrs)
        inline = b""
        if is_link and extent + node.size <= BLOCK:  # a longer one gets blocks of its own
            inline = node.target
            extent += len(inline)
            if slot * SLOT % BLOCK + extent > BLOCK:
                slot = _up(slot * SLOT, BLOCK) // SLOT  # inline data must not cross a block
        node.nid = slot
        bodies[slot * SLOT] = (xattrs, inline)
        slot += _up(extent, SLOT) // SLOT
    return slot, bodies


def _place_sparse(order: list[Node], result: Index, position: int) -> int:
    """Give every sparse file room behind the tar and list its pieces; returns where the room ends."""
    for node in order:
        if node.sparse is None or not node.size:
            continue
        node.blocks = position // BLOCK
        source = node.offset
        for offset, length in node.sparse:
            if length:
                result.copies.append((source, length, position + offset))
            source += length
        position = _up(position + node.size, BLOCK)
        if position // BLOCK >= _NO_BLOCK:
            raise bad("sparse files are larger than a layer can be")
    return position


def _head(inodes: int, size: int, meta: int, root_nid: int, seal: bytes) -> bytes:
    """The first 4 KiB: struct erofs_super_block at 1024. Its UUID, which the kernel does not read, is the index's hash."""
    superblock = _SUPERBLOCK.pack(
        0xE0F5E1E2, 0, 0, 9, 0, root_nid, inodes, 0, 0, size // BLOCK, meta // BLOCK, 0, seal, bytes(16),
        0, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return bytes(1024) + superblock + bytes(HEAD - 1024 - len(superblock))


def read_head(head: bytes) -> tuple[int, bytes]:
    """(offset of the index, the hash's first 16 bytes) of what `_head` made."""
    fields = _SUPERBLOCK.unpack_from(head, 1024)
    return fields[10] * BLOCK, fields[12]


def read_root(head: bytes) -> int:
    """The number of the root's inode, in what `_head` made."""
    return int(_SUPERBLOCK.unpack_from(head, 1024)[5])
