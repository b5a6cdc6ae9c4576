"""The pull journey: a name at a registry becomes an image here.

endpoints → HEAD, then the manifest by digest → platform → lease → config, and every missing layer at once, unpacked while it
arrives → registered → named last. What a pull that ended early has fetched is there for the next.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ketch_wire.faults import EngineFailure, Fault, Forbidden, InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.content.leases import Lease
from ketchd.engine.progress import ProgressBoard, Send
from ketchd.engine.rooms import Rooms
from ketchd.engine.transfers import DOWNLOADING, EXTRACTING
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import SIZE_LIMIT, ImageConfig
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.model.platform import Platform, choose
from ketchd.model.reference import Reference
from ketchd.registry.errors import Refused
from ketchd.registry.repository import Fetched, Repository
from ketchd.registry.together import together
from ketchd.registry.tokens import Credentials

tracepoint.declare(
    "pull.manifest-fetched", "pull.config-fetched", "pull.layers-published", "pull.registered", "pull.tagged"
)
_DEPTH = 3
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Found:
    """What a name means at the registry. digest: of what the name itself is, which may be an index. manifest: the image's."""

    digest: Digest
    manifest: Manifest


async def pull(
    rooms: Rooms,
    reference: Reference,
    credentials: Credentials,
    send: Send,
    *,
    platform: Platform | None = None,
) -> Digest:
    """Fetch the image of `reference` (its digest counts, else its tag or `latest`) and name it; returns its ID.

    send: takes messages of Docker's progress stream. Raises NotFound, InvalidInput, Unauthorized, EngineFailure.
    Cancelled or failed: no name changes; what arrived is garbage for later, or used by the next pull.
    Source: Engine API, ImageCreate with fromImage.
    """
    reference = reference.with_default_tag()
    if reference.digest is not None:
        reference = reference.without_tag()
    _check_name(reference)
    board = ProgressBoard(send)
    async with board.pump():
        repository = await rooms.registry.repository(reference, credentials, tell=_teller(board, reference))
        image_id, is_new = await _pull_one(rooms, repository, reference, platform, board)
        _conclude(rooms, reference, board, image_id, is_new)
    return image_id


async def pull_all_tags(
    rooms: Rooms,
    reference: Reference,
    credentials: Credentials,
    send: Send,
    *,
    platform: Platform | None = None,
) -> None:
    """Fetch every tag of the repository, one after the other. Raises and leaves as `pull` does, tag by tag."""
    _check_name(reference)
    board = ProgressBoard(send)
    async with board.pump():
        repository = await rooms.registry.repository(reference, credentials, tell=_teller(board, reference))
        tags = await _explained(reference, repository.tags())
        image_id, any_new = None, False
        for tag in tags:
            image_id, is_new = await _pull_one(rooms, repository, reference.with_tag(tag), platform, board)
            any_new = any_new or is_new
        if image_id is not None:
            _conclude(rooms, reference, board, image_id, any_new)


def _conclude(
    rooms: Rooms, reference: Reference, board: ProgressBoard, image_id: Digest, is_new: bool
) -> None:
    word = "Downloaded newer image for" if is_new else "Image is up to date for"
    board.say(f"Status: {word} {reference.familiar()}")
    labels = rooms.images.config(image_id).run.labels
    rooms.events.append("image", "pull", reference.familiar(), {**labels, "name": reference.familiar_name()})


def _check_name(reference: Reference) -> None:
    if reference.familiar_name() == "scratch":
        raise Forbidden("'scratch' is a reserved name")


def _teller(board: ProgressBoard, reference: Reference) -> Callable[[str], None]:
    return lambda text: board.say(text, reference.tag or reference.familiar_name())


# -- one tag or digest


