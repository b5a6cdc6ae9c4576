"""Checking the store against its digests, and repairing only what is bad: `ketch system fsck [--repair]`.

Blobs and layers are read and hashed anew. A layer whose index alone is bad, or an older ketchd's, is indexed again from the tar in
it; another bad layer is made again from its blob if that is sound, else fetched; a bad config or manifest is fetched; a layer's bad
blob is fetched where a registry is known for it, else forgotten, since the layer itself can be compressed again. What nobody owns is removed. Containers and volumes hold users' data: they are reported, never touched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from ketch_wire.faults import EngineFailure, Fault, InvalidInput
from ketchd import tracepoint
from ketchd.content.blobs import LayerBlob
from ketchd.content.recovery import entries_of
from ketchd.engine.findings import Finding, blob_problem, users_of_blob, users_of_layer
from ketchd.engine.information import INDEX_SERVER
from ketchd.engine.rooms import Rooms
from ketchd.layers.verify import BAD_INDEX, DAMAGED, OLD_INDEX, SOUND, State
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import SIZE_LIMIT
from ketchd.model.manifest import Descriptor
from ketchd.model.reference import HUB, Reference
from ketchd.registry.repository import Repository
from ketchd.registry.tokens import Credentials

tracepoint.declare("fsck.layer-removed", "fsck.blob-removed")

Send = Callable[[dict[str, Any]], Awaitable[None]]
_PROBLEMS: dict[State, str] = {
    OLD_INDEX: "was indexed by an older ketchd: directories just below its root do not name their ..",
    BAD_INDEX: "has a damaged index",
    DAMAGED: "is damaged",
}
UNOWNED_SECONDS = 600.0  # a file is placed a moment before it is recorded


async def fsck(
    rooms: Rooms, send: Send, *, repair: bool = False, credentials: Mapping[str, Credentials] | None = None
) -> list[Finding]:
    """Check everything; `send` gets progress and every finding. credentials: for repairs, by registry host.

    Cancelled: what was repaired is repaired, the rest is as it was; a layer that was being replaced is missing, and found so by the
    next check.
    """
    check = _Check(rooms, send, repair, dict(credentials or {}))
    if rooms.checking.locked():
        await send({"status": "Waiting for another check"})
    async with rooms.checking:
        await check.blobs()
        await check.layers()
        await check.bad_blobs()
        await check.directories()
    return await _sum(check, send)


async def check_some(rooms: Rooms, blobs: Sequence[str], layers: Sequence[str], send: Send) -> list[Finding]:
    """As `fsck` with repair, but of these blobs and layers alone: digests and diff IDs."""
    check = _Check(rooms, send, True, {})
    async with rooms.checking:
        await check.blobs(blobs)
        await check.layers(layers)
        await check.bad_blobs()
    return await _sum(check, send)


async def _sum(check: _Check, send: Send) -> list[Finding]:
    bad = len(check.findings)
    repaired = sum(1 for finding in check.findings if finding.repaired)
    await send({"aux": {"Checked": check.checked, "Bad": bad, "Repaired": repaired}})
    return check.findings


class _Check:
    def __init__(
        self, rooms: Rooms, send: Send, repair: bool, credentials: Mapping[str, Credentials]
    ) -> None:
        self._rooms = rooms
        self._send = send
        self._repair = repair
        self._credentials = credentials
        self._bad_blobs: dict[Digest, str] = {}
        self.findings: list[Finding] = []
        self.checked = 0

    # -- looking

    async def blobs(self, only: Sequence[str] | None = None) -> None:
        """Every recorded blob: there, of its size, of its digest."""
        rows = self._rooms.catalogue.query("SELECT digest, size FROM blobs ORDER BY digest")
        if only is not None:
            rows = [row for row in rows if row["digest"] in only]
        for number, row in enumerate(rows):
            await self._progress("Checking blobs", number, len(rows))
            digest = Digest(row["digest"])
            problem = await asyncio.to_thread(
                blob_problem, self._rooms.blobs.path(digest), row["size"], digest
            )
            if problem and self._is_recorded(digest):
                self._bad_blobs[digest] = problem

    def _is_recorded(self, digest: Digest) -> bool:
        """It may have been removed since the list was made."""
        return bool(self._rooms.catalogue.query("SELECT 1 FROM blobs WHERE digest = ?", (digest.text,)))

    async def layers(self, only: Sequence[str] | None = None) -> None:
        """Every recorded layer, and those that images and containers have without there being one."""
        await self._layers(self._all_layers() if only is None else only)

    def _all_layers(self) -> list[str]:
        query = self._rooms.catalogue.query
        recorded = [row[0] for row in query("SELECT diff_id FROM layers ORDER BY diff_id")]
        wanted = {row[0] for row in query("SELECT DISTINCT diff_id FROM image_layers")}
        wanted |= {layer for box in self._rooms.supervisor for layer in box.record.layers}
        return [*recorded, *sorted(wanted - set(recorded))]

    async def _layers(self, everything: Sequence[str]) -> None:
        for number, text in enumerate(everything):
            await self._progress("Checking layers", number, len(everything))
            layer = Digest(text)
            if not self._rooms.layers.has(layer):
                if not users_of_layer(self._rooms, text):
                    continue  # removed meanwhile
                state, problem = DAMAGED, "is missing"
            else:
                state = await self._state(layer)
                if state == SOUND:
                    continue
                problem = _PROBLEMS[state]
            mend = self._mend_layer if state == DAMAGED else self._mend_index
            await self._report(Finding("layer", text, problem, users_of_layer(self._rooms, text)), mend)

    async def _state(self, layer: Digest) -> State:
        """Looked at again when another one or none is recorded by then: it was removed meanwhile, and maybe came again."""
        while before := self._recorded(layer):
            state = await self._rooms.layers.state(layer)
            if state == SOUND or self._recorded(layer) == before:
                return state
        return DAMAGED if users_of_layer(self._rooms, layer.text) else SOUND

    def _recorded(self, layer: Digest) -> list[int]:
        """When, if it is."""
        rows = self._rooms.catalogue.query("SELECT created_ns FROM layers WHERE diff_id = ?", (layer.text,))
        return [row[0] for row in rows]

    async def bad_blobs(self) -> None:
        """The blobs that `blobs` found, after the layers were mended from the sound ones."""
        for digest, problem in self._bad_blobs.items():
            if not self._is_recorded(digest):
                continue
            if self._repair:
                path = self._rooms.blobs.path(digest)
                size = self._rooms.blobs.size(digest)
                if not await asyncio.to_thread(blob_problem, path, size, digest):
                    continue  # fetched again with its layer
            await self._report(
                Finding("blob", digest.text, problem, users_of_blob(self._rooms, digest.text)),
                self._mend_blob,
            )

    async def directories(self) -> None:
        """What lies in the store and is nobody's; what containers and volumes should have and have not."""
        rooms = self._rooms
        for table, column, place in (("blobs", "digest", "blobs"), ("layers", "diff_id", "layers")):
            is_owned = f"SELECT 1 FROM {table} WHERE {column} = ?"
            for path in entries_of(rooms.data_root / place / "sha256"):
                if rooms.catalogue.query(is_owned, (f"sha256:{path.name}",)) or not path.exists():
                    continue  # by now: what is said of each is waited for
                if time.time() - path.lstat().st_mtime > UNOWNED_SECONDS:
                    key = str(path.relative_to(rooms.data_root))
                    await self._report(Finding("file", key, "belongs to nothing"), self._remove_file)
        for box in rooms.supervisor:
            if not (rooms.container_dir(box.record.id) / "upper").is_dir():
                await self._report(Finding("container", box.record.id, "has no writable layer"), None)
        for volume in rooms.volumes.list():
            if not volume.mountpoint.is_dir():
                await self._report(Finding("volume", volume.name, "has no directory"), None)

    async def _progress(self, what: str, number: int, total: int) -> None:
        self.checked += 1
        if number % 16 == 0:
            await self._send(
                {"status": what, "progressDetail": {"current": number, "total": total}, "id": "fsck"}
            )

    async def _report(self, finding: Finding, mend: Callable[[Finding], Awaitable[str]] | None) -> None:
        if self._repair and mend is not None:
            try:
                finding.repaired = await mend(finding)
            except (Fault, OSError) as error:
                finding.reason = str(error)
        self.findings.append(finding)
        text = f"{finding.kind} {finding.key} {finding.problem}"
        if finding.repaired:
            text += f": {finding.repaired}"
        elif finding.reason:
            text += f": not repaired: {finding.reason}"
        await self._send({"status": text, "aux": finding.show()})

    # -- mending

    async def _mend_index(self, finding: Finding) -> str:
        layer = Digest(finding.key)
        async with self._rooms.leases.hold() as lease:
            lease.add("layer", layer)
            await self._rooms.layers.reindex(layer)
        self._rooms.images.resize(layer)
        return "indexed again from its own tar"

    async def _mend_layer(self, finding: Finding) -> str:
        rooms, layer = self._rooms, Digest(finding.key)
        is_directory = rooms.layers.has(layer) and rooms.layers.record(layer).kind == "directory"
        if is_directory and any(
            box.record.has_process and finding.key in box.record.layers for box in rooms.supervisor
        ):
            raise EngineFailure("a running container stands on it: stop the container first")
        forms = rooms.blobs.of_layer(layer)
        async with rooms.leases.hold() as lease:
            lease.add("layer", layer)
            for form in forms:
                lease.add("blob", form.digest)
            sound = [
                form for form in forms if rooms.blobs.has(form.digest) and form.digest not in self._bad_blobs
            ]
            if sound:
                await self._replace(layer, self._from_blob(layer, sound[0]))
                return "made again from its blob"
            for form in forms:
                for repository in self._repositories(form.digest, finding.users):
                    opened = await self._open(repository)
                    await opened.has_blob(
                        form.digest, form.size
                    )  # reachable and permitted, before the old one goes
                    await self._replace(layer, self._from_registry(layer, form, opened))
                    return f"fetched from {repository}"
        if not finding.users:
            await rooms.layers.remove(layer)
            return "forgotten: no image and no container needs it"
        raise EngineFailure("no sound blob of it is here, and no registry is known to have it")

    async def _replace(self, layer: Digest, making: Coroutine[Any, Any, None]) -> None:
        """The store keeps what it has, so the bad layer goes before the new one is published."""
        try:
            await self._rooms.layers.remove(layer)
            tracepoint.reach("fsck.layer-removed")
            await making
            self._rooms.images.resize(layer)
        finally:
            making.close()

    async def _from_blob(self, layer: Digest, form: LayerBlob) -> None:
        await self._rooms.layers.ingest_file(
            self._rooms.blobs.path(form.digest), form.media_type, expected_diff_id=layer
        )

    async def _from_registry(self, layer: Digest, form: LayerBlob, repository: Repository) -> None:
        found = await self._rooms.transfers.layer(
            repository, Descriptor(form.media_type, form.digest, form.size), lambda *_: None
        )
        if found != layer:
            raise EngineFailure(f"the registry's blob {form.digest} is another layer")

    async def _mend_blob(self, finding: Finding) -> str:
        rooms, digest = self._rooms, Digest(finding.key)
        size = rooms.blobs.size(digest)
        needed = [user for user in finding.users if user.startswith(("image ", "document "))]
        media_type = rooms.catalogue.query("SELECT media_type FROM blobs WHERE digest = ?", (finding.key,))[
            0
        ][0]
        reason: Fault | None = None
        async with rooms.leases.hold() as lease:
            lease.add("blob", digest)
            for repository in self._repositories(digest, finding.users):
                try:
                    await self._fetch_blob(
                        digest, size, media_type, await self._open(repository), bool(needed)
                    )
                    return f"fetched from {repository}"
                except Fault as fault:
                    reason = fault
        if needed:
            raise reason or EngineFailure("no registry is known to have it")
        rooms.blobs.remove(digest)
        return "forgotten: its layer is here and can be compressed again"

    async def _fetch_blob(
        self, digest: Digest, size: int, media_type: str, repository: Repository, small: bool
    ) -> None:
        """The record stays while it is fetched: if it cannot be, the next check finds that the blob is missing."""
        rooms = self._rooms
        if not small:
            layer = rooms.blobs.layer_of(digest)
            rooms.blobs.discard([digest])
            tracepoint.reach("fsck.blob-removed")
            found = await rooms.transfers.layer(
                repository, Descriptor(media_type, digest, size), lambda *_: None
            )
            if layer is not None and found != layer:
                raise EngineFailure(f"the registry's blob {digest} is another layer")
            return
        is_manifest = rooms.catalogue.query(
            "SELECT 1 FROM manifests WHERE digest = :key UNION SELECT 1 FROM documents WHERE digest = :key",
            {"key": digest.text},
        )
        if size > SIZE_LIMIT:
            rooms.blobs.discard([digest])
            await rooms.transfers.blob(repository, Descriptor(media_type, digest, size), lambda *_: None)
            return
        if is_manifest:
            content = (await repository.manifest(digest)).content
        else:
            content = await repository.small_blob(Descriptor(media_type, digest, size), SIZE_LIMIT)
        if Digest.of(content) != digest:
            raise EngineFailure(f"the registry's blob {digest} is not what its name says")
        staged = rooms.blobs.stage_path()
        try:
            await asyncio.to_thread(staged.write_bytes, content)
            await rooms.blobs.publish(staged, digest, len(content), media_type)
        finally:
            staged.unlink(missing_ok=True)

    def _repositories(self, digest: Digest, users: list[str]) -> list[str]:
        """Where the blob was seen, then where the images that need it come from."""
        found = dict.fromkeys(self._rooms.blobs.sources(digest))
        for user in users:
            kind, _, key = user.partition(" ")
            if kind == "layer":
                images = [
                    row[0]
                    for row in self._rooms.catalogue.query(
                        "SELECT image_id FROM image_layers WHERE diff_id = ?", (key,)
                    )
                ]
            else:
                images = [key] if kind == "image" else []
            if kind == "document":
                found |= {
                    row[0]: None
                    for row in self._rooms.catalogue.query(
                        "SELECT repository FROM repo_digests WHERE digest = :key OR digest IN "
                        "(SELECT document FROM document_parts WHERE part = :key)",
                        {"key": key},
                    )
                }
            for image in images:
                record = self._rooms.images.get(Digest(image))
                found |= dict.fromkeys(name.repository for name in record.digests)
        return list(found)

    async def _open(self, repository: str) -> Repository:
        reference = Reference.parse(repository)
        credentials = self._credentials.get(reference.domain)
        if credentials is None and reference.domain == HUB:
            credentials = self._credentials.get(INDEX_SERVER)
        credentials = credentials or Credentials.read({})
        return await self._rooms.registry.repository(reference, credentials)

    async def _remove_file(self, finding: Finding) -> str:
        """Unless it has come to an owner since the list was made, or is about to: what is published takes its place."""
        rooms, path = self._rooms, self._rooms.data_root / finding.key
        try:
            digest = Digest(f"sha256:{path.name}")
        except InvalidInput:
            rooms.trash.take(path)
            return "removed"
        async with rooms.layers.holding([digest]):
            if finding.key.startswith("layers/"):
                if not rooms.layers.has(digest):
                    rooms.layers.discard([digest])
            elif not self._is_recorded(digest):
                rooms.blobs.discard([digest])
        return "removed" if not path.exists() else "it belongs to somebody by now"
