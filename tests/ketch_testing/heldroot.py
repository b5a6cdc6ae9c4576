"""A process in a container's root and a mount namespace of its own, without shim and daemon: what cp, diff and export meet.

Run as a module it becomes that process: `python -m ketch_testing.heldroot PLAN`, PLAN as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ketch_wire.launch import LayerMount
from ketchd.containers.supervisor import Box
from ketchd.engine.rooms import Rooms
from ketchd.kernel.process import start_time


@contextmanager
def running(
    rooms: Rooms, box: Box, init: Path, script: str, binds: Sequence[tuple[str, str, bool]] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """`box` as a running container whose busybox carries out `script`; it must say something, and is killed afterwards.

    binds: (source, target, readonly). The record's pid is set for the body's time.
    """
    directory = rooms.container_dir(box.record.id)
    target = directory / "test-root"
    target.mkdir(exist_ok=True)
    plan = {
        "layers": [
            {"kind": "directory", "path": str(init)},
            *({"kind": layer.kind, "path": layer.path} for layer in rooms.layers.mounts(box.record.diff_ids)),
        ],
        "upper": str(directory / "upper"), "work": str(directory / "work"), "target": str(target),
        "script": script, "binds": list(binds),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "ketch_testing.heldroot", json.dumps(plan)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "the process does not speak"
        box.record.pid, box.record.start_time = process.pid, start_time(process.pid)
        yield process
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Become the process."""
    from ketchd.kernel.mounts import (
        MNT_DETACH,
        MS_BIND,
        MS_PRIVATE,
        MS_RDONLY,
        MS_REMOUNT,
        mount,
        pivot_root,
        umount,
    )
    from ketchd.kernel.namespaces import CLONE_NEWNS, unshare
    from ketchd.kernel.ownroot import take_root
    from ketchd.layers.mounting import mount_chain

    plan = json.loads(sys.argv[1])
    target = plan["target"]
    unshare(CLONE_NEWNS)
    take_root(MS_PRIVATE)
    layers = [LayerMount(**layer) for layer in plan["layers"]]
    mount_chain(layers, target, plan["upper"], plan["work"])
    for source, inside, readonly in plan["binds"]:
        os.makedirs(target + inside, exist_ok=True)
        mount(source, target + inside, None, MS_BIND)
        if readonly:
            mount(None, target + inside, None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    mount("proc", target + "/proc", "proc")
    os.chdir(target)
    pivot_root(".", ".")
    umount(".", MNT_DETACH)
    os.chdir("/")
    os.execve("/bin/busybox", ["sh", "-c", plan["script"]], {"PATH": "/bin"})


if __name__ == "__main__":
    main()
