"""A tar's entries as the tree of inodes that extracting them would leave, whiteouts in overlayfs' own form. Pure.

Source: image-spec layer.md (whiteouts); kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from ketchd.layers.tarheaders import (
    BLOCKDEV,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARDLINK,
    SYMLINK,
    Entry,
    bad,
    shown,
)

S_IFDIR, S_IFREG, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO = (
    0o040000,
    0o100000,
    0o120000,
    0o020000,
    0o060000,
    0o010000,
)
OPAQUE_NAME, WHITEOUT_PREFIX = b".wh..wh..opq", b".wh."
OPAQUE_XATTR = b"trusted.overlay.opaque"
_NAMESPACES = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_LINK_LIMIT = 40
_NAME_LIMIT = 255
_NO_NAMES = (b"", b".", b"..")
PATH_LIMIT = 4095  # what a system call takes
_IMPLIED_LIMIT = 16 << 20  # bytes of paths: a hostile tar could imply far more than it is long
_VOLUME_LABEL = b"V"  # GNU tar's name of the whole archive
_KINDS = {CHARACTER: S_IFCHR, BLOCKDEV: S_IFBLK, FIFO: S_IFIFO}


_NO_XATTRS: dict[bytes, bytes] = {}  # never changed: whoever has some gets a new one


class Node:
    """One inode. children: of a directory, by name. offset, sparse: where a regular file's data lies in the tar, see Entry.
    implied: no header made it."""

    __slots__ = (
        "blocks", "children", "gid", "implied", "major", "minor", "mode", "mtime_ns", "nid", "nlink", "offset",
        "parent", "size", "sparse", "target", "uid", "whiteouts", "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, *, parent: Node | None = None) -> None:
        self.mode = mode
        self.uid = self.gid = self.mtime_ns = self.size = self.major = self.minor = 0
        self.children: dict[bytes, Node] | None = {} if mode & 0o170000 == S_IFDIR else None
        self.parent = parent
        self.offset = 0
        self.sparse: list[tuple[int, int]] | None = None
        self.target = b""
        self.xattrs: dict[bytes, bytes] = _NO_XATTRS
        self.whiteouts: set[bytes] | None = None
        self.implied = False
        self.nlink = 1
        self.nid = 0
        self.blocks = 0


class Tree:
    """The result: `root`, and `implied`, the paths of directories that no header describes (their lower's metadata counts);
    b"" is the root."""

    def __init__(self) -> None:
        self.root = Node(S_IFDIR | 0o755)
        self.root.parent = self.root
        self.root.implied = True
        self.implied: list[bytes] = []
        self.entries = 0


def _parts(name: bytes) -> list[bytes]:
    """The path's parts below the root; `..` never leaves it. Raises InvalidInput."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":  # by the words alone, as Go's filepath.Clean has it, whatever links lie on the way
            if not parts:
                raise bad(f"{shown(name)} leaves the root")
            parts.pop()
            continue
        if len(part) > _NAME_LIMIT:
            raise bad(f"{shown(name)} has a part longer than 255 bytes")
        if b"\0" in part:
            raise bad("a name contains a NUL byte")
        parts.append(part)
    return parts


def _directory(root: Node, parts: list[bytes], *, make: bool) -> Node | None:
    """The directory `parts` name, links of this layer followed inside the root. None (when not `make`): it is not there."""
    current, links = root, 0
    todo = list(reversed(parts))
    while todo:
        part = todo.pop()
        if part == b"..":
            current = current.parent or root
            continue
        assert current.children is not None
        child = current.children.get(part)
        if child is None:
            if not make:
                return None
            child = current.children[part] = Node(S_IFDIR | 0o755, parent=current)
            child.implied = True
        if child.children is None:
            if child.mode & 0o170000 != S_IFLNK:
                if not make:
                    return None
                raise bad(f"{shown(part)} is no directory, yet something lies below it")
            links += 1
            if links > _LINK_LIMIT:
                raise bad(f"too many links in {shown(b'/'.join(parts))}")
            if child.target.startswith(b"/"):
                current = root
            todo += [step for step in reversed(child.target.split(b"/")) if step not in (b"", b".")]
            continue
        current = child
    return current


def _fill(node: Node, entry: Entry) -> None:
    """What the header says. A directory that is there already keeps its attributes beside the new ones, as tar(1) has it."""
    node.mode = (node.mode & 0o170000) | entry.mode
    node.uid, node.gid, node.mtime_ns = entry.uid, entry.gid, entry.mtime_ns
    if entry.xattrs:
        node.xattrs = node.xattrs | {key: value for key, value in entry.xattrs.items() if _is_kept(key)}
    node.implied = False


def _is_kept(key: bytes) -> bool:
    """Whether an attribute means something in a layer: overlayfs' own do not, nor does what no filesystem has."""
    if key.startswith(_NAMESPACES) and not key.startswith(b"trusted.overlay.") and b"\0" not in key:
        return key not in _NAMESPACES and len(key) < 256
    return key in _ACLS


def build(entries: Iterable[Entry]) -> Tree:
    """The tree of `entries`. Raises InvalidInput for what no extraction could make."""
    builder = _Builder()
    for entry in entries:
        builder.add(entry)
    return builder.finish()


class _Builder:
    """Takes one entry after another. Parents are remembered by the path that named them, links followed, until something
    that was there is replaced: only that can change where a path leads."""

    def __init__(self) -> None:
        self._tree = Tree()
        self._opaque: list[Node] = []
        self._parents: dict[bytes, Node] = {}

    def finish(self) -> Tree:
        """The tree, when all entries were added."""
        for node in self._opaque:
            node.xattrs = {**node.xattrs, OPAQUE_XATTR: b"y"}
        _finish(self._tree)
        return self._tree

    def add(self, entry: Entry) -> None:
        """One more entry."""
        tree = self._tree
        tree.entries += 1
        path, _, name = entry.name.rstrip(b"/").rpartition(b"/")
        parent = self._parents.get(path)
        if parent is None or name in _NO_NAMES or len(name) > _NAME_LIMIT or b"\0" in name:
            parts = _parts(entry.name)
            if not parts:
                if entry.type == DIRECTORY:
                    _fill(tree.root, entry)
                return
            name = parts.pop()
            parent = _directory(tree.root, parts, make=True)
            assert parent is not None
            if name == entry.name.rstrip(b"/").rpartition(b"/")[2]:
                self._parents[path] = parent
        siblings = parent.children
        assert siblings is not None
        if name.startswith(WHITEOUT_PREFIX):
            self._whiteout(parent, name)
            return
        there = siblings.get(name)
        if entry.type == DIRECTORY:
            if there is None or there.children is None:
                node = self._put(parent, name, Node(S_IFDIR, parent=parent), there)
            else:
                node = there
            _fill(node, entry)
        elif entry.type == HARDLINK:
            self._put(parent, name, _link(tree.root, entry), there)
        elif entry.type != _VOLUME_LABEL:
            self._put(parent, name, _leaf(entry), there)

    def _put(self, parent: Node, name: bytes, node: Node, there: Node | None) -> Node:
        assert parent.children is not None
        parent.children[name] = node
        if there is not None:
            self._parents.clear()
        return node

    def _whiteout(self, parent: Node, name: bytes) -> None:
        if name == OPAQUE_NAME:
            self._opaque.append(parent)
        elif name == WHITEOUT_PREFIX:
            raise bad("a whiteout without a name")
        elif not name.startswith(b".wh..wh."):  # aufs' own metadata means nothing here
            parent.whiteouts = parent.whiteouts or set()
            parent.whiteouts.add(name[len(WHITEOUT_PREFIX) :])


def _leaf(entry: Entry) -> Node:
    """What is no directory."""
    if entry.type == SYMLINK:
        if not entry.link or len(entry.link) > PATH_LIMIT or b"\0" in entry.link:
            raise bad(f"link {shown(entry.name)} has no usable target")
        node = Node(S_IFLNK)
        _fill(node, entry)
        node.mode = S_IFLNK | 0o777
        node.target, node.size = entry.link, len(entry.link)
    elif entry.type in _KINDS:
        node = Node(_KINDS[entry.type])
        _fill(node, entry)
        if not 0 <= entry.major < 4096 or not 0 <= entry.minor < 1 << 20:
            raise bad(f"device {shown(entry.name)} has numbers out of range")
        node.major, node.minor = entry.major, entry.minor
    else:  # POSIX: an unknown type is a regular file
        node = Node(S_IFREG)
        _fill(node, entry)
        node.offset, node.size, node.sparse = entry.offset, entry.size, entry.sparse
    return node


def _link(root: Node, entry: Entry) -> Node:
    """The inode that a hard link names."""
    target = _parts(entry.link)
    directory = _directory(root, target[:-1], make=False) if target else None
    node = None
    if directory is not None and directory.children is not None:
        node = directory.children.get(target[-1])
    if node is None or node.children is not None:
        raise bad(f"hard link {shown(entry.name)} to {shown(entry.link)}, which is not in the layer")
    return node


def _finish(tree: Tree) -> None:
    """Whiteouts, link counts and the list of implied directories."""
    seen: set[int] = set()
    implied = 0
    stack: list[tuple[Node, bytes]] = [(tree.root, b"")]
    while stack:
        node, path = stack.pop()
        assert node.children is not None
        if len(path) > PATH_LIMIT:
            raise bad(f"{shown(path)}… is longer than {PATH_LIMIT} bytes")
        if node.implied:
            tree.implied.append(path)
            implied += len(path)
            if implied > _IMPLIED_LIMIT:
                raise bad("too many directories are missing in it")
        for hidden in node.whiteouts or ():
            there = node.children.get(hidden)
            if there is None:
                node.children[hidden] = Node(S_IFCHR)
            elif there.children is not None:
                there.xattrs = {**there.xattrs, OPAQUE_XATTR: b"y"}
        node.nlink = 2
        for name, child in node.children.items():
            if child.children is not None:
                child.parent = node
                node.nlink += 1
                stack.append((child, path + b"/" + name if path else name))
            elif id(child) in seen:
                child.nlink += 1
            else:
                seen.add(id(child))
                child.nlink = 1
    tree.implied.sort()
