"""Naming and removing images: tag, delete and prune, with Docker's rules and its Untagged and Deleted report.

A name goes, the image when nothing names it, and the layers and blobs that nothing needs any more, in one durable transaction;
then their files are moved to the trash. Killed between, the next start removes those. Source: Engine API 1.50, ImageTag, ImageDelete, ImagePrune; moby's image_delete.go.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ketch_wire.faults import Conflict, Fault, InvalidInput
from ketchd import tracepoint
from ketchd.content.garbage import Collected
from ketchd.content.images import ImageRecord
from ketchd.content.marking import Node
from ketchd.engine.imagelist import Filters, check_keys, filter_bool, has_labels
from ketchd.engine.platforms import document_named, image_for, offers, platform_of
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest, chain_id
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.model.times import parse_timestamp

tracepoint.declare("rmi.untagged", "rmi.forgotten", "rmi.committed", "rmi.swept")

Report = list[dict[str, str]]
GARBAGE_AGE_NS = 600 * 1_000_000_000
_PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})


def announce(rooms: Rooms, image_id: Digest, action: str, name: str = "") -> None:
    """An image event: the image's labels, and the name that it is about (else its ID)."""
    labels: Mapping[str, str] = {}
    if rooms.images.has(image_id):
        labels = rooms.images.get(image_id).labels or {}
    rooms.events.append("image", action, image_id.text, {**labels, "name": name or image_id.text})


def parse_target(repository: str, tag: str) -> Reference:
    """`repo` and `tag` of a request as one tagged name. Raises InvalidInput."""
    reference = Reference.parse(repository)
    if reference.digest is not None:
        raise InvalidInput("cannot import digest reference")
    reference = reference.with_tag(tag) if tag else reference.with_default_tag()
    if reference.familiar_name() == "sha256":
        raise InvalidInput("refusing to create an ambiguous tag using digest algorithm as name")
    return reference


def tag_image(rooms: Rooms, name: str, target: Reference) -> None:
    """Give what `name` means another name, which moves if another had it. Raises NotFound, InvalidInput.

    A name of an index is one of the whole index afterwards, an ID is one image.
    """
    image_id = rooms.images.resolve(name)
    document = None
    if not _is_id_prefix(image_id, name):
        document = rooms.documents.named(Reference.parse(name))
    is_index = document is not None and document.kind == "index"
    rooms.images.tag(target, image_id, document=document.digest if is_index and document else None)
    announce(rooms, image_id, "tag", target.familiar())


async def delete_image(
    rooms: Rooms,
    name: str,
    *,
    force: bool = False,
    prune_parents: bool = True,
    still: Callable[[Digest], bool] = lambda image_id: True,
) -> Report:
    """Take the name away and, when it was the last, the image with its nameless parents.

    With an index' last name go its images of other platforms, unless a container or another name needs them. still: asked when
    nothing can come between any more, whether what the name means then is to go; else it stays.
    Raises NotFound, InvalidInput, Conflict in dockerd's words. Cancelled: what is reported as gone is gone, the rest stays.
    """
    report: Report = []
    try:
        await _delete(rooms, name, report, still, force=force, prune_parents=prune_parents)
    finally:
        await _release(rooms, report)
    await rooms.trash.settle()
    return report


async def _release(rooms: Rooms, report: Report) -> None:
    """Take away what only documents without a name have needed."""
    released = rooms.documents.release()
    for image_id in released.images:
        if rooms.images.has(image_id) and not _is_leased(rooms, image_id):
            await _remove(rooms, image_id, report, force=False, prune_parents=True, quiet=True)
    if released.blobs:
        await rooms.garbage.sweep([("blob", digest.text) for digest in released.blobs])


