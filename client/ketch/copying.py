"""The local side of `cp`: a path as a tar, and a tar into a directory that it cannot leave. Acting.

Source: docker/docker pkg/archive/copy.go, whose rules say what `SRC` onto `DEST` means.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from ketch.faults import CommandFailed, why
from ketch.tarwriting import EntryWriter, in_large_parts

if TYPE_CHECKING:
    import tarfile

CHUNK = 256 * 1024


class Place(NamedTuple):
    """One end of a copy. `rebase`: the name that entries get instead of the path's own, after a link was followed."""

    path: str
    exists: bool
    is_directory: bool
    rebase: str = ""


class Target(NamedTuple):
    """Where an archive goes: a directory, and the name of its top entry before and after; equal ones stay."""

    directory: str
    old: str
    new: str


def split_entry(path: str) -> tuple[str, str]:
    """(directory, base) of a path; the base of `dir/.` is `.`."""
    clean = os.path.normpath(path)
    if means_content(path) and clean != ".":
        clean += "/."
    return os.path.dirname(clean) or ("/" if clean.startswith("/") else "."), os.path.basename(clean) or "/"


def means_content(path: str) -> bool:
    """Whether a path ends in `/.`: what is in the directory, not the directory."""
    return path == "." or path.endswith("/.")


def means_directory(path: str) -> bool:
    """Whether a path can only be a directory."""
    return path.endswith("/") or means_content(path)


def place_archive(source: Place, target: Place) -> Target:
    """What copying `source` to `target` does. Raises CommandFailed when it cannot."""
    directory, base = split_entry(target.path)
    old = source.rebase or split_entry(source.path)[1]
    if target.exists and target.is_directory:
        return Target(target.path, old, old)
    if target.exists and source.is_directory:
        raise CommandFailed("cannot copy directory")
    if not target.exists and not source.is_directory and means_directory(target.path):
        raise CommandFailed("no such directory")
    return Target(directory, old, base)


def renamed(name: str, target: Target) -> str:
    """An entry's name with the top entry's name changed."""
    if target.old == target.new:
        return name
    if target.old == "/":
        return f"{target.new}/{name.lstrip('/')}"
    if name == target.old or name.startswith(target.old + "/"):
        return target.new + name[len(target.old) :]
    return name


def absolute(path: str) -> str:
    """A local path from the root, its trailing `/` or `/.` kept."""
    made = os.path.abspath(path)
    if means_content(path):
        return made + "/."
    return made + "/" if path.endswith("/") and made != "/" else made


def local_source(path: str, follow: bool) -> Place:
    """A local path to copy from. Raises CommandFailed when there is nothing."""
    clean = os.path.normpath(path)
    rebase = ""
    if follow or means_directory(path):
        real = os.path.realpath(clean)
        # The link's name, on what it points to.
        rebase = "" if means_content(path) else os.path.basename(clean)
        clean = real
    try:
        info = os.lstat(clean)
    except OSError as error:
        raise CommandFailed(f"lstat {clean}: {why(error)}") from error
    is_directory = stat.S_ISDIR(info.st_mode)
    if path.endswith("/") and not is_directory:
        raise CommandFailed("not a directory")
    if means_content(path):
        clean += "/."
    return Place(clean, True, is_directory, rebase)


def local_target(path: str) -> Place:
    """A local path to copy to; links are followed. Raises CommandFailed when its directory is missing."""
    real = os.path.realpath(path)
    suffix = "/" if means_directory(path) and real != "/" else ""
    if os.path.exists(real):
        mode = os.stat(real).st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise CommandFailed(f'destination "{path}" must be a directory or a regular file')
        return Place(real, True, stat.S_ISDIR(mode))
    parent = os.path.dirname(real)
    if not os.path.isdir(parent):
        raise CommandFailed(
            f'invalid output path: directory "{os.path.dirname(os.path.normpath(path))}" does not exist'
        )
    return Place(real + suffix, False, False)


def local_tar(source: Place, target: Target) -> Iterator[bytes]:
    """A file or a directory as a tar whose top entry has the name that the target wants."""
    return in_large_parts(_local_parts(source, target))


def _local_parts(source: Place, target: Target) -> Iterator[bytes]:
    writer = EntryWriter("", keeps_owner=True)
    path = os.fsencode(os.path.normpath(source.path))
    top = os.fsencode(renamed(target.old, target))
    yield from _tree(writer, path, top)


