"""What happens to layers that stay mounted between containers: scenarios, each in a process with one thread, as setns(2) wants.

`run` starts one; it prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from ketch_wire.launch import LayerMount
from ketchd.kernel import detached
from ketchd.kernel.mounts import MNT_DETACH, MS_PRIVATE, umount
from ketchd.kernel.namespaces import CLONE_NEWNS, setns, unshare
from ketchd.kernel.ownroot import take_root
from ketchd.sandbox import heldlayers


def run(scenario: str, kind: str, *paths: Path, top: str = "", under: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `scenario` found. paths: of layer files. top: a directory to be in as in a chroot. under: a command that runs it."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [*under, sys.executable, "-m", "ketch_testing.heldscenarios", scenario, kind, top, *map(str, paths)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def held_by(pid: int) -> list[str] | None:
    """The names of the layers that the launcher `pid` holds; None when that process has no such namespace open."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(fd).startswith("mnt:"):
            asked = (
                "import os, sys; from ketchd.kernel.namespaces import setns, CLONE_NEWNS; "
                "setns(os.open(sys.argv[1], 0), CLONE_NEWNS); print(*os.listdir('/'))"
            )
            done = subprocess.run(
                [sys.executable, "-c", asked, str(fd)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.split()
    return None


def _device(mounted: int) -> int:
    return os.fstat(mounted).st_dev


def _names(mounted: int) -> list[str]:
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mounted)
    try:
        return sorted(os.listdir(directory))
    finally:
        os.close(directory)


def _inside(namespace: int) -> list[str]:
    """The names there, looked at by a process that stays."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        setns(namespace, CLONE_NEWNS)
        os.write(writer, json.dumps(sorted(os.listdir("/"))).encode())
        os._exit(0)
    os.wait()
    names: list[str] = json.loads(os.read(reader, 1 << 16))
    return names


def _mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def shared(kind: str, paths: list[str]) -> dict[str, Any]:
    """Two containers take the same layers, one after the other."""
    namespace, before = heldlayers.hold(), _mounts()
    layers = [LayerMount("directory", "/"), *(LayerMount(kind, path) for path in paths)]
    where = os.getcwd()
    first = heldlayers.open_layers(layers, namespace)
    second = heldlayers.open_layers(layers, namespace)
    alone = heldlayers.open_layers(layers, -1)
    return {
        "held": _inside(namespace) == sorted(heldlayers.name(path) for path in paths),
        "first": {index: _device(fd) for index, fd in first.items()},
        "second": {index: _device(fd) for index, fd in second.items()},
        "alone": {index: _device(fd) for index, fd in alone.items()},
        "names": _names(second[1]),
        "at_home": os.getcwd() == where and os.path.exists(paths[0]) and _mounts() == before,
    }


def refused(kind: str, paths: list[str]) -> dict[str, Any]:
    """In the mount namespace of whoever started this, where no namespace for layers can be had."""
    before = os.readlink("/proc/self/ns/mnt")
    namespace = heldlayers.hold()
    return {
        "namespace": namespace,
        "at_home": os.path.exists("/proc/self/ns/mnt") and os.readlink("/proc/self/ns/mnt") == before,
    }


def forgotten(kind: str, paths: list[str]) -> dict[str, Any]:
    """A layer is removed while nobody uses it, and while somebody does."""
    namespace = heldlayers.hold()
    disk = os.path.dirname(paths[0])
    for fd in heldlayers.open_layers([LayerMount(kind, path) for path in paths], namespace).values():
        os.close(fd)
    used = heldlayers.open_layers([LayerMount(kind, paths[1])], namespace)[0]
    before = os.statvfs(disk).f_bfree
    for path in paths:
        heldlayers.forget([heldlayers.name(path), "7-nobody"], namespace)
        os.unlink(path)
    _settle(kind)
    os.sync()
    freed = (os.statvfs(disk).f_bfree - before) * os.statvfs(disk).f_frsize
    names = _names(used)
    os.close(used)
    _settle(kind)
    os.sync()
    all_freed = (os.statvfs(disk).f_bfree - before) * os.statvfs(disk).f_frsize
    return {"inside": _inside(namespace), "freed": freed, "all_freed": all_freed, "still": names}


def _settle(kind: str) -> None:
    """A loop device lets go of its file a moment after its last mount is gone; the kernel takes mounts down behind the call."""
    import time

    time.sleep(0.5)


def limited(kind: str, paths: list[str]) -> dict[str, Any]:
    """More layers than are held at a time: what was used last stays."""
    heldlayers.LIMIT = 2
    namespace = heldlayers.hold()
    for index in (0, 1, 0, 2):
        for fd in heldlayers.open_layers([LayerMount(kind, paths[index])], namespace).values():
            os.close(fd)
    kept = _inside(namespace) == sorted(heldlayers.name(paths[index]) for index in (0, 2))
    many = heldlayers.open_layers([LayerMount(kind, path) for path in paths], namespace)
    return {
        "kept": kept,
        "many": len({_device(fd) for fd in many.values()}),
        "inside": len(_inside(namespace)),
    }


def raced(kind: str, paths: list[str]) -> dict[str, Any]:
    """Many shims at once, and one that died between the directory and the mount."""
    namespace = heldlayers.hold()
    if os.fork() == 0:
        setns(namespace, CLONE_NEWNS)
        os.makedirs(f"/{heldlayers.name(paths[0])}/layer")
        os._exit(0)
    os.wait()
    reader, writer = os.pipe()
    layers = [LayerMount(kind, path) for path in paths]
    for _ in range(8):
        if os.fork() == 0:
            opened = heldlayers.open_layers(layers, namespace)
            os.write(
                writer, json.dumps([_names(opened[index]) for index in range(len(layers))]).encode() + b"\n"
            )
            os._exit(0)
    for _ in range(8):
        os.wait()
    os.close(writer)
    with open(reader) as told:
        seen = [json.loads(line) for line in told]
    after = [_device(heldlayers.open_layers(layers[:1], namespace)[0]) for _ in range(2)]
    heldlayers.forget([heldlayers.name(path) for path in paths], namespace)
    return {"seen": seen, "one": len(set(after)), "inside": _inside(namespace)}


def unusable(kind: str, paths: list[str]) -> dict[str, Any]:
    """One file is not there, another is no layer: what is said, with and without a namespace, of the mount that failed."""
    os.unlink(paths[0])
    os.truncate(paths[1], 0)
    os.truncate(paths[1], 1 << 20)
    said: dict[str, list[str]] = {"missing": [], "damaged": []}
    for namespace in (heldlayers.hold(), -1):
        for what, path in zip(said, paths, strict=False):
            try:
                heldlayers.open_layers([LayerMount(kind, paths[2]), LayerMount(kind, path)], namespace)
            except OSError as error:
                said[what].append(f"{error.filename}: {error.strerror}")
    return {**said, "open": len([fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2])}


def removed_meanwhile(kind: str, paths: list[str]) -> dict[str, Any]:
    """The files leave their places, and are forgotten, between a shim's mounts and its holding them."""
    namespace, mount_detached = heldlayers.hold(), heldlayers.mount_detached

    def mounting(layer: LayerMount) -> int:
        mounted = mount_detached(layer)
        known = heldlayers.names([layer.path])
        os.unlink(layer.path)
        heldlayers.forget(known, namespace)
        return mounted

    heldlayers.mount_detached = mounting
    opened = heldlayers.open_layers([LayerMount(kind, path) for path in paths], namespace)
    return {"names": [_attached(mounted) for mounted in opened.values()], "inside": _inside(namespace)}


def contended(kind: str, paths: list[str]) -> dict[str, Any]:
    """Shims that make room for their own layers all the time, while others are forgotten."""
    heldlayers.LIMIT = 1
    namespace = heldlayers.hold()
    layers = [LayerMount(kind, path) for path in paths]
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                for turn in range(100):
                    one = layers[(number + turn) % len(layers)]
                    opened = heldlayers.open_layers([one], namespace)
                    assert _attached(opened[0]) == [f"file{layers.index(one)}"]
                    os.close(opened[0])
                    if number == 0:
                        heldlayers.forget(heldlayers.names(paths), namespace)
                failed = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(failed)
        children.append(child)
    failed = sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    heldlayers.forget(heldlayers.names(paths), namespace)
    return {"failed": failed, "inside": _inside(namespace)}


def _attached(mounted: int) -> list[str]:
    """The names of a detached mount in a place, which is free again afterwards."""
    unshare(CLONE_NEWNS)
    target = os.open("/tmp", os.O_PATH | os.O_DIRECTORY)
    detached.move_mount(mounted, target, "/tmp")
    os.close(target)
    names = sorted(os.listdir("/tmp"))
    umount("/tmp", MNT_DETACH)
    return names


if __name__ == "__main__":
    _, scenario, kind, top, *paths = sys.argv
    if scenario != "refused":
        unshare(CLONE_NEWNS)  # others mount things meanwhile
        take_root(MS_PRIVATE)
    if top:
        os.chroot(top)
        os.chdir("/")
    print(json.dumps(globals()[scenario](kind, paths)))
