"""Mounting a chain of layers below an overlay, in the caller's own mount namespace.

Used by the child that becomes a container and by jobs of layer workers. Layers are mounted below a small tmpfs at the
target's place first, the overlay then covers it; when the namespace ends, everything goes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from ketchd.kernel import detached, loop
from ketchd.kernel.mounts import MS_NODEV, MS_NOSUID, MS_RDONLY, mount, mount_new

TYPE_CHECKING = False  # typing and dataclasses would cost each shim 2 MiB
if TYPE_CHECKING:
    from ketch_wire.launch import LayerMount

_MOUNT_ATTR_RDONLY = 1
_OPTIONS_LIMIT = 4000


def mount_detached(layer: LayerMount) -> int:
    """A layer that is a file as a detached mount: its fd. Raises OSError that names the file."""
    if layer.kind == "erofs":
        return _erofs(layer.path, layer.path)
    fd, device = loop.attach(layer.path)
    try:
        return _erofs(device, layer.path)
    finally:
        os.close(fd)


def _erofs(source: str, path: str) -> int:
    try:
        return detached.fsmount("erofs", [("source", source), ("ro", None)], detached.MOUNT_ATTR_RDONLY)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), f"mount erofs {path}") from error


def mount_layer(layer: LayerMount, target: str, mounted: int = -1) -> str:
    """Mount one layer read-only at `target`, or name the directory that it is. Returns the lower directory's path.

    mounted: the layer as a detached mount, if it is one already.
    """
    if layer.kind == "directory":
        return layer.path
    os.mkdir(target)
    own = mount_detached(layer) if mounted < 0 else mounted
    try:
        place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            detached.move_mount(own, place, target)
        finally:
            os.close(place)
    finally:
        if own != mounted:
            os.close(own)
    return target


def mount_chain(
    layers: Sequence[LayerMount],
    target: str,
    upper: str | None,
    work: str | None,
    readonly: bool = False,
    mounted: Mapping[int, int] | None = None,
) -> None:
    """An overlay of `layers` (TOP FIRST) at `target`, writable when `upper` and `work` are given. mounted: the layers that are detached mounts already, by their place.

    Raises OSError with what failed. What was mounted before the failure goes with the caller's namespace.
    """
    mount("layers", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=1m")
    lowers = [
        mount_layer(layer, os.path.join(target, f"l{index}"), (mounted or {}).get(index, -1))
        for index, layer in enumerate(layers)
    ]
    if upper is None and len(lowers) == 1:
        empty = os.path.join(target, "empty")
        os.mkdir(empty)
        lowers.append(empty)  # overlayfs wants two lower directories when there is no upper one
    options: list[tuple[str, str | None]] = [("source", "overlay")]
    options += [("lowerdir+", lower) for lower in lowers]
    if upper is not None and work is not None:
        options += [("upperdir", upper), ("workdir", work)]
    options += [("index", "off"), ("metacopy", "off"), ("redirect_dir", "off")]
    try:
        mount_new("overlay", target, options, _MOUNT_ATTR_RDONLY if readonly or upper is None else 0)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        mount_old_way(lowers, target, upper, work, readonly)


def mount_old_way(
    lowers: list[str], target: str, upper: str | None, work: str | None, readonly: bool
) -> None:
    """mount(2) for kernels before 6.5, whose `lowerdir` is one option of at most a page: short names relative to the target."""
    short = []
    for index, lower in enumerate(lowers):
        name = f"s{index}"
        link = os.path.join(target, name)
        if not lower.startswith(target + "/"):
            os.symlink(lower, link)
            short.append(name)
        else:
            short.append(os.path.basename(lower))
    text = "lowerdir=" + ":".join(short)
    if upper is not None and work is not None:
        text += f",upperdir={upper},workdir={work}"
    text += ",index=off,metacopy=off,redirect_dir=off"
    if len(text) > _OPTIONS_LIMIT:
        raise OSError(errno.E2BIG, "too many layers for this kernel's mount(2)", target)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(target)
        mount("overlay", target, "overlay", MS_RDONLY if readonly or upper is None else 0, text)
    finally:
        os.fchdir(here)
        os.close(here)
