"""What kind of layers this host can have: found out by mounting a tiny one, in a worker. `info` and the log give the reason."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ketch_wire.launch import LayerMount
from ketchd.kernel.mounts import MNT_DETACH, umount
from ketchd.layers.layerfile import LayerFile
from ketchd.layers.mounting import mount_layer
from ketchd.layers.tarheaders import REGULAR, Entry
from ketchd.layers.tarwrite import TarWriter
from ketchd.layers.worker import JobPort
from ketchd.layers.workers import WorkerPool

_CONTENT = b"ketch\n" * 200
_KINDS = ("erofs", "erofs-loop")


async def detect(workers: WorkerPool, scratch: Path) -> tuple[str, str]:
    """(kind, reason). scratch: a directory on the filesystem that layers will lie on."""
    result = await workers.run("ketchd.layers.probe:probe_job", {"scratch": str(scratch)})
    return result["kind"], result["reason"]


def probe_job(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """The worker's side of `detect`."""
    kind, reason = probe(Path(arguments["scratch"]), port.scratch())
    return {"kind": kind, "reason": reason}


def probe(scratch: Path, mount_point: str) -> tuple[str, str]:
    """(kind, reason): the first kind with which a file of a tiny layer below `scratch` can be read back.

    Mounts below `mount_point` in the caller's namespace, and unmounts again.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="probe-") as directory:
        path = os.path.join(directory, "layer")
        with LayerFile({"path": path, "kind": "erofs"}) as layer:
            writer = TarWriter(layer)
            writer.add(Entry(b"probe", REGULAR, size=len(_CONTENT), stored=len(_CONTENT)), _CONTENT)
            writer.finish()
            layer.seal()
        failures: list[str] = []
        for kind in _KINDS:
            failure = _try(LayerMount(kind, path), os.path.join(mount_point, kind))
            if failure is None:
                return kind, _REASONS[kind] + "".join(f" ({earlier})" for earlier in failures)
            failures.append(f"{kind}: {failure}")
        return "directory", f"the kernel mounts no EROFS file here: {'; '.join(failures)}"


_REASONS = {
    "erofs": "the kernel mounts EROFS files directly",
    "erofs-loop": "the kernel mounts EROFS files through loop devices only",
}


def _try(layer: LayerMount, target: str) -> str | None:
    """Why it cannot be mounted and read, or None."""
    try:
        mount_layer(layer, target)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    try:
        with open(os.path.join(target, "probe"), "rb") as file:
            return None if file.read() == _CONTENT else "it reads back differently"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    finally:
        umount(target, MNT_DETACH)
