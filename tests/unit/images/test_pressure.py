"""What goes when the disk fills: the decision, and what is really deleted by it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_testing.rooms import image_of, layer_of, tar_of
from ketch_wire.faults import InvalidInput
from ketchd import config
from ketchd.build.cache import Cached
from ketchd.content.cleanmark import CleanMark
from ketchd.content.pressure import Candidate, Class, Disk, Policy, decide, read_policy
from ketchd.engine.buildcache import cache_usage
from ketchd.engine.diskusage import content_size
from ketchd.engine.gc import collect, show
from ketchd.engine.imageprune import prune_images
from ketchd.engine.lastcommitted import Recorded, check_last_committed, choose
from ketchd.engine.rooms import Rooms
from ketchd.engine.transfers import _Shared
from ketchd.model.digest import Digest
from ketchd.registry.partial import leftovers

HOUR = 3600 * 1_000_000_000
NOW = 1000 * HOUR
GB = 10**9
FULL, ROOMY = Disk(100 * GB, 8 * GB), Disk(100 * GB, 40 * GB)


def one(key: str, size: int, hours: float, **more: Any) -> Candidate:
    """A candidate that was used `hours` ago."""
    return Candidate("x", key, size * GB, NOW - int(hours * HOUR), **more)


EVERYTHING: dict[Class, list[Candidate]] = {
    "garbage": [one("dead", 1, 5), one("fresh", 1, 0.5)],
    "blob": [one("lone", 2, 90, rank=1), one("new", 2, 1), one("old", 2, 70)],
    "cache": [one("cold", 5, 100), one("warm", 5, 3)],
}
USED: dict[Class, int] = {"blob": 6 * GB, "cache": 10 * GB}


def keys(*arguments: Any, **more: Any) -> list[str]:
    return [deletion.candidate.key for deletion in decide(*arguments, NOW, **more)]


def test_nothing_goes_while_there_is_room() -> None:
    assert keys(Policy(), ROOMY, EVERYTHING, USED) == []
    assert keys(Policy(), Disk(0, 0), EVERYTHING, USED) == []
    assert keys(Policy(low=0, high=0), Disk(100 * GB, 0), EVERYTHING, USED) == []


def test_a_user_who_asks_is_rid_of_garbage() -> None:
    (deletion,) = decide(Policy(), ROOMY, EVERYTHING, USED, NOW, asked=True)

    assert deletion.candidate.key == "dead"
    assert deletion.reason == "nothing needs it, and nobody used it for 5 hours"


def test_the_cheapest_loss_first_and_no_more_than_needed() -> None:
    """8 % are free: 1 GB of garbage, then blobs that can come again, the longest unused first, until 15 % are."""
    assert keys(Policy(), FULL, EVERYTHING, USED) == ["dead", "old", "new", "lone"]
    assert keys(Policy(high=12), FULL, EVERYTHING, USED) == ["dead", "old", "new"]
    assert keys(Policy(high=30), FULL, EVERYTHING, USED) == ["dead", "old", "new", "lone", "cold"]
    reasons = [deletion.reason for deletion in decide(Policy(high=30), FULL, EVERYTHING, USED, NOW)]
    assert (
        reasons[1]
        == "8.0 % of the disk was free, less than 10 %: its layer is unpacked here, not used for 70 hours"
    )
    assert reasons[4].endswith("less than 10 %: a build makes it again, not used for 4 days")


def test_downloads_that_ended_early_go_by_age_and_budget_and_before_compressed_layers() -> None:
    """With a reason each; what is younger stays as long as there is room for it."""
    partials = {"partial": [one("p-old", 1, 200), one("p-mid", 3, 50), one("p-new", 3, 1)], **EVERYTHING}
    used = {"partial": 7 * GB, **USED}

    (aged,) = decide(Policy(), ROOMY, partials, used, NOW)
    assert aged.candidate.key == "p-old"
    assert aged.reason == "the download ended early, and nobody went on with it for 8 days"
    over = decide(Policy(partial_bytes=4 * GB, partial_hours=1000), ROOMY, partials, used, NOW)
    assert [found.candidate.key for found in over] == ["p-old", "p-mid"]
    assert (
        over[1].reason == "what has arrived of downloads that ended early takes 6.0 GB, its budget is 4.0 GB"
    )
    assert keys(Policy(), FULL, partials, used)[:4] == ["dead", "p-old", "p-mid", "p-new"]


def test_budgets_hold_at_any_time() -> None:
    policy = Policy(blob_bytes=3 * GB, cache_bytes=6 * GB)

    assert keys(policy, ROOMY, EVERYTHING, USED) == ["old", "new", "cold"]
    reason = decide(policy, ROOMY, EVERYTHING, USED, NOW)[2].reason
    assert reason == "the build cache takes 10.0 GB, its budget is 6.0 GB"


@given(
    st.integers(0, 100), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 200)), max_size=8),
    st.floats(0, 50), st.floats(0, 50),
)  # fmt: skip
def test_it_stops_where_it_was_to_stop(
    free: int, found: list[tuple[int, int]], low: float, more: float
) -> None:
    """Never a blob beyond the high mark, nothing above the low one; everything has a reason."""
    blobs = [one(str(number), size, hours) for number, (size, hours) in enumerate(found)]
    policy, disk = Policy(low=low, high=low + more), Disk(100 * GB, free * GB)

    deletions = decide(policy, disk, {"blob": blobs}, {}, NOW)

    assert not deletions or disk.percent < low
    before_last = free * GB + sum(deletion.candidate.size for deletion in deletions[:-1])
    assert not deletions or before_last < disk.total * policy.high / 100
    assert all(deletion.reason for deletion in deletions)


def test_the_policy_is_read() -> None:
    assert read_policy({}) == Policy()
    sent = {
        "low": 5,
        "high": 20.5,
        "blob-budget": "20G",
        "cache-budget": 5000,
        "cache-hours": 12,
        "interval": 0,
    }
    assert read_policy(sent) == Policy(
        low=5, high=20.5, blob_bytes=20 << 30, cache_bytes=5000, cache_hours=12, interval_seconds=0
    )
    assert read_policy({"low": 30}).high == 30


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"lo": 5}, "ketch.gc has no setting lo"), ({"low": "5"}, "low is no number"), ({"low": True}, "low is no number"),
        ({"low": 20, "high": 10}, "low not above high"), ({"high": 101}, "are percentages"),
        ({"blob-budget": "much"}, "blob-budget is no size"), ({"cache-budget": -1}, "cache-budget is no size"),
    ],
)  # fmt: skip
def test_a_bad_policy_is_refused_by_name(sent: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_policy(sent)


def test_the_configuration_file_has_it(tmp_path: Any) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"ketch": {"gc": {"low": 5}}}')
    assert config.read(["--config-file", str(path)]).config.ketch == {"gc": {"low": 5}}
    for wrong, words in (
        ("[]", "object of objects"),
        ('{"gcc": {}}', "nothing is called gcc"),
        ('{"gc": 1}', "object of objects"),
    ):
        path.write_text(f'{{"ketch": {wrong}}}')
        with pytest.raises(InvalidInput, match=words):
            config.read(["--config-file", str(path)])


# -- what is really deleted


async def blob_of(rooms: Rooms, layer: Digest, content: bytes, *, source: str = "") -> Digest:
    """A compressed form of a layer, as the store sees one."""
    digest = await rooms.blobs.put(content, "application/vnd.oci.image.layer.v1.tar+gzip")
    rooms.blobs.relate(layer, digest, "application/vnd.oci.image.layer.v1.tar+gzip", len(content))
    if source:
        rooms.blobs.add_source(digest, source)
    return digest


async def test_blobs_of_unpacked_layers_go_and_what_is_known_of_them_stays(rooms: Rooms) -> None:
    """Image, config and layer stay; a leased blob too."""
    layer = await layer_of(rooms, {"a": b"1"})
    image = await image_of(rooms, [layer], "x:1")
    blob = await blob_of(rooms, layer, b"compressed", source="reg.example/x")
    held = await blob_of(rooms, layer, b"in use")
    async with rooms.leases.hold() as lease:
        lease.add("blob", held)
        would = await collect(rooms, Policy(), disk=FULL, dry_run=True)
        assert rooms.blobs.has(blob)
        gone = await collect(rooms, Policy(), disk=FULL)

    assert [one.candidate.key for one in gone] == [str(blob)] == [one.candidate.key for one in would]
    assert not rooms.blobs.has(blob) and rooms.blobs.has(held) and rooms.blobs.has(image)
    assert rooms.layers.has(layer) and rooms.blobs.sources(blob) == ["reg.example/x"]
    assert blob in {form.digest for form in rooms.blobs.of_layer(layer)}
    shown = show(gone, FULL, dry_run=False)
    assert shown["SpaceReclaimed"] == 10 and "its layer is unpacked here" in shown["Deleted"][0]["Reason"]


async def test_old_results_of_builds_go_and_young_ones_stay(rooms: Rooms) -> None:
    cache = rooms.cache
    layers = [await layer_of(rooms, {"a": text}) for text in (b"old", b"new", b"shared")]
    for number, layer in enumerate(layers):
        cache.store(Cached(f"k{number}", 1, str(layer), "", []), parent="", description="RUN x")  # type: ignore[arg-type]
    await image_of(rooms, [layers[2]], "x:1")
    with rooms.catalogue.transaction() as connection:
        connection.execute("UPDATE build_cache SET last_used_ns = 1 WHERE key != 'k1'")

    gone = await collect(rooms, Policy(), disk=FULL)

    assert [one.candidate.key for one in gone] == ["k0"]
    assert [rooms.layers.has(layer) for layer in layers] == [False, True, True]


async def test_a_cache_mount_in_use_stays_however_short_its_time(rooms: Rooms) -> None:
    """A step that runs has it: its age and its size say nothing."""
    policy, cache = Policy(cache_hours=0, cache_bytes=1), rooms.cache
    path, _ = cache.open_mount("used", "cached mount /c", 0o755, 0, 0)
    with rooms.catalogue.transaction() as connection:
        connection.execute("UPDATE build_cache SET last_used_ns = 1, size = 4096")
    assert [row["InUse"] for row in cache_usage(rooms, (1, 50))] == [True]
    assert await collect(rooms, policy, disk=FULL) == [] and path.is_dir()

    cache.close_mount("used", 4096)
    assert [row["InUse"] for row in cache_usage(rooms, (1, 50))] == [False]
    assert [one.candidate.key for one in await collect(rooms, policy, disk=FULL)] == ["used"]
    assert not path.exists()


async def test_what_has_arrived_of_a_download_is_counted_and_goes(rooms: Rooms) -> None:
    """As the policy says, or by a prune when it is not of these minutes; not while somebody goes on with it."""
    directory, now = rooms.data_root / "partial", time.time()
    digests = [Digest.of(bytes([number])) for number in range(3)]
    before = content_size(rooms)

    def arrive() -> None:
        for hours, digest in zip((200, 2, 0), digests, strict=True):
            partial = directory / digest.hex
            partial.parent.mkdir(exist_ok=True)
            partial.write_bytes(bytes(40960))
            partial.with_name(f"{digest.hex}.map").write_bytes(b"0 40960\n")
            for path in (partial, partial.with_name(f"{digest.hex}.map")):
                os.utime(path, (now - hours * 3600, now - hours * 3600))

    arrive()
    assert content_size(rooms) - before >= 3 * 40960
    gone = await collect(rooms, Policy(), disk=ROOMY, asked=False)
    assert [(deletion.candidate.kind, deletion.candidate.key) for deletion in gone] == [
        ("partial", str(digests[0]))
    ]
    assert sorted(os.listdir(directory)) == sorted(
        name for digest in digests[1:] for name in (digest.hex, f"{digest.hex}.map")
    )
    arrive()
    rooms.transfers._shared[digests[0]] = _Shared(True)
    report, reclaimed = await prune_images(rooms, {})
    assert report == [] and reclaimed >= 40960
    assert {one.digest for one in leftovers(directory)} == {digests[0], digests[2]}
    assert not rooms.transfers.forget(digests[0])


async def test_garbage_goes_when_asked(rooms: Rooms) -> None:
    layer = await layer_of(rooms, {"a": b"1"})

    assert await collect(rooms, Policy(), disk=ROOMY) == []
    gone = await collect(rooms, Policy(garbage_hours=0), disk=ROOMY)
    assert [one.candidate.key for one in gone] == [str(layer)] and not rooms.layers.has(layer)


# -- unclean ends


def test_an_unclean_end_is_known_until_it_was_looked_into(tmp_path: Any) -> None:
    mark = CleanMark(tmp_path)
    assert mark.begin() is None
    mark.end()
    mark.end()
    assert CleanMark(tmp_path).begin() is None
    first = CleanMark(tmp_path).begin()
    assert first is not None
    mark.beat()
    second = CleanMark(tmp_path)
    found = second.begin()
    assert (
        found is not None and found.seen_seconds == first.seen_seconds
    )  # killed again before the check was over
    second.end()
    assert CleanMark(tmp_path).begin() is not None
    second.checked()
    second.end()
    assert CleanMark(tmp_path).begin() is None


def test_on_a_full_disk_an_unclean_end_is_told_to_the_next_daemon_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is not lost with the room for it."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    CleanMark(tmp_path).begin()
    os.utime(tmp_path / "running", (1000, 1000))
    mark = CleanMark(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr("ketchd.content.cleanmark.os.write", full)
        found = mark.begin()
    assert found is not None and found.seen_seconds == 1000
    mark.beat()
    mark.end()
    again = CleanMark(tmp_path).begin()
    assert again is not None and again.seen_seconds == 1000


def test_the_newest_are_checked_up_to_a_limit() -> None:
    recorded = [Recorded("blob", str(number), 10, number) for number in range(10)]

    assert choose(recorded, 11, 100) == ([], 0)
    chosen, left = choose(recorded, 4, 35)
    assert ([one.key for one in chosen], left) == (["9", "8", "7"], 3)
    assert [one.key for one in choose(recorded, 0, 1)[0]] == ["9"]


async def test_what_came_last_is_checked_and_mended(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer nobody needs is forgotten, one with a sound blob is made again; what is older is not read."""
    said: list[dict[str, Any]] = []

    class Log:
        def warning(self, text: str, **values: Any) -> None:
            said.append(values)

        def info(self, text: str, **values: Any) -> None:
            said.append(values)

    rooms.log = Log()
    mark = CleanMark(rooms.data_root)
    mark.begin()
    unneeded = await layer_of(rooms, {"a": b"unneeded"})
    layer, content = await layer_of(rooms, {"a": b"needed"}), tar_of({"a": b"needed"})
    await image_of(rooms, [layer], "x:1")
    blob = await blob_of(rooms, layer, content)
    old = await layer_of(rooms, {"a": b"old"})
    with rooms.catalogue.transaction() as connection:
        connection.execute("UPDATE layers SET created_ns = 1 WHERE diff_id = ?", (str(old),))
    for broken in (unneeded, layer, old):
        path = rooms.data_root / "layers/sha256" / broken.hex
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(4096 + 512)
            file.write(b"\xff")

    unclean = CleanMark(rooms.data_root).begin()
    assert unclean is not None and unclean.seen_seconds <= time.time()
    await check_last_committed(rooms, mark, unclean)

    assert not rooms.layers.has(unneeded) and await rooms.layers.verify(layer)
    assert not await rooms.layers.verify(old) and rooms.blobs.has(blob)
    assert {(one["key"], one["repaired"]) for one in said if "key" in one} == {
        (str(unneeded), "forgotten: no image and no container needs it"), (str(layer), "made again from its blob"),
    }  # fmt: skip
    assert said[-1]["bad"] == 2 and CleanMark(rooms.data_root).begin() is not None
    mark.checked()
    mark.end()
