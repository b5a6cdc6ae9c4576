"""rmi and image prune: Docker's rules, its report, its words."""

from __future__ import annotations

import asyncio

import pytest

from ketch_testing.rooms import container_of, image_of, layer_of
from ketch_wire.faults import Conflict, EngineFailure, InvalidInput, NotFound
from ketchd import tracepoint
from ketchd.containers.lifecycle import State
from ketchd.engine import imageprune
from ketchd.engine.imageprune import prune_images
from ketchd.engine.images import delete_image, parse_target, tag_image
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import chain_id
from ketchd.model.reference import Reference


def actions(rooms: Rooms) -> list[tuple[str, str]]:
    return [(event.type, event.action) for event in rooms.events.since(0)]


async def test_a_tag_among_several_is_only_untagged(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1", "x:2")

    assert await delete_image(rooms, "x:1") == [{"Untagged": "x:1"}]
    assert rooms.images.get(image).repo_tags == ["x:2"]
    assert actions(rooms) == [("image", "untag")]


async def test_the_last_tag_takes_image_layers_and_blobs_with_it(rooms: Rooms) -> None:
    base, top = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    image = await image_of(rooms, [base, top], "x:1")

    report = await delete_image(rooms, "x:1")

    assert report == [
        {"Untagged": "x:1"}, {"Deleted": str(image)}, {"Deleted": str(chain_id([base, top]))}, {"Deleted": str(base)},
    ]  # fmt: skip
    assert not rooms.layers.has(base) and not rooms.layers.path(top).exists()
    assert not rooms.blobs.has(image)
    assert actions(rooms) == [("image", "untag"), ("image", "delete")]


async def test_an_image_that_comes_back_while_the_old_files_go(rooms: Rooms) -> None:
    """Its names in the store are free as soon as the removal is told; what is unlinked then is not the new one's."""
    files = {"a": bytes(100_000)}
    layer = await layer_of(rooms, files)
    image = await image_of(rooms, [layer], "x:1")

    await delete_image(rooms, "x:1")
    assert await layer_of(rooms, files) == layer
    assert await image_of(rooms, [layer], "x:1") == image
    await rooms.trash.emptied()

    assert await rooms.layers.verify(layer)
    assert rooms.images.get(image).config.diff_ids == (layer,)
    assert list((rooms.data_root / "trash").iterdir()) == []


async def test_a_removal_waits_for_who_stores_the_layer(rooms: Rooms) -> None:
    """And looks again then: the name may mean another image."""
    first, second = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    old, new = await image_of(rooms, [first], "x"), await image_of(rooms, [second], "y")

    async with rooms.layers.holding([first]):
        removing = asyncio.ensure_future(delete_image(rooms, "x"))
        await asyncio.sleep(0)
        assert rooms.images.has(old)
        tag_image(rooms, "y", Reference.parse("x"))
        rooms.images.untag(Reference.parse("y"))
    report = await removing

    assert {"Deleted": str(new)} in report and not rooms.images.has(new)
    assert rooms.images.has(old) and rooms.layers.has(first)


async def test_a_removal_that_fails_leaves_everything(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, image, content and events go in one transaction."""
    layer = await layer_of(rooms, {"a": b"1"})
    image = await image_of(rooms, [layer], "x:1", "x:2")
    monkeypatch.setattr(tracepoint, "_actions", {"rmi.untagged": "raise"})

    with pytest.raises(EngineFailure):
        await delete_image(rooms, "x:1")

    assert rooms.images.get(image).repo_tags == ["x:1", "x:2"] and actions(rooms) == []


async def test_a_layer_that_another_image_has_stays(rooms: Rooms) -> None:
    base, top = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    await image_of(rooms, [base], "base")
    image = await image_of(rooms, [base, top], "x")

    report = await delete_image(rooms, "x")

    assert report[1:] == [{"Deleted": str(image)}, {"Deleted": str(chain_id([base, top]))}]
    assert rooms.layers.has(base)


async def test_by_id_with_several_repositories_needs_force(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x", "y")

    with pytest.raises(Conflict) as refused:
        await delete_image(rooms, image.short)
    assert refused.value.message == (
        f"conflict: unable to delete {image.short} (must be forced) - image is referenced in multiple repositories"
    )
    report = await delete_image(rooms, image.short, force=True)
    assert report[:3] == [{"Untagged": "x:latest"}, {"Untagged": "y:latest"}, {"Deleted": str(image)}]


async def test_by_id_two_tags_of_one_repository_need_force_too(rooms: Rooms) -> None:
    """As in dockerd: only a single tag goes with its ID."""
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1", "x:2")

    with pytest.raises(Conflict):
        await delete_image(rooms, str(image))


async def test_by_id_one_tag_and_its_digest_go_together(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1")
    digest = Reference.parse("x").with_digest(image)
    rooms.images.tag(digest, image)

    report = await delete_image(rooms, image.hex[:6])
    assert report[:3] == [{"Untagged": "x:1"}, {"Untagged": f"x@{image}"}, {"Deleted": str(image)}]


async def test_with_the_last_tag_of_a_repository_its_digests_go(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1", "y:1")
    rooms.images.tag(Reference.parse("x").with_digest(image), image)

    assert await delete_image(rooms, "x:1") == [{"Untagged": "x:1"}, {"Untagged": f"x@{image}"}]
    assert rooms.images.get(image).repo_tags == ["y:1"]


async def test_a_digest_name_alone_is_taken_away(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x:1")
    rooms.images.tag(Reference.parse("x").with_digest(image), image)

    assert await delete_image(rooms, f"x@{image}") == [{"Untagged": f"x@{image}"}]
    assert rooms.images.get(image).repo_tags == ["x:1"]


@pytest.mark.parametrize("force", [False, True])
async def test_a_running_container_holds_its_image(rooms: Rooms, force: bool) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x")
    box = container_of(rooms, image, "c", state=State.RUNNING)

    with pytest.raises(Conflict) as refused:
        await delete_image(rooms, image.hex, force=force)
    assert refused.value.message == (
        f"conflict: unable to delete {image.short} (cannot be forced) - image is being used by running container "
        f"{box.record.short}"
    )
    assert rooms.images.get(image).repo_tags == ["x:latest"]


async def test_a_stopped_container_holds_its_image_unless_forced(rooms: Rooms) -> None:
    image = await image_of(rooms, [layer := await layer_of(rooms, {"a": b"1"})], "x")
    box = container_of(rooms, image, "c")

    with pytest.raises(Conflict) as by_name:
        await delete_image(rooms, "x")
    assert by_name.value.message == (
        f'conflict: unable to remove repository reference "x" (must force) - container {box.record.short} is using '
        f"its referenced image {image.short}"
    )
    with pytest.raises(Conflict, match=r"\(must be forced\) - image is being used by stopped container"):
        await delete_image(rooms, image.hex)
    report = await delete_image(rooms, "x", force=True)
    assert report == [{"Untagged": "x:latest"}, {"Deleted": str(image)}]
    assert rooms.layers.has(layer), "the container still stands on it"


async def test_forced_by_name_while_running_only_untags(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x")
    container_of(rooms, image, "c", state=State.RUNNING)

    assert await delete_image(rooms, "x", force=True) == [{"Untagged": "x:latest"}]
    assert rooms.images.has(image)


async def test_nameless_parents_go_with_their_last_child(rooms: Rooms) -> None:
    base, top = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    parent = await image_of(rooms, [base])
    child = await image_of(rooms, [base, top], "x", parent=parent)

    with pytest.raises(Conflict, match=r"\(cannot be forced\) - image has dependent child images"):
        await delete_image(rooms, parent.hex, force=True)
    report = await delete_image(rooms, "x")
    assert [row for row in report if row.get("Deleted") in (str(child), str(parent))] == [
        {"Deleted": str(child)}, {"Deleted": str(parent)},
    ]  # fmt: skip
    assert rooms.images.count() == 0


async def test_noprune_and_named_parents_stay(rooms: Rooms) -> None:
    base, top = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    parent = await image_of(rooms, [base])
    await image_of(rooms, [base, top], "x", parent=parent)

    await delete_image(rooms, "x", prune_parents=False)
    assert rooms.images.has(parent)


async def test_unknown_and_nonsense_names(rooms: Rooms) -> None:
    with pytest.raises(NotFound, match="No such image: nope:latest"):
        await delete_image(rooms, "nope")
    with pytest.raises(InvalidInput, match="invalid reference format"):
        await delete_image(rooms, "a b")


async def test_prune_takes_what_nothing_names_and_nothing_uses(rooms: Rooms) -> None:
    named = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x")
    used = await image_of(rooms, [await layer_of(rooms, {"b": b"2"})])
    container_of(rooms, used, "c")
    loose = await image_of(rooms, [await layer_of(rooms, {"c": b"3" * 9000})])

    report, reclaimed = await prune_images(rooms, {})
    assert {"Deleted": str(loose)} in report and reclaimed > 9000
    assert rooms.images.has(named) and rooms.images.has(used)

    report, _ = await prune_images(rooms, {"dangling": ["false"]})
    assert {"Deleted": str(named)} in report and rooms.images.has(used)
    assert actions(rooms)[-1] == ("image", "prune")


async def test_prune_leaves_what_is_named_meanwhile(rooms: Rooms) -> None:
    """What a name has come to while it waited, on this image or on one before."""
    layers = [await layer_of(rooms, {"a": bytes([at])}) for at in range(2)]
    found = [await image_of(rooms, [layer]) for layer in layers]

    async with rooms.layers.holding(layers):
        pruning = asyncio.ensure_future(prune_images(rooms, {}))
        await asyncio.sleep(0)
        for at, image in enumerate(found):
            tag_image(rooms, image.text, Reference.parse(f"kept:{at}"))
    report, _ = await pruning

    assert report == [] and all(rooms.images.get(image).repo_tags for image in found)


async def test_prune_leaves_what_a_journey_is_about_to_name(rooms: Rooms) -> None:
    image = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})])
    async with rooms.leases.hold() as lease:
        lease.add("image", image)
        assert await prune_images(rooms, {}) == ([], 0)
        rooms.images.tag(Reference.parse("x"), image)

    assert rooms.images.get(image).repo_tags == ["x:latest"]


async def test_prune_takes_what_a_failed_journey_left(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    left = await layer_of(rooms, {"a": b"1" * 9000})

    assert await prune_images(rooms, {}) == ([], 0), "it may be needed in a moment"
    monkeypatch.setattr(imageprune, "GARBAGE_AGE_NS", -1)
    _, reclaimed = await prune_images(rooms, {})
    assert reclaimed > 9000 and not rooms.layers.has(left)


async def test_prune_filters(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    kept = await image_of(rooms, [layer], config={"Labels": {"keep": "yes"}})
    old = await image_of(rooms, [layer], created="2001-01-01T00:00:00Z")

    await prune_images(rooms, {"label!": ["keep"], "until": ["2002-01-01T00:00:00Z"]})
    assert rooms.images.has(kept) and not rooms.images.has(old)
    with pytest.raises(InvalidInput, match="invalid filter 'bogus'"):
        await prune_images(rooms, {"bogus": ["1"]})
    with pytest.raises(InvalidInput, match=r"invalid filter 'dangling=\[maybe\]'"):
        await prune_images(rooms, {"dangling": ["maybe"]})


async def test_tagging_moves_and_tells(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    first, second = await image_of(rooms, [layer], "x"), await image_of(rooms, [layer], author="me")

    tag_image(rooms, second.text, parse_target("docker.io/library/x", "latest"))
    assert rooms.images.resolve("x") == second and rooms.images.get(first).repo_tags == []
    event = rooms.events.since(0)[-1]
    assert (event.action, event.actor_id, event.attributes["name"]) == ("tag", str(second), "x:latest")


@pytest.mark.parametrize(
    ("repository", "tag", "message"),
    [
        ("X", "1", "must be lowercase"),
        ("x", "a b", "invalid tag format"),
        ("x@sha256:" + "0" * 64, "", "cannot import digest reference"),
        ("sha256", "1", "refusing to create an ambiguous tag using digest algorithm as name"),
    ],
)
def test_bad_targets(repository: str, tag: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_target(repository, tag)
