"""The pull journey: a name at a registry becomes an image here, or an artifact.

endpoints → HEAD, then the manifest by digest → platform → lease → config, and every missing layer at once, unpacked while it
arrives → recorded and named, in one transaction. What a pull that ended early has fetched is there for the next. An index on the way is kept
as it came, whether all of its platforms are wanted or one (`pullcontent` has the fetching).
"""

from __future__ import annotations

from dataclasses import dataclass

from ketch_wire.faults import Forbidden, InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.content.documents import Document
from ketchd.engine.arrivals import Arrivals
from ketchd.engine.conversation import conversation
from ketchd.engine.platforms import DEPTH, host_platform, offers, platform_of
from ketchd.engine.progress import ProgressBoard, Send
from ketchd.engine.pullcontent import Fetching, explained
from ketchd.engine.referrers import fetch_referrers
from ketchd.engine.rooms import Rooms
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.model.platform import Platform, choose
from ketchd.model.reference import Reference
from ketchd.registry.referrers import is_fallback_tag
from ketchd.registry.repository import Repository
from ketchd.registry.tokens import Credentials

tracepoint.declare("pull.manifest-fetched", "pull.registered", "pull.tagged")


@dataclass(frozen=True, slots=True)
class Found:
    """What a name means at the registry. digest: of what the name itself is, which may be an index. manifest: the image's.

    indexes: those on the way to it, outermost first.
    """

    digest: Digest
    manifest: Manifest
    indexes: tuple[Index, ...]


async def pull(
    rooms: Rooms,
    reference: Reference,
    credentials: Credentials,
    send: Send,
    *,
    platform: Platform | None = None,
    everything: bool = False,
    referrers: bool = False,
) -> Digest:
    """Fetch the image of `reference` (its digest counts, else its tag or `latest`) and name it; returns its ID.

    everything: of an index all platforms, attestations and what else there is; the name means the one for `platform`.
    referrers: what refers to the image, as artifacts that are named by digest.
    send: takes messages of Docker's progress stream. Raises NotFound, InvalidInput, Unauthorized, EngineFailure.
    Cancelled or failed: no name changes; what arrived is garbage for later, or used by the next pull.
    Source: Engine API, ImageCreate with fromImage.
    """
    reference = reference.with_default_tag()
    if reference.digest is not None:
        reference = reference.without_tag()
    _check_name(reference)
    async with conversation(rooms, reference, credentials, send) as talk:
        repository, board = await talk.repository(), talk.board
        image_id, is_new = await _pull_one(
            rooms, repository, reference, platform, board, everything, referrers
        )
        _conclude(rooms, reference, board, image_id, is_new)
    return image_id


async def pull_all_tags(
    rooms: Rooms,
    reference: Reference,
    credentials: Credentials,
    send: Send,
    *,
    platform: Platform | None = None,
    everything: bool = False,
    referrers: bool = False,
) -> None:
    """Fetch every tag of the repository, one after the other, but lists of referrers. Raises and leaves as `pull` does, tag by tag."""
    _check_name(reference)
    async with conversation(rooms, reference, credentials, send) as talk:
        repository, board = await talk.repository(), talk.board
        tags = [tag for tag in await explained(reference, repository.tags()) if not is_fallback_tag(tag)]
        image_id, any_new = None, False
        for tag in tags:
            image_id, is_new = await _pull_one(
                rooms, repository, reference.with_tag(tag), platform, board, everything, referrers
            )
            any_new = any_new or is_new
        if image_id is not None:
            _conclude(rooms, reference, board, image_id, any_new)
        else:
            board.say(f"Status: Image is up to date for {reference.familiar()}")


def _conclude(
    rooms: Rooms, reference: Reference, board: ProgressBoard, image_id: Digest, is_new: bool
) -> None:
    word = "Downloaded newer image for" if is_new else "Image is up to date for"
    board.say(f"Status: {word} {reference.familiar()}")
    labels = rooms.images.get(image_id).labels or {}
    rooms.events.append("image", "pull", reference.familiar(), {**labels, "name": reference.familiar_name()})


def _check_name(reference: Reference) -> None:
    if reference.familiar_name() == "scratch":
        raise Forbidden("'scratch' is a reserved name")


# -- one tag or digest


async def _pull_one(
    rooms: Rooms,
    repository: Repository,
    reference: Reference,
    platform: Platform | None,
    board: ProgressBoard,
    everything: bool,
    referrers: bool,
) -> tuple[Digest, bool]:
    """The image, and whether the name meant another one before."""
    wanted = platform or host_platform()
    digest = reference.digest or await explained(reference, repository.head(reference.tag or ""))
    if digest is not None and not everything and not referrers:
        known = _known(rooms, reference, digest, wanted)
        if known is not None:
            _announce(board, reference)
            document = rooms.documents.get(digest)
            documents = [] if document is None else [document]
            return known, _name(rooms, reference, known, digest, board, documents, Arrivals())
    async with rooms.leases.hold() as lease:
        fetching = Fetching(rooms, repository, reference, board, lease)
        return await _fetch(rooms, fetching, digest, platform, wanted, everything, referrers)