async def delete_platforms(
    rooms: Rooms, name: str, platforms: Sequence[Platform], *, force: bool = False
) -> Report:
    """Take single platforms' images out of what `name` has; the name stays. Raises NotFound, InvalidInput, Conflict."""
    named = rooms.images.resolve(name)
    report: Report = []
    chosen = [image_for(rooms, name, platform) for platform in platforms]
    beside = {offer.image for offer in offers(rooms, document_named(rooms, name))} - {None, named}
    if not beside:
        return await delete_image(rooms, name, force=force)
    for image in chosen:
        if image.id == named:
            raise InvalidInput(
                f"{platform_of(image)} is the platform that {name} means here: remove the name, or pull another platform first"
            )
    for image in chosen:
        if rooms.images.has(image.id):
            await _remove(rooms, image.id, report, force=force, prune_parents=True, quiet=False)
    return report


@contextlib.asynccontextmanager
async def _holding(rooms: Rooms, find: Callable[[], Digest | None]) -> AsyncIterator[Digest | None]:
    """What `find` finds, and nobody publishes a layer of it meanwhile. Others may have been at work before that."""
    while True:
        image_id = find()
        layers = [] if image_id is None else rooms.images.get(image_id).layers
        async with rooms.layers.holding(layers):
            if find() == image_id:
                yield image_id
                return


async def _delete(
    rooms: Rooms,
    name: str,
    report: Report,
    still: Callable[[Digest], bool],
    *,
    force: bool,
    prune_parents: bool,
) -> None:
    async with _holding(rooms, lambda: rooms.images.resolve(name)) as image_id:
        assert image_id is not None
        if not still(image_id):
            return
        told: Report = []
        with rooms.catalogue.transaction(durable=True):
            removed = _take(rooms, image_id, name, told, force=force)
        report += told
        if removed is None:
            return
        _discard(rooms, removed, report)
    await _prune_parent(rooms, removed, report, prune_parents)


def _take(rooms: Rooms, image_id: Digest, name: str, report: Report, *, force: bool) -> _Removed | None:
    """The name, and the image if that was all that kept it; in a transaction of the caller's."""
    references = list(rooms.images.get(image_id).references)
    named = False
    if not _is_id_prefix(image_id, name):
        if not force and is_single(references):
            for record in rooms.supervisor.users_of_image(image_id.text):
                raise Conflict(
                    f'conflict: unable to remove repository reference "{name}" (must force) - container '
                    f"{record.short} is using its referenced image {image_id.short}"
                )
        left = _untag(rooms, image_id, Reference.parse(name).with_default_tag(), report)
        tracepoint.reach("rmi.untagged")
        if left:
            return None
        named = True
    elif is_single(references):
        if (conflict := _conflict(rooms, image_id, force=force, references=False)) is not None:
            raise conflict
        for reference in references:
            _take_name(rooms, image_id, reference, report)
    return _take_image(rooms, image_id, report, force=force, quiet=named)


def is_single(references: list[Reference]) -> bool:
    """Whether all names are of one repository with at most one tag among them. False for none."""
    tags = [reference for reference in references if reference.digest is None]
    repositories = {reference.repository for reference in references}
    return len(tags) <= 1 and len(repositories) == 1


def _is_id_prefix(image_id: Digest, name: str) -> bool:
    return image_id.text.startswith(name) or image_id.hex.startswith(name)


def _take_name(rooms: Rooms, image_id: Digest, reference: Reference, report: Report) -> None:
    rooms.images.untag(reference)
    announce(rooms, image_id, "untag")
    report.append({"Untagged": reference.familiar()})


def _untag(rooms: Rooms, image_id: Digest, reference: Reference, report: Report) -> list[Reference]:
    """Take `reference`; with a repository's last tag its digest names go too. Returns the names that are left."""
    if reference.digest is not None:
        reference = reference.without_tag()
    _take_name(rooms, image_id, reference, report)
    left = list(rooms.images.get(image_id).references)
    own = [one for one in left if one.repository == reference.repository]
    if reference.digest is None and all(one.digest is not None for one in own):
        for one in own:
            _take_name(rooms, image_id, one, report)
            left.remove(one)
    return left