def _tree(writer: EntryWriter, top: bytes, called: bytes) -> Iterator[bytes]:
    """What lies at `top` as `called`, and everything in it, however deep."""
    waiting = [(top, called)]
    while waiting:
        path, name = waiting.pop()
        try:
            info = os.lstat(path)
            listed = sorted(os.listdir(path), reverse=True) if stat.S_ISDIR(info.st_mode) else []
        except OSError as error:
            raise writer.unreadable(path, error) from error
        yield from writer.entry(path, name, info)
        waiting += [(os.path.join(path, one), os.path.join(name, one)) for one in listed]


class _Parts:
    """An iterator of bytes as a file for tarfile."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._kept = b""

    def read(self, size: int) -> bytes:
        while len(self._kept) < size:
            part = next(self._parts, b"")
            if not part:
                break
            self._kept += part
        got, self._kept = self._kept[:size], self._kept[size:]
        return got


def extract(parts: Iterator[bytes], target: Target, *, keep_owner: bool) -> int:
    """Unpack a tar that comes from a container; the number of bytes of its files.

    Nothing is written outside of the target's directory: an entry whose name or whose way leaves it is refused.
    Raises CommandFailed.
    """
    import tarfile

    root = os.path.realpath(target.directory)
    times: list[tuple[str, float]] = []
    total = 0
    try:
        stream: BinaryIO = _Parts(parts)  # type: ignore[assignment]
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = renamed(member.name + ("/" if member.isdir() else ""), target).rstrip("/") or "."
                place = _inside(root, name)
                total += _write(tar, member, place, root, target)
                if member.issym():
                    if keep_owner:
                        os.lchown(place, member.uid, member.gid)
                    continue
                if member.islnk():
                    # The first name had it all.
                    continue
                if keep_owner:
                    os.chown(place, member.uid, member.gid)
                os.chmod(place, member.mode & 0o7777)
                if member.isdir():
                    times.append((place, member.mtime))
                else:
                    os.utime(place, (member.mtime, member.mtime))
    except tarfile.TarError as error:
        raise CommandFailed(f"the archive cannot be read: {error}") from error
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {why(error)}") from error
    # Last: what is written into a directory changes its time.
    for place, moment in reversed(times):
        with contextlib.suppress(OSError):
            os.utime(place, (moment, moment))
    return total


def _inside(root: str, name: str) -> str:
    """The place of an entry. Raises CommandFailed when it would be outside of `root`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CommandFailed(f"the archive has an entry outside of the destination: {name!r}")
    way = root
    for part in parts[:-1]:
        way = os.path.join(way, part)
        if os.path.islink(way):
            real = os.path.realpath(way)
            if real != root and not real.startswith(root.rstrip("/") + "/"):
                raise CommandFailed(f"the archive has an entry outside of the destination: {name!r}")
    return os.path.join(root, *parts)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, place: str, root: str, target: Target) -> int:
    if member.isdir():
        if os.path.lexists(place) and not os.path.isdir(place):
            raise CommandFailed(f'cannot overwrite non-directory "{place}" with directory')
        os.makedirs(place, exist_ok=True)
        return 0
    if os.path.isdir(place) and not os.path.islink(place):
        raise CommandFailed(f'cannot overwrite directory "{place}" with non-directory')
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if member.issym():
        _clear(place)
        os.symlink(member.linkname, place)
    elif member.islnk():
        first = _inside(root, renamed(member.linkname, target))
        if os.path.islink(first) or not os.path.isfile(first):
            raise CommandFailed(f"the archive has a hard link to what it does not have: {member.linkname!r}")
        _clear(place)
        os.link(first, place)
    elif member.isfifo():
        _clear(place)
        os.mkfifo(place)
    elif member.isdev():
        _clear(place)
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        os.mknod(place, kind | 0o600, os.makedev(member.devmajor, member.devminor))
    else:
        return _write_file(tar, member, place)
    return 0


def _clear(place: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> int:
    source = tar.extractfile(member)
    if source is None:
        return 0
    # A link of that name is replaced, not written through.
    _clear(place)
    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as file:
        while part := source.read(CHUNK):
            file.write(part)
    return member.size