async def _pull_one(
    rooms: Rooms,
    repository: Repository,
    reference: Reference,
    platform: Platform | None,
    board: ProgressBoard,
) -> tuple[Digest, bool]:
    """The image, and whether the name meant another one before."""
    wanted = platform or Platform.host(os.uname().machine)
    digest = reference.digest or await _explained(reference, repository.head(reference.tag or ""))
    image_id = _known(rooms, reference, digest, wanted) if digest is not None else None
    if image_id is not None and digest is not None:
        _announce(board, reference)
    else:
        async with rooms.leases.hold() as lease:
            found = await _find(rooms, repository, reference, digest, wanted, board)
            digest = found.digest
            image_id = await _fetch(rooms, repository, reference, found, platform, board, lease)
            return image_id, _name(rooms, reference, image_id, digest, board)
    return image_id, _name(rooms, reference, image_id, digest, board)


def _name(rooms: Rooms, reference: Reference, image_id: Digest, digest: Digest, board: ProgressBoard) -> bool:
    by_digest = reference.with_digest(digest)
    before = rooms.images.find_name(reference)
    if before != image_id or rooms.images.find_name(by_digest) != image_id:
        rooms.images.tag(reference, image_id, repo_digest=digest)
    tracepoint.reach("pull.tagged")
    board.say(f"Digest: {digest}")
    return before != image_id


def _known(rooms: Rooms, reference: Reference, digest: Digest, wanted: Platform) -> Digest | None:
    """The image that this very digest was, if all of it is here and it is for the wanted platform."""
    image_id = rooms.images.find_name(reference.with_digest(digest))
    if image_id is None:
        return None
    image = rooms.images.get(image_id)
    here = Platform.of(image.os, image.architecture, image.variant)
    if here not in wanted.accepts() or not rooms.blobs.has(image_id):
        return None
    return image_id if all(rooms.layers.has(layer) for layer in image.layers) else None


def _announce(board: ProgressBoard, reference: Reference) -> None:
    shown = reference.tag if reference.digest is None and reference.tag else reference.canonical()
    board.tell({"status": f"Pulling from {reference.path}", "id": shown})


async def _find(
    rooms: Rooms,
    repository: Repository,
    reference: Reference,
    digest: Digest | None,
    wanted: Platform,
    board: ProgressBoard,
) -> Found:
    """The manifest to pull. Raises NotFound when the registry has none for the platform."""
    fetched = await _explained(reference, _document(rooms, repository, digest or reference.tag or ""))
    top, document = fetched.digest, manifests.parse(fetched.content, fetched.media_type)
    _announce(board, reference)
    for _ in range(_DEPTH):
        if isinstance(document, Manifest):
            tracepoint.reach("pull.manifest-fetched")
            return Found(top, document)
        entry = _pick(document, wanted)
        fetched = await _explained(reference, _document(rooms, repository, entry.digest))
        if len(fetched.content) != entry.size:
            raise EngineFailure(
                f"manifest {entry.digest} has {len(fetched.content)} bytes, the manifest list says {entry.size}"
            )
        document = manifests.parse(fetched.content, fetched.media_type or entry.media_type)
    raise InvalidInput("manifest lists are nested too deeply")


async def _document(rooms: Rooms, repository: Repository, wanted: str | Digest) -> Fetched:
    """A manifest by tag or digest; by digest it may be here already."""
    if isinstance(wanted, Digest) and rooms.blobs.has(wanted):
        return Fetched(rooms.blobs.read(wanted), "", wanted)
    return await repository.manifest(wanted)


def _pick(index: Index, wanted: Platform) -> Descriptor:
    offers = manifests.candidates(index)
    chosen = choose([offer.platform for offer in offers], wanted)
    if chosen is None:
        raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")
    return offers[chosen]


# -- one image


