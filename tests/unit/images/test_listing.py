"""images, inspect and history: filters, shapes by API version, and their cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_testing.rooms import image_of, layer_of
from ketch_wire.faults import InvalidInput, NotFound
from ketchd.engine.imagelist import image_history, inspect_image, list_images
from ketchd.engine.platforms import image_for, read_platform
from ketchd.engine.rooms import Rooms
from ketchd.model.pathmatch import matches
from ketchd.model.reference import Reference

NEW, OLD = (1, 50), (1, 42)


def names(rows: list[dict[str, object]]) -> list[object]:
    return [row["RepoTags"] for row in rows]


async def test_newest_first_and_their_shape(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    await image_of(rooms, [layer], "old", created="2020-01-01T00:00:00Z")
    new = await image_of(rooms, [layer], "new", created="2024-01-01T00:00:00Z", config={"Labels": {"k": "v"}})

    rows = list_images(rooms, {}, NEW)
    assert names(rows) == [["new:latest"], ["old:latest"]]
    assert rows[0] == {
        "Containers": -1, "Created": 1704067200, "Id": str(new), "Labels": {"k": "v"}, "ParentId": "",
        "RepoDigests": [], "RepoTags": ["new:latest"], "SharedSize": -1, "Size": rooms.layers.record(layer).disk_size,
    }  # fmt: skip
    assert rows[1]["Labels"] is None


async def test_an_image_of_gos_zero_time(rooms: Rooms) -> None:
    """As ko, jib and bazel make them: listed and shown as dockerd does, and the last in the list."""
    layer = await layer_of(rooms, {"a": b"1"})
    entry = {"created": "0001-01-01T00:00:00Z", "created_by": "ko"}
    await image_of(rooms, [layer], "zero", created=entry["created"], history=[entry])
    await image_of(rooms, [layer], "old", created="1970-01-01T00:00:00Z")

    rows = list_images(rooms, {}, NEW)
    assert [(row["RepoTags"], row["Created"]) for row in rows] == [
        (["old:latest"], 0),
        (["zero:latest"], -62135596800),
    ]
    assert inspect_image(rooms, "zero", NEW)["Created"] == "0001-01-01T00:00:00Z"
    assert image_history(rooms, "zero", None)[0]["Created"] == -62135596800


async def test_older_clients_see_their_shapes(rooms: Rooms) -> None:
    await image_of(rooms, [await layer_of(rooms, {"a": b"1"})])

    (row,) = list_images(rooms, {}, OLD)
    assert (row["RepoTags"], row["RepoDigests"]) == (["<none>:<none>"], ["<none>@<none>"])
    assert row["VirtualSize"] == row["Size"]
    assert list_images(rooms, {}, (1, 43))[0]["RepoTags"] == []


async def test_intermediate_images_are_hidden_unless_asked(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    parent = await image_of(rooms, [layer])
    await image_of(rooms, [layer], "x", parent=parent, author="b")

    assert names(list_images(rooms, {}, NEW)) == [["x:latest"]]
    assert len(list_images(rooms, {}, NEW, everything=True)) == 2


async def test_filters(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    await image_of(rooms, [layer], "me/a:1", "me/a:2", created="2020-01-01T00:00:00Z")
    await image_of(
        rooms, [layer], "reg.io/b", created="2021-01-01T00:00:00Z", config={"Labels": {"k": "v", "l": ""}}
    )
    loose = await image_of(rooms, [layer], created="2022-01-01T00:00:00Z")

    def found(**filters: list[str]) -> list[object]:
        return names(list_images(rooms, filters, NEW))

    assert found(reference=["me/*"]) == [["me/a:1", "me/a:2"]]
    assert found(reference=["me/a:2"]) == [["me/a:2"]]
    assert found(reference=["*"]) == []
    assert found(reference=["*/b"]) == [["reg.io/b:latest"]]
    assert found(label=["k=v", "l"]) == [["reg.io/b:latest"]]
    assert found(label=["k=w"]) == []
    assert found(before=["reg.io/b"]) == [["me/a:1", "me/a:2"]]
    assert found(since=["reg.io/b"]) == [[]]
    assert found(until=["2020-06-01T00:00:00Z"]) == [["me/a:1", "me/a:2"]]
    assert [row["Id"] for row in list_images(rooms, {"dangling": ["true"]}, NEW)] == [str(loose)]
    assert [] not in found(dangling=["false"])
    for bad in ({"nope": ["1"]}, {"dangling": ["x"]}, {"reference": ["["]}):
        with pytest.raises(InvalidInput):
            list_images(rooms, bad, NEW)
    with pytest.raises(NotFound):
        found(before=["nope"])


async def test_shared_size_counts_layers_of_several_images(rooms: Rooms) -> None:
    shared, own = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    await image_of(rooms, [shared], "x")
    await image_of(rooms, [shared, own], "y")

    sizes = {row["RepoTags"][0]: row["SharedSize"] for row in list_images(rooms, {}, NEW, shared_size=True)}
    disk_size = rooms.layers.record(shared).disk_size
    assert sizes == {"x:latest": disk_size, "y:latest": disk_size}


async def test_inspect_by_version(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})
    config = {"Cmd": ["sh"], "Env": ["A=b"], "Labels": {}, "Hostname": "h"}
    image = await image_of(rooms, [layer], "x", config=config, author="me", variant="v2")

    shown = inspect_image(rooms, "x", NEW)
    assert shown["Config"] == {"Cmd": ["sh"], "Env": ["A=b"]}
    assert shown["RootFS"] == {"Type": "layers", "Layers": [str(layer)]}
    assert (shown["Author"], shown["Variant"], shown["Id"]) == ("me", "v2", str(image))
    assert shown["Metadata"]["LastTagTime"].startswith("20")
    assert not {"VirtualSize", "ContainerConfig", "Container"} & shown.keys()
    older = inspect_image(rooms, "x", (1, 43))
    assert older["VirtualSize"] == older["Size"]
    assert older["Config"]["AttachStdin"] is False and older["ContainerConfig"]["Cmd"] is None


async def test_history_names_what_is_here(rooms: Rooms) -> None:
    base, top = await layer_of(rooms, {"a": b"1"}), await layer_of(rooms, {"b": b"2"})
    lines = [
        {"created": "2020-01-01T00:00:00Z", "created_by": "ADD"},
        {"created": "2020-01-01T00:00:01Z", "created_by": "CMD", "empty_layer": True, "comment": "c"},
        {"created": "2020-01-01T00:00:02Z", "created_by": "RUN"},
        {"created_by": "more than there are layers"},
    ]
    parent = await image_of(rooms, [base], "base")
    image = await image_of(rooms, [base, top], "x", parent=parent, history=lines)

    rows = image_history(rooms, "x")
    assert [row["CreatedBy"] for row in rows] == ["more than there are layers", "RUN", "CMD", "ADD"]
    assert [row["Id"] for row in rows] == [str(image), str(parent), "<missing>", "<missing>"]
    assert [row["Tags"] for row in rows] == [["x:latest"], ["base:latest"], None, None]
    assert [row["Size"] for row in rows] == [
        0, rooms.layers.record(top).disk_size, 0, rooms.layers.record(base).disk_size,
    ]  # fmt: skip


async def test_a_platform_must_be_whole_and_the_images(rooms: Rooms) -> None:
    image_id = await image_of(rooms, [await layer_of(rooms, {"a": b"1"})], "x")

    assert image_for(rooms, "x", read_platform({"os": "linux", "architecture": "amd64"})).id == image_id
    assert image_for(rooms, "x", read_platform({})).id == image_id
    with pytest.raises(InvalidInput, match="both OS and Architecture must be provided"):
        read_platform({"os": "linux"})
    with pytest.raises(NotFound, match=r"x was found but its platform \(linux/amd64\) does not match"):
        image_for(rooms, "x", read_platform({"os": "linux", "architecture": "arm64"}))


async def test_a_list_reads_no_config(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a row is the catalogue's alone."""
    layer = await layer_of(rooms, {"a": b"1"})
    for number in range(20):
        await image_of(rooms, [layer], f"x:{number}", author=str(number))
    monkeypatch.setattr(rooms.blobs, "read", lambda digest: pytest.fail("a blob was read"))
    monkeypatch.setattr(rooms.images, "config", lambda digest: pytest.fail("a config was read"))

    assert len(list_images(rooms, {"reference": ["x:1*"]}, NEW)) == 11


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("a*c", "abc", True), ("a*c", "a/c", False), ("a?c", "a/c", False), ("[a-c]x", "bx", True), ("[^a]x", "bx", True),
        ("[^a]x", "ax", False), ("\\*", "*", True), ("\\*", "a", False), ("a", "ab", False), ("[a]]", "a]", True),
    ],
)  # fmt: skip
def test_path_match_as_go_does(text: str, name: str, expected: bool) -> None:
    assert matches(text, name) is expected


@given(st.text(alphabet="ab*?[]^-\\/", max_size=12), st.text(alphabet="ab/-", max_size=8))
def test_any_pattern_gives_an_answer_or_a_fault(text: str, name: str) -> None:
    try:
        matches(text, name)
    except InvalidInput as fault:
        assert fault.message == "syntax error in pattern"


@given(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?:[a-z0-9]{1,8}", fullmatch=True))
def test_a_name_matches_itself(name: str) -> None:
    assert matches(Reference.parse(name).familiar(), Reference.parse(name).familiar())
