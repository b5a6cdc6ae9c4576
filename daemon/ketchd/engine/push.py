"""The push journey: an image here becomes a name at a registry.

tag → per layer: there already? mounted from a repository that has it? else uploaded, in the bytes it was pulled in where they
are known → config → manifest last. Returns when the registry has confirmed every digest. An index of which everything is
here goes as it came, and so does an artifact (`pushwhole`); or with its images in the compression that was asked for (`pushindex`).
"""

from __future__ import annotations

from ketch_wire.faults import EngineFailure, Fault, InvalidInput, NotFound, Unauthorized
from ketchd import tracepoint
from ketchd.content.documents import Document
from ketchd.engine.conversation import conversation
from ketchd.engine.platforms import image_for
from ketchd.engine.progress import ProgressBoard, Send
from ketchd.engine.pushimage import ImagePush
from ketchd.engine.pushindex import Plan, plan, remember, send_index
from ketchd.engine.pushwhole import Parts, gather, publish_told, send_parts
from ketchd.engine.referrers import push_referrers
from ketchd.engine.rooms import Rooms
from ketchd.model.compression import Compression
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Manifest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.errors import Refused
from ketchd.registry.exchange import NoCredentials
from ketchd.registry.repository import Repository
from ketchd.registry.tokens import Credentials

tracepoint.declare("push.manifest-put", "push.recorded")


async def push(
    rooms: Rooms,
    reference: Reference,
    credentials: Credentials,
    send: Send,
    *,
    platform: Platform | None = None,
    everything: bool = False,
    compression: Compression | None = None,
    referrers: bool = False,
) -> None:
    """Push the tag of `reference`, or every tag of its repository when it has none.

    platform: that one's image alone. everything: the whole index, or a fault that says what of it is not here; without
    either, the index when all of it is here, else the tag's image. compression: what this push asks for, None for the daemon's
    settings; where it is not content with known forms, an index goes as a new one, of the same images. referrers: the artifacts
    that are here and refer to what is pushed, too.
    send: takes messages of Docker's progress stream; the first one goes out before anything can fail.
    Raises InvalidInput, NotFound, Unauthorized, EngineFailure. Cancelled or failed: uploads under way are given up; what the
    registry has is used by the next push. Source: Engine API, ImagePush.
    """
    async with conversation(rooms, reference, credentials, send) as talk:
        talk.board.say(f"The push refers to repository [{reference.repository}]")
        await talk.board.flush()
        targets = _targets(rooms, reference)
        try:
            repository = await talk.repository(push=True)
            await repository.settle()
            for target, image_id in targets:
                await _push_one(
                    rooms,
                    repository,
                    target,
                    image_id,
                    talk.board,
                    platform,
                    everything,
                    compression,
                    referrers,
                )
        except Refused as fault:
            raise push_fault(fault) from fault
        except Unauthorized as fault:
            # A token server's refusal, without the URL that was asked for, as dockerd tells it of a push; so is a lack of credentials.
            bare = fault.__cause__ if isinstance(fault.__cause__, Unauthorized) else fault
            raise Unauthorized(bare.message) from fault
        except NoCredentials as fault:
            raise EngineFailure(NoCredentials.WORDS) from fault
        rooms.events.append(
            "image", "push", reference.familiar(), {"name": reference.familiar_name()}
        )  # dockerd's, one for all tags


def _targets(rooms: Rooms, reference: Reference) -> list[tuple[Reference, Digest]]:
    if reference.digest is not None:
        raise InvalidInput("cannot push a digest reference")
    known = rooms.images.tags_of(reference.repository)
    if not known:
        raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name()}")
    if reference.tag is None:
        return known
    image_id = rooms.images.find_name(reference)
    if image_id is None:
        raise NotFound(f"tag does not exist: {reference.familiar()}")
    return [(reference, image_id)]


