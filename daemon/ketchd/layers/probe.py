"""What kind of layers this host can have: found out by mounting a tiny one in a worker; the log and `info` give the reason."""

from __future__ import annotations

import contextlib
import errno
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


async def probe(workers: WorkerPool, root: Path, wanted: str = "") -> tuple[str, str]:
    """(kind, reason) of the best that works, or of `wanted`. root: the data root, where layers will lie.

    Raises EngineFailure when `wanted` does not work here.
    """
    arguments = {
        "scratch": str(root / "stage"), "stored": str(root / "layers" / "sha256"), "wanted": wanted
    }  # fmt: skip
    result = await workers.run("ketchd.layers.probe:probe_job", arguments)
    return result["kind"], result["reason"]


def probe_job(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """The worker's side of `probe`."""
    kind, reason = probe_here(
        arguments["scratch"], port.scratch(), arguments["wanted"], stored=arguments["stored"]
    )
    return {"kind": kind, "reason": reason}


def probe_here(scratch: str, mount_point: str, wanted: str = "", *, stored: str = "") -> tuple[str, str]:
    """(kind, reason): the first kind with which a file of a tiny layer below `scratch`, made if missing, can be read back.

    stored: a directory of layers, one of which is mounted instead on a full disk; where there is none either, nothing is known, and
    the kind that most kernels can mount is told. Mounts below `mount_point` in the caller's namespace, and unmounts again.
    Raises EngineFailure: `wanted` does not work.
    """
    if wanted == "directory":
        return wanted, "it was asked for"
    failures: list[str] = []
    with contextlib.ExitStack() as made:
        try:
            path, name = _tiny_layer(scratch, made), "probe"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            found = _stored_layer(stored)
            if found is None:
                return wanted or "erofs-loop", "not tried: no space left on device"
            path, name = found, ""
        for kind in [wanted] if wanted else _KINDS:
            failure = _try(LayerMount(kind, path), os.path.join(mount_point, kind), name)
            if failure is None:
                return kind, "it was asked for" if wanted else _REASONS[kind] + _because(failures)
            failures.append(f"{kind}: {failure}")
    if wanted:
        raise EngineFailure(f"storage driver {wanted} does not work on this host: {failures[0]}")
    return "directory", "the kernel mounts no EROFS files here" + _because(failures)


def _tiny_layer(scratch: str, made: contextlib.ExitStack) -> str:
    """Its path; it goes with `made`. Raises OSError."""
    os.makedirs(scratch, 0o710, exist_ok=True)
    directory = made.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="probe-"))
    path = os.path.join(directory, "layer")
    with LayerFile({"path": path, "kind": "erofs"}) as layer:
        writer = TarWriter(layer)
        writer.add(Entry(b"probe", REGULAR, size=len(_CONTENT), stored=len(_CONTENT)), _CONTENT)
        writer.finish()
        layer.seal()
    return path


def _stored_layer(directory: str) -> str | None:
    """The path of a layer that is a file."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return next((entry.path for entry in entries if entry.is_file(follow_symlinks=False)), None)
    return None


def _because(failures: list[str]) -> str:
    return f" ({'; '.join(failures)})" if failures else ""


_REASONS = {
    "erofs": "the kernel mounts EROFS files directly",
    "erofs-loop": "the kernel mounts EROFS files through loop devices only",
}


def _try(layer: LayerMount, target: str, name: str) -> str | None:
    """Why it, and the file `name` in it unless that is "", cannot be mounted and read, or None."""
    try:
        mount_layer(layer, target)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    try:
        if not name:
            os.listdir(target)
            return None
        with open(os.path.join(target, name), "rb") as file:
            return None if file.read() == _CONTENT else "it reads back differently"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    finally:
        umount(target, MNT_DETACH)
