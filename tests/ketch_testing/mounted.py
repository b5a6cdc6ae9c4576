"""What a chain of layers looks like when it is mounted: a process with a mount namespace of its own mounts, looks and reports.

One process serves many questions; what it mounts goes when each is answered, and with it whatever happens to the test.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ketch_wire.launch import LayerMount

_DAEMON_PATHS = [str(Path(__file__).parent.parent)]


@dataclass(frozen=True)
class Seen:
    """One name as lstat(2) and its friends show it. content: the target of a link, the sha256 of a file."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: int
    nlink: int
    content: str
    xattrs: tuple[tuple[str, str], ...]
    same_as: str  # the first name of the same inode


def look(root: str) -> dict[str, Seen]:
    """Everything below `root` by its path; the root itself is ".". Sizes of directories are left out."""
    found: dict[str, Seen] = {}
    first: dict[tuple[int, int], str] = {}
    stack = [""]
    while stack:
        path = stack.pop()
        full = os.path.join(root, path) if path else root
        info = os.lstat(full)
        content = ""
        if stat.S_ISLNK(info.st_mode):
            content = os.readlink(full)
        elif stat.S_ISREG(info.st_mode):
            with open(full, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        is_directory = stat.S_ISDIR(info.st_mode)
        xattrs = tuple(
            (name, os.getxattr(full, name, follow_symlinks=False).hex())
            for name in sorted(os.listxattr(full, follow_symlinks=False))
        )
        same_as = "" if is_directory else first.setdefault((info.st_dev, info.st_ino), path)
        found[path or "."] = Seen(
            info.st_mode, info.st_uid, info.st_gid, 0 if is_directory else info.st_size, info.st_mtime_ns,
            0 if is_directory else info.st_rdev, 0 if is_directory else info.st_nlink, content, xattrs, same_as,
        )  # fmt: skip
        if is_directory:
            stack += sorted((os.path.join(path, name) for name in os.listdir(full)), reverse=True)
    return found


class Looker:
    """Asks the process. Use as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ketch_testing.mounted"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_DAEMON_PATHS)},
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()

    def single(self, layer: LayerMount) -> dict[str, Seen]:
        """One layer as it is, whiteouts and all."""
        return self._ask(single=[layer.kind, layer.path])

    def merged(self, layers: Sequence[LayerMount], *, script: str = "", upper: str = "") -> dict[str, Seen]:
        """The overlay of layers, TOP FIRST. script: shell run in it first, with `upper` (a host directory) as its writable layer."""
        return self._ask(merged=[[layer.kind, layer.path] for layer in layers], script=script, upper=upper)

    def _ask(self, **question: Any) -> dict[str, Seen]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return {
            path: Seen(*fields[:8], tuple((key, value) for key, value in fields[8]), fields[9])
            for path, fields in answer["seen"].items()
        }


def _answer(question: dict[str, Any], place: str) -> dict[str, Any]:
    from ketchd.kernel.mounts import MNT_DETACH, mount, umount
    from ketchd.layers.mounting import mount_chain, mount_layer

    mount("looker", place, "tmpfs", 0, "mode=0700")
    try:
        target = os.path.join(place, "m")
        if "single" in question:
            target = mount_layer(LayerMount(*question["single"]), target)
        else:
            os.mkdir(target)
            upper = question["upper"]
            work = os.path.join(os.path.dirname(upper), "work") if upper else None
            if work:
                os.makedirs(work, exist_ok=True)
            mount_chain([LayerMount(*one) for one in question["merged"]], target, upper or None, work)
            if question["script"]:
                subprocess.run(["/bin/sh", "-euc", question["script"]], cwd=target, check=True)
        return {
            "seen": {
                path: [*(getattr(seen, name) for name in Seen.__dataclass_fields__)]
                for path, seen in look(target).items()
            }
        }
    finally:
        umount(place, MNT_DETACH)


def _main() -> None:
    from ketchd.kernel.mounts import MS_PRIVATE
    from ketchd.kernel.namespaces import CLONE_NEWNS, unshare
    from ketchd.kernel.ownroot import take_root

    unshare(CLONE_NEWNS)
    take_root(MS_PRIVATE)
    with tempfile.TemporaryDirectory(prefix="ketch-looker-") as place:
        for line in sys.stdin:
            try:
                answer = _answer(json.loads(line), place)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
