"""A container's root: layers, mounts, devices, hidden and read-only paths, then pivot_root(2).

Everything after the overlay works on descriptors below its root. Source: runtime.md of the OCI runtime-spec; runc's
rootfs_linux.go for the order.
"""

from __future__ import annotations

import os

from ketchd.kernel import detached, mounts
from ketchd.kernel.openat import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV, open_in_root
from ketchd.sandbox import remapped
from ketchd.sandbox.enterdevices import make_devices
from ketchd.sandbox.entermounts import check_hidden, cut_propagation, mount_one, open_sources
from ketchd.sandbox.enterprocess import check_working_directory
from ketchd.sandbox.failures import LaunchError, as_launch_error, reason
from ketchd.sandbox.layermounts import mount_chain
from ketchd.sandbox.targets import is_device, is_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ketch_wire.launch import LaunchPlan

_MASK_ATTRIBUTES = detached.MOUNT_ATTR_RDONLY | detached.MOUNT_ATTR_NOSUID | detached.MOUNT_ATTR_NOEXEC


class Root:
    """The root while it is made. fd: of the overlay. proc: of our own procfs, or -1. devpts: likewise."""

    __slots__ = ("devpts", "fd", "proc")

    def __init__(self) -> None:
        self.fd = self.proc = self.devpts = -1


def build(plan: LaunchPlan, layers: dict[int, int], prepared: remapped.Prepared | None = None) -> Root:
    """Mount everything of `plan` but what must come last. layers: see `heldlayers.open_layers`. The caller is in its own mount namespace.

    prepared: what was mounted from outside for a user namespace. Raises LaunchError.
    """
    made = Root()
    sources = open_sources(plan.mounts) if prepared is None else prepared.sources
    try:
        cut_propagation()
        if prepared is not None:
            remapped.attach_root(prepared.root)
            made.fd = prepared.root
            return _fill(made, plan, sources)
        # Over the run directory: it exists, it is ours, and in this namespace nobody looks for the socket in it.
        mount_chain(plan.root.layers, plan.run_dir, plan.root.upper, plan.root.work, mounted=layers)
        made.fd = os.open(plan.run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise as_launch_error(error, "error preparing rootfs") from error
    return _fill(made, plan, sources)


def _fill(made: Root, plan: LaunchPlan, sources: dict[int, int]) -> Root:
    check_hidden(plan.mounts, (*plan.masked_paths, *plan.readonly_paths))
    check_working_directory(made.fd, plan.process.cwd)
    own_dev = not any(one.type == "bind" and one.target.rstrip("/") == "/dev" for one in plan.mounts)
    devices_made = not own_dev
    for index, one in enumerate(plan.mounts):
        mounted = mount_one(made.fd, one, sources.pop(index, -1))
        if one.type == "proc" and one.target == "/proc":
            made.proc = mounted
        elif one.type == "devpts" and one.target == "/dev/pts":
            made.devpts = mounted
        else:
            os.close(mounted)
        if not devices_made and one.target == "/dev":
            # at once: a later mount may be on a file below /dev
            _devices(made.fd, plan)
            devices_made = True
    if not devices_made:
        _devices(made.fd, plan)
    return made


def _devices(root: int, plan: LaunchPlan) -> None:
    try:
        make_devices(root, plan.devices, bind=bool(plan.uid_map))
    except OSError as error:
        raise as_launch_error(error, "error creating device nodes") from error


def write_sysctls(made: Root, plan: LaunchPlan) -> None:
    """Through our own procfs, never along a path that an image could have covered (CVE-2025-52881). Raises LaunchError."""
    if not plan.sysctls:
        return
    proc = made.proc if made.proc >= 0 else detached.fsmount("proc", [("source", "proc")])
    try:
        for key, value in plan.sysctls.items():
            path = "sys/" + key.replace(".", "/")
            try:
                fd = open_in_root(proc, path, os.O_WRONLY, resolve=RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
            except OSError as error:
                raise LaunchError(f"open sysctl {key} file: {reason(error)}") from error
    finally:
        if proc != made.proc:
            os.close(proc)


def restrict(made: Root, plan: LaunchPlan) -> None:
    """Read-only paths, masked paths, at last the read-only root. Raises LaunchError."""
    try:
        for path in plan.readonly_paths:
            _make_readonly(made.fd, path)
        if plan.masked_paths:
            _mask_all(made.fd, plan)
        if plan.root.readonly:
            detached.mount_setattr(
                made.fd, add=detached.MOUNT_ATTR_RDONLY, recursive=False, what="rootfs read-only"
            )
    except OSError as error:
        raise as_launch_error(error, "error restricting rootfs") from error


def _make_readonly(root: int, path: str) -> None:
    try:
        target = open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        tree = detached.clone_tree_of(target, True, path)
        try:
            detached.mount_setattr(tree, add=detached.MOUNT_ATTR_RDONLY, recursive=True, what=path)
            detached.move_mount(tree, target, path)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def _mask_all(root: int, plan: LaunchPlan) -> None:
    """Files show an empty device, directories an empty tmpfs; both verified by looking again (CVE-2025-31133)."""
    null = _verified_null(root)
    first: dict[bool, int] = {}  # for directories, for files: the first mask, of which the others are copies
    try:
        for path in plan.masked_paths:
            try:
                target = open_in_root(root, path, os.O_PATH)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                directory = is_directory(target)
                if directory in first:
                    tree = detached.clone_tree_of(first[directory], False, path)
                elif directory:
                    tree = first[True] = detached.fsmount(
                        "tmpfs",
                        [("source", "tmpfs"), ("nr_blocks", "1"), ("nr_inodes", "1")],
                        _MASK_ATTRIBUTES,
                    )
                else:
                    tree = first[False] = detached.clone_tree_of(null, False, path)
                    detached.mount_setattr(tree, add=_MASK_ATTRIBUTES, recursive=False, what=path)
                detached.move_mount(tree, target, path)
                _check_mask(root, path, tree)
                if tree != first[directory]:
                    os.close(tree)
            finally:
                os.close(target)
    finally:
        for fd in (null, *first.values()):
            os.close(fd)


def _check_mask(root: int, path: str, tree: int) -> None:
    seen = open_in_root(root, path, os.O_PATH)
    try:
        wanted, found = os.fstat(tree), os.fstat(seen)
        if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino):
            raise LaunchError(f"masked path {path} is not masked")
    finally:
        os.close(seen)


def _verified_null(root: int) -> int:
    """The container's own /dev/null: through the host's, a chmod inside would reach the host."""
    fd = open_in_root(root, "/dev/null", os.O_PATH | os.O_NOFOLLOW)
    if not is_device(fd, 1, 3):
        os.close(fd)
        raise LaunchError("can't mask paths: /dev/null is not the null device")
    return fd


def pivot(made: Root) -> None:
    """The root becomes `/`; the host's tree is gone. Raises OSError."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(made.fd)
        mounts.pivot_root(".", ".")
        os.fchdir(old)
        mounts.umount(".", mounts.MNT_DETACH)
    finally:
        os.close(old)
    os.chdir("/")
