"""What the tests of files in containers share: rooms with a busybox image, a container of it, tars in and out."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ketch_testing.rooms import container_of, image_of, rooms_below
from ketchd.containers.lifecycle import State
from ketchd.containers.supervisor import Box
from ketchd.engine import copies
from ketchd.engine.rooms import Rooms

ALIVE = "echo alive; exec sleep 1000"


def busybox_root() -> bytes:
    """A root of one static busybox, a user, a file, a link and an empty directory for volumes."""
    program = Path("/bin/busybox").read_bytes()
    applets = ("sh", "sleep", "mv", "ln", "rm", "mkdir", "mount", "umount", "cat", "echo")
    return tar(
        Entry("bin"), Entry("etc"), Entry("proc"), Entry("tmp"), Entry("v"), Entry("w"), Entry("w/d"),
        Entry("bin/busybox", program, mode=0o755),
        *(Entry(f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox") for name in applets),
        Entry("etc/passwd", b"root:x:0:0::/:/bin/sh\nuser:x:1000:1001::/:/bin/sh\n"),
        Entry("etc/group", b"root:x:0:\nuser:x:1001:\n"),
        Entry("w/d/f", b"content\n", mtime=1_700_000_000),
        Entry("w/l", type=tarfile.SYMTYPE, linkname="d/f", mode=0o777),
        Entry("w/ld", type=tarfile.SYMTYPE, linkname="d", mode=0o777),
        Entry("w/out", type=tarfile.SYMTYPE, linkname="../../../../etc", mode=0o777),
        Entry("etc/canary", b"of the container\n"),
    )  # fmt: skip


@asynccontextmanager
async def prepared(tmp_path: Path, kind: str) -> AsyncIterator[tuple[Rooms, Box]]:
    """Rooms and a container of busybox that does not run."""
    async with rooms_below(tmp_path / "data", kind) as rooms:
        async with rooms.layers.ingest() as ingest:
            await ingest.feed(busybox_root())
            layer = (await ingest.finish()).diff_id
        image = await image_of(rooms, [layer], "busybox")
        yield rooms, container_of(rooms, image, "c", state=State.EXITED)


class Entry:
    """One member for `tar`."""

    def __init__(self, name: str, content: bytes | None = None, **fields: Any) -> None:
        self.info = tarfile.TarInfo(name)
        self.content = content or b""
        self.info.size, self.info.mode = len(self.content), 0o644
        if content is None and "type" not in fields:
            self.info.type, self.info.mode = tarfile.DIRTYPE, 0o755
        for key, value in fields.items():
            setattr(self.info, key, value)


def tar(*entries: Entry) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            archive.addfile(entry.info, io.BytesIO(entry.content))
    return buffer.getvalue()


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for position in range(0, len(content), 1 << 16):
        yield content[position : position + (1 << 16)]


async def fetch(rooms: Rooms, box: Box, path: str) -> tuple[dict[str, Any], tarfile.TarFile]:
    """The stat object and the tar of a path."""
    async with await copies.pack_path(rooms, box, path, "c") as job:
        content = b"".join([chunk async for chunk in job.chunks()])
    return job.head["stat"], tarfile.open(fileobj=io.BytesIO(content))


async def put(rooms: Rooms, box: Box, path: str, content: bytes, **more: Any) -> None:
    await copies.extract(rooms, box, path, pieces(content), "c", **more)


def mounts_of(pid: int | str = "self") -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


def upper_of(rooms: Rooms, box: Box) -> Path:
    return rooms.container_dir(box.record.id) / "upper"


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
