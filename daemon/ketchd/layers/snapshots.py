"""Layer worker job: the init layer of a chain, made through an overlay of it, so that overlayfs itself copies metadata up.

Docker makes these files and directories in every container's root, below its writable layer, so that `docker diff` does not
list them. In the same layer go the fix-ups of implied directories: a tar that omits `usr/` before `usr/bin/x` (Bazel, Jib and
ko make such) would hide the mode and owner that the layers below give it. Source: moby daemon/initlayer/setup_unix.go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ketch_wire.launch import LayerMount
from ketchd.layers.mounting import mount_chain, mount_layer
from ketchd.layers.worker import JobPort

_DIRECTORIES = ("dev/pts", "dev/shm", "proc", "sys")
_FILES = (".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console")
_LINKS = {"etc/mtab": "/proc/mounts"}
_OVERLAY, _OPAQUE = "trusted.overlay.", "trusted.overlay.opaque"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a directory is besides its entries."""

    mode: int
    uid: int
    gid: int
    times: tuple[int, int]
    xattrs: tuple[tuple[str, bytes], ...]

    @staticmethod
    def read(fd: int) -> Metadata:
        """Of an open directory; overlayfs' own attributes left out."""
        info = os.fstat(fd)
        names = sorted(name for name in os.listxattr(fd) if not name.startswith(_OVERLAY))
        return Metadata(
            stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, (info.st_atime_ns, info.st_mtime_ns),
            tuple((name, os.getxattr(fd, name)) for name in names),
        )  # fmt: skip

    def apply(self, fd: int) -> None:
        """To an open directory: owner, then mode (chown drops set-id bits), then the rest, times last."""
        os.fchown(fd, self.uid, self.gid)
        os.fchmod(fd, self.mode)
        for name, value in self.xattrs:
            os.setxattr(fd, name, value)
        os.utime(fd, ns=self.times)


def compose(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: staged (a free path), layers (top first), implied (of each layer, in the same order), chain (a text).

    Makes staged/root, the init layer, and staged/layers, the text.
    """
    staged = arguments["staged"]
    scratch = port.scratch(outlives=True)
    upper, work, merged = (
        os.path.join(staged, "root"),
        os.path.join(staged, "work"),
        os.path.join(scratch, "m"),
    )
    for directory in (staged, upper, work, merged):
        os.mkdir(directory, 0o755)
    os.chmod(staged, 0o710)
    lowers = [
        mount_layer(LayerMount(**layer), os.path.join(scratch, f"l{index}"))
        for index, layer in enumerate(arguments["layers"])
    ]
    found = metadata_below(lowers, [set(paths) for paths in arguments["implied"]])
    if not lowers:
        lowers = [os.path.join(scratch, "empty")]
        os.mkdir(lowers[0])
    mount_chain([LayerMount("directory", lower) for lower in lowers], merged, upper, work)
    with _opened(merged) as root:
        if b"" in found:
            found.pop(b"").apply(root)
        _fill(root)
        for path, metadata in sorted(found.items()):
            with _walk(root, path.split(b"/")) as directory:
                metadata.apply(directory)
    shutil.rmtree(work)  # the overlay goes with the job
    _strip(upper)
    with open(os.path.join(staged, "layers"), "x", encoding="ascii") as file:
        file.write(arguments["chain"])
    return {}


def metadata_below(lowers: Sequence[str], implied: Sequence[set[bytes]]) -> dict[bytes, Metadata]:
    """Of each implied directory that a lower layer describes: what it says there. Both arguments top first; b"" is the root,
    which is looked for always, since the init layer's own root covers it."""
    result: dict[bytes, Metadata] = {}
    for path in sorted({b""}.union(*implied)):
        parts = path.split(b"/") if path else []
        for number, lower in enumerate(lowers):
            metadata, goes_on = _look(lower, parts)
            if metadata is not None and path not in implied[number]:
                if number > 0 or not path:
                    result[path] = metadata
                break
            if not goes_on:
                break
    return result


def _look(lower: str, parts: list[bytes]) -> tuple[Metadata | None, bool]:
    """(what the layer's directory is, whether lower layers still count)."""
    goes_on = True
    with contextlib.ExitStack() as stack:
        current = stack.enter_context(_opened(lower))
        for part in parts:
            goes_on = goes_on and not _is_opaque(current)
            try:
                current = stack.enter_context(_opened(part, current))
            except FileNotFoundError:
                return None, goes_on
            except (NotADirectoryError, OSError):
                return None, False  # a file, a link or a whiteout: what is below is hidden
        return Metadata.read(current), goes_on


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False


@contextlib.contextmanager
def _opened(path: str | bytes, parent: int | None = None) -> Any:
    fd = os.open(path, _OPEN_DIRECTORY, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _walk(root: int, parts: Sequence[str | bytes], *, make: bool = False) -> Any:
    """The directory `parts` below `root`, no link followed. make: what is missing is made; what is no directory goes."""
    with contextlib.ExitStack() as stack:
        current = root
        for part in parts:
            if make:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=current)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            current = stack.enter_context(_opened(part, current))
        yield current


def _fill(root: int) -> None:
    """What Docker's init layer holds; directories that were there keep their times."""
    known: list[tuple[str, tuple[int, int]]] = []
    for parent in ("", "dev", "etc"):
        with contextlib.suppress(OSError), _walk(root, parent.split("/") if parent else ()) as directory:
            info = os.fstat(directory)
            known.append((parent, (info.st_atime_ns, info.st_mtime_ns)))
    for path in _DIRECTORIES:
        with _walk(root, path.split("/"), make=True):
            pass
    for path in (*_FILES, *_LINKS):
        *parents, name = path.split("/")
        with _walk(root, parents, make=True) as directory:
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                continue
            if path in _LINKS:
                os.symlink(_LINKS[path], name, dir_fd=directory)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o755, dir_fd=directory))
    for parent, times in reversed(known):
        with _walk(root, parent.split("/") if parent else ()) as directory:
            os.utime(directory, ns=times)


def _strip(upper: str) -> None:
    """Remove what overlayfs noted for itself in the upper directory, but for opaqueness, which counts in a lower one too."""
    for directory, names, files in os.walk(upper):
        for path in [directory, *(os.path.join(directory, name) for name in (*names, *files))]:
            for name in os.listxattr(path, follow_symlinks=False):
                if name.startswith(_OVERLAY) and name != _OPAQUE:
                    os.removexattr(path, name, follow_symlinks=False)
