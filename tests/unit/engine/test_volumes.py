"""Volumes: made once, removed only when nobody mounts them, never a mount on the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ketch_wire.faults import Conflict, Fault, InvalidInput, NotFound, Unsupported
from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal
from ketchd.engine.volumes import ANONYMOUS_LABEL, VolumeMount, Volumes, parse_mount


@pytest.fixture
def users() -> dict[str, list[str]]:
    """Volume -> containers that mount it."""
    return {}


@pytest.fixture
def volumes(tmp_path: Path, users: dict[str, list[str]]) -> Iterator[Volumes]:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    (tmp_path / "stage").mkdir()
    yield Volumes(tmp_path, catalogue, EventJournal(catalogue), lambda name: users.get(name, []))
    catalogue.close()


async def test_a_volume_is_made_once(volumes: Volumes) -> None:
    """The second request for a name gets the first volume, labels and content untouched."""
    first = await volumes.create("data", labels={"a": "b"})
    (first.mountpoint / "file").write_text("kept")
    again = await volumes.create("data", labels={"other": "label"})
    assert again == first and (again.mountpoint / "file").read_text() == "kept"
    assert first.mountpoint.stat().st_mode & 0o777 == 0o755
    assert [one.name for one in volumes.list()] == ["data"]
    assert volumes.inspect("data")["Labels"] == {"a": "b"} and volumes.inspect("data")["Options"] is None


async def test_without_a_name_it_is_anonymous(volumes: Volumes) -> None:
    """64 hex digits, Docker's label, gone by a prune that leaves named ones."""
    anonymous, named = await volumes.create(""), await volumes.create("named")
    assert len(anonymous.name) == 64 and anonymous.labels == {ANONYMOUS_LABEL: ""} and anonymous.anonymous
    (anonymous.mountpoint / "file").write_bytes(bytes(1000))
    removed, won = await volumes.prune(lambda volume: volume.anonymous)
    assert (removed, won) == ([anonymous.name], 1000)
    assert volumes.list() == [named] and not anonymous.mountpoint.exists()


async def test_what_is_mounted_stays(volumes: Volumes, users: dict[str, list[str]]) -> None:
    """Removal names the containers; force does not help; prune passes by."""
    volume = await volumes.create("busy")
    users["busy"] = ["c" * 64]
    for force in (False, True):
        with pytest.raises(Conflict, match=r"remove busy: volume is in use - \[c+\]"):
            await volumes.remove("busy", force=force)
    assert await volumes.prune(lambda _: True) == ([], 0)
    users.clear()
    await volumes.remove("busy")
    assert not volume.mountpoint.parent.exists()


async def test_what_a_container_is_made_with_stays(volumes: Volumes) -> None:
    """It is not recorded before its volumes are filled."""
    await volumes.create("coming")
    async with volumes.held_for("d" * 64) as names:
        names.add("coming")
        with pytest.raises(Conflict, match=r"remove coming: volume is in use - \[d+\]"):
            await volumes.remove("coming", force=True)
        assert await volumes.prune(lambda _: True) == ([], 0)
    assert await volumes.prune(lambda _: True) == (["coming"], 0)


async def test_what_is_not_there(volumes: Volumes) -> None:
    """Docker's words, unless it is forced."""
    with pytest.raises(NotFound, match="get nothing: no such volume"):
        await volumes.remove("nothing")
    await volumes.remove("nothing", force=True)


@pytest.mark.parametrize("name", ["a b", "../x", "-a", "a/b", ".hidden", "x", "a" * 300, "é" * 3])
async def test_names_that_cannot_be(volumes: Volumes, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"includes invalid characters|too short"):
        await volumes.create(name)


async def test_other_drivers_are_refused(volumes: Volumes) -> None:
    with pytest.raises(NotFound, match='error looking up volume plugin nfs: plugin "nfs" not found'):
        await volumes.create("v2", driver="nfs")


async def test_options_of_a_volume_that_is_there(volumes: Volumes) -> None:
    """Wrong ones are refused by its name; others than its own change nothing, as in dockerd."""
    made = await volumes.create("v3")
    assert await volumes.create("v3", options={"type": "tmpfs", "device": "tmpfs"}) == made
    assert volumes.get("v3").options == {}
    with pytest.raises(InvalidInput, match='create v3: invalid option: "size"'):
        await volumes.create("v3", options={"size": "1m"})


async def test_user_data_without_a_record_is_not_overwritten(volumes: Volumes, tmp_path: Path) -> None:
    """A directory that the catalogue does not know and that has something in it is never taken over."""
    (tmp_path / "volumes" / "mine" / "_data").mkdir(parents=True)
    (tmp_path / "volumes" / "mine" / "_data" / "file").write_text("precious")
    with pytest.raises(Fault):
        await volumes.create("mine")
    assert (tmp_path / "volumes" / "mine" / "_data" / "file").read_text() == "precious"
    assert not any((tmp_path / "stage").iterdir())


@pytest.mark.parametrize(
    ("options", "mount"),
    [
        ({}, None),
        ({"type": "none", "o": "bind", "device": "/srv/../data"}, VolumeMount("bind", "/data", ())),
        ({"o": "bind,ro", "device": "/data"}, VolumeMount("bind", "/data", ("ro",))),
        ({"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=5"}, VolumeMount("tmpfs", "tmpfs", ("size=1m", "uid=5"))),
        ({"type": "tmpfs", "device": "tmpfs"}, VolumeMount("tmpfs", "tmpfs", ("rw",))),
    ],
)  # fmt: skip
def test_driver_options(options: dict[str, str], mount: VolumeMount | None) -> None:
    """What the container itself can mount."""
    assert parse_mount(options) == mount


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"size": "1m"}, InvalidInput),
        ({"type": "tmpfs"}, InvalidInput),
        ({"device": "/data"}, InvalidInput),
        ({"type": "none", "o": "bind", "device": "relative"}, InvalidInput),
        ({"type": "nfs", "o": "addr=1.2.3.4", "device": ":/x"}, Unsupported),
        ({"type": "ext4", "device": "/dev/sda1"}, Unsupported),
    ],
)
def test_driver_options_that_are_refused(options: dict[str, str], fault: type[Fault]) -> None:
    """Refused when the volume is made, not when a container starts."""
    with pytest.raises(fault):
        parse_mount(options)
