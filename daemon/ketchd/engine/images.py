"""Naming and removing images: tag and delete, with Docker's rules and its Untagged and Deleted report.

A name goes, the image when nothing names it, and the layers and blobs that nothing needs any more, in one durable transaction;
then their files are moved to the trash. Killed between, the next start removes those. Source: Engine API 1.50, ImageTag, ImageDelete; moby's image_delete.go.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ketch_wire.faults import Conflict, InvalidInput
from ketchd import tracepoint
from ketchd.content.garbage import Collected
from ketchd.content.images import ImageRecord
from ketchd.content.marking import Node
from ketchd.engine.platforms import document_named, image_for, offers, platform_of
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest, chain_id
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference

tracepoint.declare("rmi.untagged", "rmi.forgotten", "rmi.committed", "rmi.swept")

Report = list[dict[str, str]]


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
    Raises NotFound, InvalidInput, Conflict in dockerd's words. Cancelled or killed: all of it is gone or nothing.
    """
    report: Report = []
    async with _holding(rooms, lambda: _at_stake(rooms, rooms.images.resolve(name))) as held:
        image_id = held[0]
        if not still(image_id):
            return report
        with rooms.catalogue.transaction(durable=True):
            untagged, removed = _take(rooms, image_id, name, force=force, prune_parents=prune_parents)
            released = _take_released(rooms, held)
        report += untagged
        _discard(rooms, [*removed, *released.removed], report)
        rooms.garbage.discard(released.blobs)
    for other in released.others:
        await _remove(rooms, other, report, force=False, quiet=True)
    await rooms.trash.settle()
    return report


def _at_stake(rooms: Rooms, image_id: Digest) -> tuple[Digest, ...]:
    """The image, and what may go with it: the other platforms of its names, and the parents of all."""
    named = [rooms.documents.named(reference) for reference in rooms.images.get(image_id).references]
    members = rooms.documents.images_of(document.digest for document in named if document is not None)
    found = dict.fromkeys((image_id, *sorted(members - {image_id}, key=str)))
    for member in list(found):
        parent = rooms.images.get(member).parent
        while parent is not None and parent not in found:
            found[parent] = None
            parent = rooms.images.get(parent).parent
    return tuple(found)


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
            await _remove(rooms, image.id, report, force=force, quiet=False)
    return report


@contextlib.asynccontextmanager
async def _holding(rooms: Rooms, find: Callable[[], tuple[Digest, ...]]) -> AsyncIterator[tuple[Digest, ...]]:
    """What `find` finds, and nobody publishes a layer of it meanwhile. Others may have been at work before that."""
    while True:
        found = find()
        layers = [layer for image_id in found for layer in rooms.images.get(image_id).layers]
        async with rooms.layers.holding(layers):
            if find() == found:
                yield found
                return


def _take(
    rooms: Rooms, image_id: Digest, name: str, *, force: bool, prune_parents: bool
) -> tuple[Report, list[_Removed]]:
    """The name, and the image if that was all that kept it; in a transaction of the caller's."""
    report: Report = []
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
            return report, []
        named = True
    elif is_single(references):
        if (conflict := _conflict(rooms, image_id, force=force, references=False)) is not None:
            raise conflict
        for reference in references:
            _take_name(rooms, image_id, reference, report)
    return report, _take_line(rooms, image_id, force=force, quiet=named, prune_parents=prune_parents)


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
    """An image that the catalogue has no more, what of its content went with it, and what is to be told of it."""

    record: ImageRecord
    forgotten: list[Collected]
    told: Report


@dataclass(frozen=True, slots=True)
class _TakenReleased:
    """What documents without a name have needed. others: images that are still there, since nobody holds their layers."""

    removed: list[_Removed]
    others: list[Digest]
    blobs: list[Collected]


def _take_released(rooms: Rooms, held: Collection[Digest]) -> _TakenReleased:
    """Take what only documents without a name have needed, if it is `held`; in a transaction of the caller's."""
    released = rooms.documents.release()
    removed: list[_Removed] = []
    others = []
    for image_id in released.images:
        if not rooms.images.has(image_id) or is_leased(rooms, image_id):
            continue
        if image_id in held:
            removed += _take_line(rooms, image_id, force=False, quiet=True)
        else:
            others.append(image_id)  # a journey that has failed left it
    blobs = rooms.garbage.forget([("blob", digest.text) for digest in released.blobs])
    return _TakenReleased(removed, others, blobs)


async def _remove(rooms: Rooms, image_id: Digest, report: Report, *, force: bool, quiet: bool) -> None:
    """The image with all its names, unless something needs it: then a Conflict, or with `quiet` nothing."""
    async with _holding(
        rooms, lambda: _at_stake(rooms, image_id) if rooms.images.has(image_id) else ()
    ) as found:
        if found:
            with rooms.catalogue.transaction(durable=True):
                removed = _take_line(rooms, image_id, force=force, quiet=quiet)
            _discard(rooms, removed, report)


def _take_line(
    rooms: Rooms, image_id: Digest, *, force: bool, quiet: bool, prune_parents: bool = True
) -> list[_Removed]:
    """The image, if it may go, and then its nameless parents."""
    removed = []
    one = _take_image(rooms, image_id, force=force, quiet=quiet)
    while one is not None:
        removed.append(one)
        parent = one.record.parent
        if not prune_parents or parent is None or not rooms.images.has(parent):
            break
        one = _take_image(rooms, parent, force=False, quiet=True)
    return removed


def _take_image(rooms: Rooms, image_id: Digest, *, force: bool, quiet: bool) -> _Removed | None:
    """Forget the image, its names, and its content that nothing else needs; in a transaction of the caller's."""
    report: Report = []
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
    return _Removed(record, forgotten, report)


def _discard(rooms: Rooms, removed: Sequence[_Removed], report: Report) -> None:
    """Take away the files of what is forgotten, and tell of the images and their layers, top first."""
    tracepoint.reach("rmi.committed")
    for one in removed:
        report += one.told
        rooms.garbage.discard(one.forgotten)
        tracepoint.reach("rmi.swept")
        gone = {item.key for item in one.forgotten if item.kind == "layer"}
        layers = one.record.layers
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


def is_leased(rooms: Rooms, image_id: Digest) -> bool:
    return ("image", image_id.text) in rooms.leases.held()