async def _fetch(
    rooms: Rooms,
    fetching: Fetching,
    digest: Digest | None,
    platform: Platform | None,
    wanted: Platform,
    everything: bool,
    referrers: bool,
) -> tuple[Digest, bool]:
    """All of it, recorded together with the name; the referrers, each with its own, come after that."""
    reference, repository, board = fetching.reference, fetching.repository, fetching.board
    found = await _find(fetching, digest, wanted, board)
    if manifests.artifact_type(found.manifest) is not None:
        documents = [await fetching.artifact(found.manifest)]
        image_id = documents[0].digest
    else:
        documents = []
        image_id = await fetching.image(found.manifest, platform)
    for index in reversed(found.indexes):
        documents.append(await fetching.index(index))
    if everything and found.indexes:
        documents = [*await fetching.rest(found.indexes[0]), *documents]
    is_new = _name(rooms, reference, image_id, found.digest, board, documents, fetching.arrived)
    if referrers:
        subjects = [
            found.digest,
            Digest.of(found.manifest.content),
            *_entries(found, documents, everything),
        ]
        await fetch_referrers(rooms, fetching, repository, subjects, board)
    return image_id, is_new


def _entries(found: Found, documents: list[Document], everything: bool) -> list[Digest]:
    """The manifests that came with an index: those on the way, or all of them."""
    outer = [Digest.of(index.content) for index in found.indexes]
    if not everything:
        return outer
    listed = [entry.digest for index in found.indexes for entry in index.entries]
    return [*outer, *listed, *(document.digest for document in documents)]


def _name(
    rooms: Rooms,
    reference: Reference,
    image_id: Digest,
    digest: Digest,
    board: ProgressBoard,
    documents: list[Document],
    arrived: Arrivals,
) -> bool:
    """Record what has arrived and the documents, the outermost last, and give the image its names; whether the name is new.

    Killed at any moment: all of it is there or nothing.
    """
    by_digest = reference.with_digest(digest)
    before = rooms.images.find_name(reference)
    top = next((one for one in documents if one.digest == digest and one.kind == "index"), None)
    named = rooms.documents.named(reference)
    is_same = top is None or (named is not None and named.digest == top.digest)
    is_named = before == image_id and rooms.images.find_name(by_digest) == image_id and is_same
    with rooms.catalogue.transaction(durable=not is_named):
        arrived.record(rooms)
        for document in documents:
            rooms.documents.keep(document)
        tracepoint.reach("pull.registered")
        if not is_named:
            rooms.images.tag(
                reference, image_id, repo_digest=digest, document=None if top is None else top.digest
            )
    tracepoint.reach("pull.tagged")
    board.say(f"Digest: {digest}")
    return before != image_id


def _known(rooms: Rooms, reference: Reference, digest: Digest, wanted: Platform) -> Digest | None:
    """The image that this very digest was, if all of it is here and it is for the wanted platform."""
    image_id = rooms.images.find_name(reference.with_digest(digest))
    if image_id is None or not rooms.blobs.has(digest):
        return None
    image = rooms.images.get(image_id)
    if image.artifact_type is not None:
        document = rooms.documents.get(image_id)
        parts = document.parts if document is not None else ()
        return image_id if parts and all(rooms.blobs.has(part) for part in parts) else None
    beside = [one for one in offers(rooms, rooms.documents.get(digest)) if not manifests.is_aside(one.entry)]
    if beside:
        position = choose([one.entry.platform for one in beside], wanted)
        chosen = None if position is None else beside[position].image
        if chosen is None:
            return None
        image = rooms.images.get(chosen)
    if platform_of(image) not in wanted.accepts() or not rooms.blobs.has(image.id):
        return None
    return image.id if all(rooms.layers.has(layer) for layer in image.layers) else None


def _announce(board: ProgressBoard, reference: Reference) -> None:
    shown = reference.tag if reference.digest is None and reference.tag else reference.canonical()
    board.tell({"status": f"Pulling from {reference.path}", "id": shown})


async def _find(fetching: Fetching, digest: Digest | None, wanted: Platform, board: ProgressBoard) -> Found:
    """The manifest to pull. Raises NotFound when the registry has none for the platform."""
    fetched = await fetching.document(digest or fetching.reference.tag or "")
    top, document = fetched.digest, manifests.parse(fetched.content, fetched.media_type)
    _announce(board, fetching.reference)
    indexes: list[Index] = []
    while not isinstance(document, Manifest):
        if len(indexes) == DEPTH:
            raise InvalidInput("manifest lists are nested too deeply")
        indexes.append(document)
        document = await fetching.entry(_pick(document, wanted))
    tracepoint.reach("pull.manifest-fetched")
    return Found(top, document, tuple(indexes))


def _pick(index: Index, wanted: Platform) -> Descriptor:
    found = manifests.candidates(index)
    chosen = choose([offer.platform for offer in found], wanted)
    if chosen is None:
        raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")
    return found[chosen]
