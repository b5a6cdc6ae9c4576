"""What refers to an image: fetched with it, and pushed with it. Signatures and SBOMs are artifacts with names by digest."""

from __future__ import annotations

from collections.abc import Iterable

from ketch_wire.faults import InvalidInput
from ketchd.content.documents import Document
from ketchd.content.leases import Lease
from ketchd.engine.progress import ProgressBoard
from ketchd.engine.pullcontent import Fetching, explained
from ketchd.engine.pushwhole import GiveBlob, gather, publish_told, send_parts
from ketchd.engine.rooms import Rooms
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import Index
from ketchd.registry.referrers import referrers
from ketchd.registry.repository import Repository

_LIMIT = 500


async def fetch_referrers(
    rooms: Rooms, fetching: Fetching, repository: Repository, subjects: Iterable[Digest], board: ProgressBoard
) -> None:
    """Fetch what refers to the subjects, and what refers to that; each gets the name `repository@digest`.

    Raises NotFound, InvalidInput (too many), EngineFailure; what was fetched stays.
    """
    waiting = list(dict.fromkeys(subjects))
    seen = set(waiting)
    while waiting:
        subject = waiting.pop(0)
        for entry in await explained(fetching.reference, referrers(repository, subject)):
            if entry.digest in seen:
                continue
            if len(seen) > _LIMIT:
                raise InvalidInput(f"the image has more than {_LIMIT} referrers")
            seen.add(entry.digest)
            waiting.append(entry.digest)
            found = await fetching.entry(entry)
            if isinstance(found, Index):
                board.say(f"{entry.digest.short}: refers to {subject.short}, but is an index: left out")
                continue
            document = await fetching.artifact(found)
            name = fetching.reference.without_tag().with_digest(document.digest)
            with rooms.catalogue.transaction(durable=True):
                fetching.arrived.record(rooms)
                rooms.images.tag(name, document.digest)
            board.say(f"{document.digest}: refers to {subject.short}")


async def push_referrers(
    rooms: Rooms,
    repository: Repository,
    subjects: Iterable[Digest],
    give: GiveBlob,
    board: ProgressBoard,
    lease: Lease,
) -> None:
    """Push the artifacts that are here and refer to the subjects, and what refers to those. Raises as `push` does."""
    waiting = list(dict.fromkeys(subjects))
    about = _by_subject(rooms)
    pushed: set[Digest] = set()
    while waiting:
        subject = waiting.pop(0)
        for document in about.get(subject, ()):
            if document.digest in pushed:
                continue
            pushed.add(document.digest)
            waiting.append(document.digest)
            lease.add("image", document.digest)
            parts = gather(rooms.blobs, document)
            for digest in (*parts.blobs, document.digest):
                lease.add("blob", digest)
            await send_parts(repository, parts, rooms.registry.settings.uploads, give, board)
            await publish_told(repository, document.digest, parts.manifests[-1], board)
            board.say(f"{document.digest}: refers to {subject.short}")


def _by_subject(rooms: Rooms) -> dict[Digest, list[Document]]:
    """Every artifact that is about something, by what it is about."""
    found: dict[Digest, list[Document]] = {}
    for digest in rooms.images.artifacts():
        document = rooms.documents.get(digest)
        if document is None or not rooms.blobs.has(digest):
            continue
        manifest = manifests.parse(rooms.blobs.read(digest), document.media_type)
        if manifest.subject is not None:
            found.setdefault(manifest.subject.digest, []).append(document)
    return found