async def _fetch(
    rooms: Rooms,
    repository: Repository,
    reference: Reference,
    found: Found,
    platform: Platform | None,
    board: ProgressBoard,
    lease: Lease,
) -> Digest:
    manifest = found.manifest
    manifests.check_image(manifest)
    for digest in (found.digest, Digest.of(manifest.content), manifest.config.digest):
        lease.add("blob", digest)
    content = await _config(rooms, repository, reference, manifest.config)
    config = ImageConfig.parse(content)
    _check_config(config, manifest)
    if platform is not None:
        _warn_platform(board, reference, config, platform)
    tracepoint.reach("pull.config-fetched")
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        lease.add("blob", layer.digest)
        lease.add("layer", diff_id)
    missing: dict[Digest, tuple[Descriptor, Digest]] = {}
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if rooms.layers.has(diff_id) and not await rooms.transfers.is_left_over(layer):
            board.say("Already exists", layer.digest.short)
        else:
            board.say("Pulling fs layer", layer.digest.short)
            missing[layer.digest] = (layer, diff_id)
    await together(
        _layer(rooms, repository, reference, layer, diff_id, board) for layer, diff_id in missing.values()
    )
    tracepoint.reach("pull.layers-published")
    for layer in (manifest.config, *manifest.layers):
        rooms.blobs.add_source(layer.digest, reference.repository)
    image_id = await rooms.images.register(
        content, manifest=manifest.content, manifest_media_type=manifest.media_type,
        config_media_type=manifest.config.media_type,
    )  # fmt: skip
    tracepoint.reach("pull.registered")
    return image_id


async def _config(
    rooms: Rooms, repository: Repository, reference: Reference, descriptor: Descriptor
) -> bytes:
    if rooms.blobs.has(descriptor.digest):
        return rooms.blobs.read(descriptor.digest)
    return await _explained(reference, repository.small_blob(descriptor, SIZE_LIMIT))


def _check_config(config: ImageConfig, manifest: Manifest) -> None:
    if config.os != "linux":
        raise EngineFailure(f"cannot pull: image is for {config.os[:40]!r}, this engine runs linux images")
    if len(config.diff_ids) != len(manifest.layers):
        raise EngineFailure("layers from manifest don't match image configuration")
    pairs: dict[Digest, Digest] = {}
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if layer.is_foreign or layer.urls:
            raise EngineFailure(
                f"layer {layer.digest} is to be fetched from URLs outside of the registry: refused"
            )
        if pairs.setdefault(layer.digest, diff_id) != diff_id:
            raise EngineFailure("layers from manifest don't match image configuration")


def _warn_platform(
    board: ProgressBoard, reference: Reference, config: ImageConfig, platform: Platform
) -> None:
    here = Platform.of(config.os, config.architecture, config.variant)
    if here not in platform.accepts():
        board.say(
            f"WARNING: image with reference {reference.familiar()} was found but its platform ({here}) does not match "
            f"the specified platform ({platform})"
        )


async def _layer(
    rooms: Rooms,
    repository: Repository,
    reference: Reference,
    layer: Descriptor,
    diff_id: Digest,
    board: ProgressBoard,
) -> None:
    shown = layer.digest.short

    def report(status: str, current: int, total: int) -> None:
        if status in (DOWNLOADING, EXTRACTING):
            board.move(status, shown, current, total)
        else:
            board.say(status, shown)

    found = await _explained(reference, rooms.transfers.layer(repository, layer, report))
    if found != diff_id:
        raise EngineFailure("layers from manifest don't match image configuration")
    board.say("Pull complete", shown)


# -- refusals


async def _explained(reference: Reference, asking: Awaitable[_Result]) -> _Result:
    try:
        return await asking
    except Refused as fault:
        raise pull_fault(reference, fault) from fault


def pull_fault(reference: Reference, fault: Refused) -> Fault:
    """A registry's refusal as dockerd words it, with dockerd's status. Source: moby's distribution/errors.go."""
    if fault.code_name == "DENIED" or (fault.http_status == 403 and not fault.code_name):
        return NotFound(
            f"pull access denied for {reference.familiar_name()}, repository does not exist or may require "
            f"'docker login': {fault.message}"
        )
    if fault.code_name == "MANIFEST_UNKNOWN":
        return NotFound(f"manifest for {reference.familiar()} not found: {fault.message}")
    if fault.code_name == "NAME_UNKNOWN":
        return NotFound(f"repository {reference.familiar_name()} not found: {fault.message}")
    return EngineFailure(fault.message)
