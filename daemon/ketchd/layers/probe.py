"""What kind of layers this host can have: found out by mounting a tiny one in a worker; the log and `info` give the reason."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure
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


async def probe(workers: WorkerPool, scratch: Path, wanted: str = "") -> tuple[str, str]:
    """(kind, reason) of the best that works, or of `wanted`. scratch: a directory where layers will lie; made if missing.

    Raises EngineFailure when `wanted` does not work here.
    """
    result = await workers.run("ketchd.layers.probe:probe_job", {"scratch": str(scratch), "wanted": wanted})
    return result["kind"], result["reason"]


def probe_job(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """The worker's side of `probe`."""
    os.makedirs(arguments["scratch"], 0o710, exist_ok=True)
    kind, reason = probe_here(arguments["scratch"], port.scratch(), arguments["wanted"])
    return {"kind": kind, "reason": reason}


def probe_here(scratch: str, mount_point: str, wanted: str = "") -> tuple[str, str]:
    """(kind, reason): the first kind with which a file of a tiny layer below `scratch` can be read back.

    Mounts below `mount_point` in the caller's namespace, and unmounts again. Raises EngineFailure: `wanted` does not work.
    """
    if wanted == "directory":
        return wanted, "it was asked for"
    with tempfile.TemporaryDirectory(dir=scratch, prefix="probe-") as directory:
        path = os.path.join(directory, "layer")
        with LayerFile({"path": path, "kind": "erofs"}) as layer:
            writer = TarWriter(layer)
            writer.add(Entry(b"probe", REGULAR, size=len(_CONTENT), stored=len(_CONTENT)), _CONTENT)
            writer.finish()
            layer.seal()
        failures: list[str] = []
        for kind in [wanted] if wanted else _KINDS:
            failure = _try(LayerMount(kind, path), os.path.join(mount_point, kind))
            if failure is None:
                return kind, "it was asked for" if wanted else _REASONS[kind] + _because(failures)
            failures.append(f"{kind}: {failure}")
    if wanted:
        raise EngineFailure(f"storage driver {wanted} does not work on this host: {failures[0]}")
    return "directory", "the kernel mounts no EROFS files here" + _because(failures)


def _because(failures: list[str]) -> str:
    return f" ({'; '.join(failures)})" if failures else ""


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