async def _push_one(
    rooms: Rooms,
    repository: Repository,
    target: Reference,
    image_id: Digest,
    board: ProgressBoard,
    platform: Platform | None,
    everything: bool,
    compression: Compression | None,
    referrers: bool,
) -> None:
    tag, how = target.tag or "", compression or rooms.compression
    async with rooms.leases.hold() as lease:
        lease.add("image", image_id)
        image = rooms.images.get(image_id)
        document = rooms.documents.named(target)
        is_image = image.artifact_type is None
        if compression is not None and compression.strict and not is_image:
            raise InvalidInput(
                f"{target.familiar()} is an artifact: it is pushed as it is, not compressed anew"
            )
        if platform is not None and is_image:
            image, document = image_for(rooms, target.familiar(), platform), None
            lease.add("image", image.id)
        pushing = ImagePush(rooms, repository, target, image.id, image.layers, board, lease, how)
        whole: _Pushed | None = None
        if document is not None and is_image and how.strict:
            whole = await _index_anew(pushing, image_id, plan(rooms, document), everything)
        elif document is not None:
            whole = await _as_it_came(
                pushing, image_id, gather(rooms.blobs, document), everything or not is_image
            )
        digest, content, inner = whole or await _image(pushing, document)
        if referrers:
            await push_referrers(rooms, repository, [digest, *inner], pushing.blob, board, lease)
    size = len(content)
    board.say(f"{tag}: digest: {digest} size: {size}")
    board.tell({"progressDetail": {}, "aux": {"Tag": tag, "Digest": str(digest), "Size": size}})


# The three ways to go: what the tag means at the registry then, its bytes, and the manifests that those refer to.
_Pushed = tuple[Digest, bytes, list[Digest]]


async def _index_anew(pushing: ImagePush, image_id: Digest, found: Plan, everything: bool) -> _Pushed | None:
    """With every image in the compression that is asked for; None unless all of it is here, or everything is wanted."""
    if found.absent and not everything:
        return None
    rooms, target = pushing.rooms, pushing.target
    sent = await send_index(pushing, found, target.tag or "")
    tracepoint.reach("push.manifest-put")
    for made in await remember(pushing, found, sent):
        rooms.documents.keep(made)
    rooms.images.tag(target.with_digest(sent.digest), image_id)
    tracepoint.reach("push.recorded")
    return sent.digest, sent.content, sent.manifests


async def _as_it_came(pushing: ImagePush, image_id: Digest, parts: Parts, everything: bool) -> _Pushed | None:
    """Byte for byte; None unless all of it is here, or everything is wanted."""
    if parts.absent and not everything:
        return None
    rooms, target, board = pushing.rooms, pushing.target, pushing.board
    inner = [known[0] for known in parts.manifests]
    for digest in (*parts.blobs, *inner):
        pushing.lease.add("blob", digest)
    await send_parts(pushing.repository, parts, rooms.registry.settings.uploads, pushing.blob, board)
    digest = await publish_told(pushing.repository, target.tag or "", parts.manifests[-1], board)
    tracepoint.reach("push.manifest-put")
    rooms.images.tag(target.with_digest(digest), image_id)
    for blob in parts.blobs:
        rooms.blobs.add_source(blob, target.repository)
    tracepoint.reach("push.recorded")
    return digest, parts.manifests[-1][2], inner


async def _image(pushing: ImagePush, document: Document | None) -> _Pushed:
    """One image. document: the index in whose place it goes."""
    manifest = await pushing.run()
    content = manifest.content
    part = (Digest.of(content), manifest.media_type, content)
    digest = await publish_told(pushing.repository, pushing.target.tag or "", part, pushing.board)
    tracepoint.reach("push.manifest-put")
    await _remember(pushing.rooms, pushing.target, pushing.image_id, manifest, digest)
    if document is not None:
        _tell_of_one(pushing.board, document, Descriptor(manifest.media_type, digest, len(content)))
    return digest, content, []


def _tell_of_one(board: ProgressBoard, document: Document, pushed: Descriptor) -> None:
    """As dockerd tells its client that one platform went in place of the index."""
    original = Descriptor(document.media_type, document.digest, document.size)
    board.tell(
        {
            "progressDetail": {},
            "aux": {
                "manifestPushedInsteadOfIndex": True,
                "originalIndex": original.to_json(),
                "selectedManifest": pushed.to_json(),
            },
        }
    )


async def _remember(
    rooms: Rooms, target: Reference, image_id: Digest, manifest: Manifest, digest: Digest
) -> None:
    """The image has a digest name now, and its blobs a place to be mounted from."""
    await rooms.images.register(
        rooms.blobs.read(image_id), manifest=manifest.content, manifest_media_type=manifest.media_type,
        config_media_type=manifest.config.media_type,
    )  # fmt: skip
    rooms.images.tag(target.with_digest(digest), image_id)
    for descriptor in (manifest.config, *manifest.layers):
        rooms.blobs.add_source(descriptor.digest, target.repository)
    tracepoint.reach("push.recorded")


def push_fault(fault: Refused) -> Fault:
    """A registry's refusal of a push. Its words are dockerd's already; wrong credentials are told apart."""
    if fault.code_name == "UNAUTHORIZED":
        return Unauthorized(fault.message)
    return EngineFailure(fault.message)