def _conflict(
    rooms: Rooms, image_id: Digest, *, force: bool, references: bool = True
) -> _ImageConflict | None:
    """Why the image must not go; the reasons that `force` overrides are left out with it."""
    users = rooms.supervisor.users_of_image(image_id.text)
    if rooms.images.children(image_id):
        return _ImageConflict(image_id, "image has dependent child images", hard=True)
    for record in users:
        if record.is_running:
            why = f"image is being used by running container {record.short}"
            return _ImageConflict(image_id, why, hard=True, used=True)
    if force:
        return None
    if references and rooms.images.get(image_id).references:
        return _ImageConflict(image_id, "image is referenced in multiple repositories")
    for record in users:
        why = f"image is being used by stopped container {record.short}"
        return _ImageConflict(image_id, why, used=True)
    return None


class _ImageConflict(Conflict):
    """used: a container is the reason."""

    def __init__(self, image_id: Digest, why: str, *, hard: bool = False, used: bool = False) -> None:
        forcing = "cannot be forced" if hard else "must be forced"
        super().__init__(f"conflict: unable to delete {image_id.short} ({forcing}) - {why}")
        self.used = used


@dataclass(frozen=True, slots=True)
class _Removed:
    """An image that the catalogue has no more, and what of its content went with it."""

    record: ImageRecord
    forgotten: list[Collected]


async def _remove(
    rooms: Rooms, image_id: Digest, report: Report, *, force: bool, prune_parents: bool, quiet: bool
) -> None:
    """The image with all its names, unless something needs it: then a Conflict, or with `quiet` nothing."""
    async with _holding(rooms, lambda: image_id if rooms.images.has(image_id) else None) as found:
        if found is None:
            return
        told: Report = []
        with rooms.catalogue.transaction(durable=True):
            removed = _take_image(rooms, image_id, told, force=force, quiet=quiet)
        if removed is None:
            return
        report += told
        _discard(rooms, removed, report)
    await _prune_parent(rooms, removed, report, prune_parents)


async def _prune_parent(rooms: Rooms, removed: _Removed, report: Report, prune_parents: bool) -> None:
    parent = removed.record.parent
    if prune_parents and parent is not None:
        await _remove(rooms, parent, report, force=False, prune_parents=True, quiet=True)


def _take_image(
    rooms: Rooms, image_id: Digest, report: Report, *, force: bool, quiet: bool
) -> _Removed | None:
    """Forget the image, its names, and its content that nothing else needs; in a transaction of the caller's."""
    if (conflict := _conflict(rooms, image_id, force=force)) is not None:
        record = rooms.images.get(image_id)
        dangling = not record.references and not rooms.images.children(image_id)
        if quiet and (not dangling or conflict.used):
            return None
        raise conflict
    record = rooms.images.get(image_id)
    for reference in record.references:
        _take_name(rooms, image_id, reference, report)
    nodes = _content(rooms, record)
    labels = record.labels or {}
    rooms.images.remove(image_id)
    rooms.events.append("image", "delete", image_id.text, {**labels, "name": image_id.text})
    report.append({"Deleted": image_id.text})
    forgotten = rooms.garbage.forget(nodes)
    tracepoint.reach("rmi.forgotten")
    return _Removed(record, forgotten)


def _discard(rooms: Rooms, removed: _Removed, report: Report) -> None:
    """Take away the files of what is forgotten, and tell of the layers, top first."""
    tracepoint.reach("rmi.committed")
    rooms.garbage.discard(removed.forgotten)
    tracepoint.reach("rmi.swept")
    gone = {item.key for item in removed.forgotten if item.kind == "layer"}
    layers = removed.record.layers
    for length in range(len(layers), 0, -1):
        if layers[length - 1].text in gone:
            report.append({"Deleted": chain_id(layers[:length]).text})


def _content(rooms: Rooms, record: ImageRecord) -> list[Node]:
    """What the image keeps alive, to be swept when it is gone."""
    query, key = rooms.catalogue.query, (record.id.text,)
    forms = query(
        "SELECT DISTINCT layer_blobs.digest FROM layer_blobs JOIN image_layers USING (diff_id) WHERE image_id = ?",
        key,
    )
    return [
        *(("layer", layer.text) for layer in record.layers),
        *(("blob", row[0]) for row in forms),
        *(("blob", row[0]) for row in query("SELECT digest FROM manifests WHERE image_id = ?", key)),
        ("blob", record.id.text),
    ]


