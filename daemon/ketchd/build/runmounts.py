"""RUN --mount: caches that stay, binds that are private copies, tmpfs; secrets and ssh, which only a session could bring.

A bind is a copy in the stage, since no layer is ever mounted in the host's mount namespace; what is written to it is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from ketch_wire.faults import InvalidInput, Unsupported
from ketch_wire.launch import MountPlan
from ketchd.build import keys
from ketchd.build.cache import BuildCache
from ketchd.build.lexer import Place
from ketchd.build.ops import MountOp
from ketchd.layers.descent import open_directory
from ketchd.layers.endings import in_thread
from ketchd.layers.placing import remove_some, stats_below

_ORIGIN = "trusted.overlay.origin"
Extract = Callable[[MountOp, str], Awaitable[None]]


class RunMounts:
    """Makes the mounts of one step and takes them down again. extract(mount, directory) copies a bind's source."""

    def __init__(self, cache: BuildCache, stage: Path, extract: Extract) -> None:
        self._cache = cache
        self._stage = stage
        self._extract = extract

    @asynccontextmanager
    async def made(
        self, mounts: Sequence[MountOp], script: str, argv0: str, place: Place
    ) -> AsyncIterator[list[MountPlan]]:
        """The plans of `mounts` for the body's time. script: a heredoc that is to be the file `argv0`.

        Raises InvalidInput, Unsupported with the place. Failed or cancelled: nothing stays but the caches.
        """
        plans: list[MountPlan] = []
        async with AsyncExitStack() as undo:
            locked = {_cache_key(one) for one in mounts if one.type == "cache" and one.sharing == "locked"}
            for key in sorted(locked):  # in one order, or two steps could wait for each other
                await undo.enter_async_context(self._cache.mount_lock(key))
            if script:
                file = self._stage / uuid.uuid4().hex
                undo.callback(file.unlink, True)
                file.write_bytes(script.encode("utf-8", "surrogateescape"))
                file.chmod(0o755)
                plans.append(MountPlan(argv0, "bind", str(file), ("bind", "ro", "rprivate")))
            for mount in mounts:
                plan = await self._one(mount, place, undo)
                if plan is not None:
                    plans.append(plan)
            yield plans

    async def _one(self, mount: MountOp, place: Place, undo: AsyncExitStack) -> MountPlan | None:
        if mount.type == "tmpfs":
            size = (f"size={mount.size}",) if mount.size else ()
            return MountPlan(mount.target, "tmpfs", "tmpfs", ("nosuid", "nodev", *size))
        if mount.type == "cache":
            return await self._cached(mount, place, undo)
        if mount.type == "bind":
            return await self._bound(mount, undo)
        if mount.required:
            what = (
                f"secret {mount.id}: not found"
                if mount.type == "secret"
                else f'no SSH key "{mount.id}" forwarded from the client'
            )
            raise InvalidInput(place.locate(what))
        return None

    async def _cached(self, mount: MountOp, place: Place, undo: AsyncExitStack) -> MountPlan:
        if mount.from_node is not None or mount.from_image:
            raise Unsupported(place.locate("a cache mount with initial content (from) is not supported"))
        key = _cache_key(mount)
        if mount.sharing == "private":
            number = 0
            while self._cache.is_mount_used(key):
                number += 1
                key = _cache_key(mount, number)
        path, _ = self._cache.open_mount(
            key, f"cached mount {mount.target}", mount.mode, mount.uid, mount.gid
        )
        undo.push_async_callback(self._close, key, path)
        options = ("bind", "rprivate") if mount.writable else ("bind", "ro", "rprivate")
        return MountPlan(mount.target, "bind", str(path), options)

    async def _close(self, key: str, path: Path) -> None:
        size = None
        try:
            size = await in_thread(disk_usage, path)
        finally:
            self._cache.close_mount(key, size)

    async def _bound(self, mount: MountOp, undo: AsyncExitStack) -> MountPlan:
        directory = self._stage / uuid.uuid4().hex
        undo.push_async_callback(remove_tree, directory)
        await self._extract(mount, str(directory))
        source = directory / "root"
        name = posixpath.basename(mount.source)
        if name and (source / "file" / name).exists():
            source = source / "file" / name
        else:
            source = source / "directory"
        options = ("bind", "rprivate") if mount.writable else ("bind", "ro", "rprivate")
        return MountPlan(mount.target, "bind", str(source), options)


def _cache_key(mount: MountOp, number: int = 0) -> str:
    return keys.digest(["cachemount", mount.id, number])


async def remove_tree(path: Path) -> None:
    """Remove a staged directory, in a thread. Gone already is fine."""
    with contextlib.suppress(OSError):
        await in_thread(remove_some, str(path))


def disk_usage(path: Path) -> int:
    """Bytes on disk of everything below."""
    return sum(info.st_blocks * 512 for info in stats_below(path))


def strip_mount_points(upper: str, targets: Sequence[str]) -> None:
    """Remove from a writable layer what was only made to mount on: empty directories and files that no lower layer has.

    The step may have put links in the way meanwhile: none is followed, so nothing outside of `upper` is ever removed.
    """
    for target in sorted(targets, key=len, reverse=True):
        path, leaf = target.strip("/"), True
        while path:
            above, name = posixpath.split(path)
            try:
                _remove_made(upper, above, name, leaf=leaf)
            except OSError:
                break
            path, leaf = above, False


def _remove_made(upper: str, above: str, name: str, *, leaf: bool) -> None:
    """Remove `name` in the directory `above` of `upper` if it was made to mount on. Raises OSError if it was not, or is not there."""
    descent = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in filter(None, above.split("/")):
            inner = open_directory(part, descent)
            os.close(descent)
            descent = inner
        info = os.stat(name, dir_fd=descent, follow_symlinks=False)
        if stat.S_ISREG(info.st_mode) and leaf and info.st_size == 0:
            os.unlink(name, dir_fd=descent)
        elif stat.S_ISDIR(info.st_mode) and not _is_copied_up(name, descent):
            os.rmdir(name, dir_fd=descent)  # unless something is in it
        else:
            raise FileExistsError(name)
    finally:
        os.close(descent)


def _is_copied_up(name: str, parent: int) -> bool:
    """overlayfs marks what it copied up; what has no mark was new in this step. Raises OSError."""
    directory = open_directory(name, parent)
    try:
        os.getxattr(directory, _ORIGIN)
    except OSError:
        return False
    finally:
        os.close(directory)
    return True
