"""A builder over a real store in a directory of its own, with a process runner that only pretends, and what it said."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ketch_wire.launch import MountPlan, ProcessPlan
from ketchd.build.cache import BuildCache
from ketchd.build.stages import Options
from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal
from ketchd.content.blobs import BlobStore
from ketchd.content.garbage import Garbage
from ketchd.content.images import ImageStore
from ketchd.content.leases import Leases
from ketchd.engine.build import Builder, BuildRequest
from ketchd.layers.store import LayerStore
from ketchd.layers.trash import Trash
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import ImageConfig
from ketchd.model.reference import Reference

Files = Mapping[str, str | bytes | tarfile.TarInfo]


def tar(files: Files, *, mtime: int = 1_700_000_000) -> bytes:
    """An archive: text and bytes as files, `name/` as directories, TarInfo as it is. In the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
                continue
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.mtime = mtime
            data = content.encode() if isinstance(content, str) else content
            if name.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def member(kind: bytes, *, link: str = "", mode: int = 0o644, uid: int = 0, gid: int = 0) -> tarfile.TarInfo:
    """A member of another kind than file or directory."""
    entry = tarfile.TarInfo()
    entry.type, entry.linkname, entry.mode, entry.uid, entry.gid = kind, link, mode, uid, gid
    return entry


class PretendRunner:
    """Satisfies the builder's StepRunner: `touch PATH`, `fail CODE`, `say TEXT`, `wait` and `see` act on the upper directory."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.processes: list[ProcessPlan] = []
        self.mounts: list[Sequence[MountPlan]] = []
        self.cancelled = 0
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()

    async def run(
        self,
        *,
        root_layers: Sequence[Digest],
        upper: Path,
        work: Path,
        process: ProcessPlan,
        network: str,
        extra_hosts: Sequence[str],
        output: Callable[[int, bytes], Awaitable[None]],
        mounts: Sequence[MountPlan] = (),
        resources: Mapping[str, Any] | None = None,
        shm_size: int = 0,
    ) -> int:
        command = process.argv[-1]
        self.ran.append(command)
        self.processes.append(process)
        self.mounts.append(mounts)
        word, _, rest = command.partition(" ")
        if word == "touch":
            (upper / rest.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (upper / rest.lstrip("/")).write_text(f"made by {command}")
        elif word == "say":
            await output(1, rest.encode() + b"\n")
            await output(2, b"and on stderr\n")
        elif word == "wait":
            self.waiting.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        elif word == "fail":
            return int(rest)
        return 0


def _namespace(**rooms: Any) -> Any:
    return SimpleNamespace(**rooms)


class Yard:
    """The rooms a build needs, a builder, and the messages of the builds it carried out."""

    def __init__(self, base: Path, kind: str) -> None:
        self.base = base
        self.catalogue = Catalogue(base / "catalogue.sqlite")
        self.workers = WorkerPool(2)
        trash = Trash(base, self.workers)
        self.layers = LayerStore(base, self.catalogue, self.workers, kind, trash)
        blobs = BlobStore(base, self.catalogue, trash)
        self.images = ImageStore(self.catalogue, blobs)
        self.rooms: Any = _namespace(
            data_root=base, exec_root=base / "run", catalogue=self.catalogue, events=EventJournal(self.catalogue),
            blobs=blobs, images=self.images, leases=Leases(self.catalogue), trash=trash, layers=self.layers, workers=self.workers,
            garbage=Garbage(self.catalogue, blobs, self.layers), log=None,
            cache=BuildCache(self.catalogue, base),
        )  # fmt: skip
        self.runner = PretendRunner()
        self.builder = Builder(self.rooms, runner=self.runner, at_once=2)

    async def base_image(self, name: str, files: Files, **config: Any) -> Digest:
        """An image of one layer."""
        staged = self.base / "stage" / "base.tar"
        staged.write_bytes(tar(files))
        layer = await self.layers.adopt_tar(staged)
        document = {
            "architecture": "amd64", "os": "linux", "config": config, "created": "2024-01-01T00:00:00Z",
            "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id)]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "base"}],
        }  # fmt: skip
        image_id = await self.images.register(json.dumps(document).encode())
        self.images.tag(Reference.parse(name), image_id)
        return image_id

    async def build(
        self,
        dockerfile: str,
        files: Files | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        **given: Any,
    ) -> tuple[Digest, str]:
        """(image ID, what was said). given: of BuildRequest; options: of Options."""
        said: list[dict[str, Any]] = [] if messages is None else messages
        names = ("build_args", "labels", "target", "platform", "network")
        options = Options(**{name: given.pop(name) for name in names if name in given})
        tags = tuple(Reference.parse(tag).with_default_tag() for tag in given.pop("tags", ("app",)))
        content = given.pop("body", None) or tar({"Dockerfile": dockerfile, **(files or {})})

        async def body() -> AsyncIterator[bytes]:
            for at in range(0, len(content), 3000):
                yield content[at : at + 3000]

        async def send(*sent: dict[str, Any]) -> None:
            said.extend(sent)

        request = BuildRequest(tags=tags, options=options, dockerfile=given.pop("file", ""), **given)
        image_id = await self.builder.build(request, body(), send)
        return image_id, "".join(message.get("stream", "") for message in said)

    def config(self, image_id: Digest) -> ImageConfig:
        """The image's config."""
        return self.images.config(image_id)

    async def layer(self, image_id: Digest, position: int = -1) -> dict[str, tarfile.TarInfo]:
        """The members of one of the image's layers."""
        return {entry.name: entry for entry in (await self._tar(image_id, position)).getmembers()}

    async def content(self, image_id: Digest, name: str, position: int = -1) -> bytes:
        """A file's bytes in one of the image's layers."""
        found = (await self._tar(image_id, position)).extractfile(name)
        assert found is not None
        return found.read()

    async def _tar(self, image_id: Digest, position: int) -> tarfile.TarFile:
        path, offset, size = await self.layers.tar_range(self.images.get(image_id).layers[position])
        with path.open("rb") as file:
            file.seek(offset)
            return tarfile.open(fileobj=io.BytesIO(file.read(size)))

    def leftovers(self) -> list[str]:
        """What lies in the stage, and leases."""
        found = [path.name for path in (self.base / "stage").iterdir()]
        return found + [f"lease {row[0]}" for row in self.catalogue.query("SELECT id FROM leases")]

    async def close(self) -> None:
        """End the workers and the catalogue."""
        await self.layers.close()
        await self.workers.close()
        self.catalogue.close()


@contextlib.asynccontextmanager
async def yard_at(base: Path, kind: str = "directory") -> AsyncIterator[Yard]:
    """A yard for the body's time."""
    made = Yard(base, kind)
    await made.workers.start()
    try:
        yield made
    finally:
        await made.close()
