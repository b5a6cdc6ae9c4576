"""A container in a user namespace: what needs the host's root is prepared outside of it and handed in as detached mounts.

Layers, the writable layer and what lies in the data root are shown through idmapped mounts (mount_setattr(2),
MOUNT_ATTR_IDMAP): on the disk ids are the same with and without a remap, so that diff, commit and the layers know nothing of
it. The overlay's own creator has the container's root as fsuid, or nothing could be made through an idmapped upper
directory. Source: user_namespaces(7); overlayfs.rst, "idmapped layers".
"""

from __future__ import annotations

import errno
import os

from ketchd.kernel import capabilities, detached
from ketchd.kernel.mounts import MS_NODEV, MS_NOSUID, mount
from ketchd.kernel.namespaces import CLONE_NEWNS, unshare
from ketchd.sandbox.entermounts import cut_propagation, open_sources
from ketchd.sandbox.failures import LaunchError, as_launch_error
from ketchd.sandbox.layermounts import mount_old_way
from ketchd.sandbox.report import Report, read_packet

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Mapping, Sequence

    from ketch_wire.launch import LaunchPlan, LayerMount
    from ketchd.sandbox.heldlayers import Layers

IDMAP = "idmap"  # among a bind's options: its source belongs to the engine, and is shown shifted
_ROOT = -1
# Where the child attaches its root: a directory that every host has and everybody may pass through.
_PLACES = ("/tmp", "/run", "/var", "/mnt")


class Prepared:
    """root: the overlay, detached. sources: of the binds, by index. The child's own from now on."""

    __slots__ = ("root", "sources")

    def __init__(self) -> None:
        self.root = -1
        self.sources: dict[int, int] = {}

    def fds(self) -> set[int]:
        """Every descriptor."""
        return {self.root, *self.sources.values()}


def prepare(plan: LaunchPlan, layers: Layers, user: int, channel: _socket.socket) -> None:
    """Make the mounts and send them to the child. Caller: a process of its own, root of the host, that ends afterwards.

    user: fd of the child's user namespace. Raises LaunchError; OSError when the child is gone.
    """
    report = Report(channel)
    try:
        layers.open(plan.root.layers)
        unshare(CLONE_NEWNS)
        sources = open_sources(plan.mounts)
        for index, fd in sources.items():
            if IDMAP in plan.mounts[index].options:
                detached.idmap(fd, user, plan.mounts[index].source)
        cut_propagation()
        owner = plan.uid_map[0][1], plan.gid_map[0][1]
        root = overlay(
            plan.root.layers,
            plan.run_dir,
            plan.root.upper,
            plan.root.work,
            mounted=layers.opened,
            user=user,
            owner=owner,
        )
    except OSError as error:
        report.failed(as_launch_error(error, "error preparing rootfs for the user namespace"))
        return
    except LaunchError as error:
        report.failed(error)
        return
    report.say({"mount": _ROOT}, root)
    for index, fd in sources.items():
        report.say({"mount": index}, fd)
    report.say({"mounts": len(sources) + 1})


def overlay(
    layers: Sequence[LayerMount],
    target: str,
    upper: str,
    work: str,
    *,
    mounted: Mapping[int, int],
    user: int,
    owner: tuple[int, int],
) -> int:
    """A detached overlay of idmapped layers (TOP FIRST). Mounts below `target`; leaves the caller with `owner` as fsuid. Raises OSError."""
    mount("layers", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    lowers = [
        _attach(_layer(layer, mounted.get(index, -1)), user, f"{target}/l{index}", layer.path)
        for index, layer in enumerate(layers)
    ]
    base = os.path.commonpath((upper, work))
    above = _attach(detached.clone_tree(base, recursive=False), user, f"{target}/w", base)
    upper, work = above + upper.removeprefix(base), above + work.removeprefix(base)
    options: list[tuple[str, str | None]] = [("source", "overlay")]
    options += [("lowerdir+", lower) for lower in lowers]
    options += [("upperdir", upper), ("workdir", work)]
    options += [("index", "off"), ("metacopy", "off"), ("redirect_dir", "off")]
    mine = capabilities.permitted()
    os.setegid(owner[1])
    os.seteuid(owner[0])
    capabilities.capset(mine, mine)  # the change of user took them out of force
    try:
        return detached.fsmount("overlay", options)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    # A kernel before 6.5 knows neither the option nor overlays without a place.
    mount_old_way(lowers, target, upper, work, readonly=False)
    return detached.clone_tree(target, recursive=False)


def _layer(layer: LayerMount, mounted: int) -> int:
    if mounted >= 0:
        return mounted
    return detached.clone_tree(layer.path, recursive=False)


def _attach(mounted: int, user: int, place: str, what: str) -> str:
    detached.idmap(mounted, user, what)
    os.mkdir(place)
    target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        detached.move_mount(mounted, target, place)
    finally:
        os.close(target)
        os.close(mounted)
    return place


def receive(report: Report) -> Prepared:
    """The child: what `prepare` sent. Raises LaunchError."""
    prepared = Prepared()
    while True:
        messages, fd = read_packet(report.channel)
        if not messages:
            os._exit(1)  # the shim is gone
        for message in messages:
            if "failed" in message:
                told = message["failed"]
                raise LaunchError(
                    told["message"], code=told["code"], status=told["status"], kind=told["kind"]
                )
            if "mounts" in message:
                return prepared
            if message["mount"] == _ROOT:
                prepared.root = fd
            else:
                prepared.sources[message["mount"]] = fd


def become_root() -> None:
    """Root of the user namespace that the caller is in. Raises OSError."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def attach_root(root: int) -> None:
    """Give the detached overlay a place in the caller's mount namespace. Raises OSError."""
    place = next(path for path in _PLACES if os.path.isdir(path))
    target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        detached.move_mount(root, target, place)
    finally:
        os.close(target)