def forget_unnamed(rooms: Rooms, made: Collection[Digest]) -> None:
    """Forget those images of a journey that ended early to which nobody has come; what they consist of is garbage then.

    Call it when the journey's own lease is over.
    """
    members = rooms.documents.members() if made else set()
    for image_id in made:
        if (
            rooms.images.has(image_id)
            and image_id not in members
            and not _is_leased(rooms, image_id)
            and not rooms.images.get(image_id).references
            and not rooms.images.children(image_id)
            and not rooms.supervisor.users_of_image(image_id.text)
        ):
            rooms.images.remove(image_id)
    if made:
        rooms.documents.release()  # an artifact's


def _is_leased(rooms: Rooms, image_id: Digest) -> bool:
    return ("image", image_id.text) in rooms.leases.held()


async def prune_images(rooms: Rooms, filters: Filters) -> tuple[Report, int]:
    """Remove the images that no container uses and nothing names (`dangling=false`: named ones too): (report, bytes won back).

    What journeys that failed have left in the store goes too, when nobody needed it for a while. Raises InvalidInput. An
    image that cannot go is left out. Source: Engine API 1.50, ImagePrune.
    """
    check_keys(filters, _PRUNE_FILTERS)
    dangling_only = filter_bool(filters, "dangling") is not False
    untils = filters.get("until", ())
    if len(untils) > 1:
        raise InvalidInput("more than one until filter specified")
    until = parse_timestamp(untils[0], time.time_ns()) if untils else None
    before = _stored_bytes(rooms)
    report: Report = []
    for record in rooms.images.all():

        def still(image_id: Digest, wanted: Digest = record.id) -> bool:
            return image_id == wanted and _prunable(rooms, image_id, filters, until, dangling_only)

        if not still(record.id):
            continue
        names = [reference.canonical() for reference in record.references] or [record.id.hex]
        for name in names:
            try:
                report += await delete_image(rooms, name, still=still)
            except Fault:
                continue
    since = time.time_ns() - GARBAGE_AGE_NS
    await rooms.garbage.sweep(unused_since_ns=since)
    for one in rooms.transfers.left_over():
        if one.last_used_ns < since:
            rooms.transfers.forget(one.digest)
    await rooms.trash.settle()
    reclaimed = max(0, before - _stored_bytes(rooms))
    rooms.events.append("image", "prune", "", {"reclaimed": str(reclaimed)})
    return report, reclaimed


def _prunable(
    rooms: Rooms, image_id: Digest, filters: Filters, until: int | None, dangling_only: bool
) -> bool:
    """As it is now: it may have gone with a child, or come to a name or a user."""
    if not rooms.images.has(image_id) or rooms.supervisor.users_of_image(image_id.text):
        return False
    if _is_leased(rooms, image_id):
        return False  # a pull, load or build is about to name it, or stands on it
    record = rooms.images.get(image_id)
    if dangling_only and record.tags:
        return False
    if not record.references and (
        rooms.images.children(image_id) or image_id in rooms.documents.members()  # another platform of a name
    ):
        return False
    if until is not None and (record.created_ns is None or record.created_ns > until):
        return False
    labels = record.labels or {}
    unwanted = any(has_labels(labels, [item]) for item in filters.get("label!", ()))
    return not unwanted and has_labels(labels, filters.get("label", ()))


def _stored_bytes(rooms: Rooms) -> int:
    query = rooms.catalogue.query
    layers = query("SELECT coalesce(sum(disk_size), 0) FROM layers")[0][0]
    partial = sum(one.size for one in rooms.transfers.left_over())
    return int(layers) + int(query("SELECT coalesce(sum(size), 0) FROM blobs")[0][0]) + partial
