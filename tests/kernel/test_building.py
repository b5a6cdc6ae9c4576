"""Builds over a real layer store: what COPY and ADD put where, what the cache takes and why not, what is left after failures."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.building import Yard, member, tar, yard_at
from ketch_testing.deep import deepen
from ketch_wire.faults import EngineFailure, Fault, InvalidInput
from ketchd.build.cache import BuildCache
from ketchd.build.runner import RunFailed
from ketchd.engine.build import Builder
from ketchd.engine.buildcache import PruneLimits, cache_usage, prune_cache
from ketchd.layers.probe import probe
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest
from ketchd.model.reference import Reference

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for mounts")]
PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:77:88::/:/bin/false\n"
BASE: dict[str, Any] = {
    "bin/": "", "etc/": "", "etc/passwd": PASSWD, "etc/group": "root:x:0:\nweb:x:88:\nstaff:x:50:\n", "usr/": "", "usr/lib/": "",
    "lib": member(tarfile.SYMTYPE, link="usr/lib"), "dangling": member(tarfile.SYMTYPE, link="/nowhere"), "flink": member(tarfile.SYMTYPE, link="file"), "file": "a file",
    "private": member(tarfile.DIRTYPE, mode=0o700, uid=5, gid=6),
}  # fmt: skip


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    """A builder with `busybox` on layers of the best kind; nothing may be left in the stage."""
    with tempfile.TemporaryDirectory(prefix="ketch-build-") as directory:
        workers = WorkerPool(1)
        try:
            kind, _ = await probe(workers, Path(directory) / "probe")
        finally:
            await workers.close()
        async with yard_at(Path(directory), kind) as made:
            await made.base_image("busybox", BASE, Cmd=["sh"], Env=["PATH=/bin"])
            yield made
            assert made.leftovers() == []


CONTEXT: dict[str, Any] = {
    "a.txt": "A", "b.txt": "B", "dir/": "", "dir/c.txt": "C", "dir/sub/": "", "dir/sub/d.txt": "D",
    "link": member(tarfile.SYMTYPE, link="dir"), "run.sh": member(tarfile.REGTYPE, mode=0o755, uid=1000, gid=1000),
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("COPY a.txt /new", "new"),
        ("COPY a.txt /new/", "new new/a.txt"),
        ("COPY a.txt /usr", "usr usr/a.txt"),
        ("COPY a.txt /lib", "usr usr/lib usr/lib/a.txt"),
        ("COPY a.txt /lib/x", "usr usr/lib usr/lib/x"),
        ("COPY a.txt /flink", "file"),
        ("COPY a.txt /dangling", "nowhere"),
        ("COPY a.txt /dangling/x", "nowhere nowhere/x"),
        ("COPY a.txt b.txt /d/", "d d/a.txt d/b.txt"),
        ("COPY *.txt /d/", "d d/a.txt d/b.txt"),
        ("COPY [ab].txt .", "a.txt b.txt"),
        ("COPY dir /d", "d d/c.txt d/sub d/sub/d.txt"),
        ("COPY dir /d/", "d d/c.txt d/sub d/sub/d.txt"),
        ("COPY dir/ /usr", "usr usr/c.txt usr/sub usr/sub/d.txt"),
        ("COPY d* /d/", "d d/c.txt d/sub d/sub/d.txt"),
        ("COPY link /d", "d d/c.txt d/sub d/sub/d.txt"),
        ("COPY link/c.txt /d/", "d d/c.txt"),
        ("COPY ../../dir/sub /s", "s s/d.txt"),
        ("COPY /dir/../a.txt /s/", "s s/a.txt"),
        ("COPY dir/sub/.. /s/", "s s/c.txt s/sub s/sub/d.txt"),
        ('COPY ["a.txt", "/with space"]', "with space"),
        ("COPY --exclude=sub dir /d", "d d/c.txt"),
        ("COPY --link a.txt /lib/x", "lib lib/x"),
        ("COPY <<one <<two /h/\n1\none\n2\ntwo", "h h/one h/two"),
    ],
)
async def test_where_things_come(yard: Yard, line: str, paths: str) -> None:
    """Destinations, wildcards, links, directories: parents first, nothing else."""
    image_id, _ = await yard.build(f"FROM busybox\n{line}\n", CONTEXT)

    separator = None if "with space" not in paths else "\n"
    assert list(await yard.layer(image_id)) == paths.split(separator)


async def test_metadata(yard: Yard) -> None:
    """Owner 0:0, modes and times as in the context, existing directories as they were, new ones 0755."""
    image_id, _ = await yard.build("FROM busybox\nCOPY run.sh dir /private/new/\n", CONTEXT)
    layer = await yard.layer(image_id)

    assert {name: (entry.mode, entry.uid, entry.gid) for name, entry in layer.items()} == {
        "private": (0o700, 5, 6), "private/new": (0o755, 0, 0), "private/new/run.sh": (0o755, 0, 0),
        "private/new/c.txt": (0o644, 0, 0), "private/new/sub": (0o755, 0, 0), "private/new/sub/d.txt": (0o644, 0, 0),
    }  # fmt: skip
    assert layer["private/new/c.txt"].mtime == 1_700_000_000 and layer["private/new"].mtime == 0


@pytest.mark.parametrize(
    ("chown", "owner"),
    [("web", (77, 88)), ("web:staff", (77, 50)), ("7", (7, 7)), ("7:8", (7, 8)), ("0:staff", (0, 50))],
)
async def test_chown_and_chmod(yard: Yard, chown: str, owner: tuple[int, int]) -> None:
    """Names by the image's own files; both for all that is copied, the owner for new parents too."""
    image_id, _ = await yard.build(f"FROM busybox\nCOPY --chown={chown} --chmod=750 dir /n/d\n", CONTEXT)
    layer = await yard.layer(image_id)

    assert {(entry.uid, entry.gid) for entry in layer.values()} == {owner}
    assert layer["n/d/sub"].mode == layer["n/d/c.txt"].mode == 0o750 and layer["n"].mode == 0o755
    assert f"--chown={chown} dir:" in yard.config(image_id).history[-1].created_by


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("COPY nope /", "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist"),
        ("COPY nope*.x /", "COPY failed: no source files were specified"),
        ("COPY a.txt b.txt /d", "When using COPY with more than one source file, the destination must be a directory and end with a /"),
        ("COPY dir /file", "cannot copy to non-directory: /file"),
        ("COPY a.txt /file/x", "cannot copy to non-directory: /file"),
        ("COPY --chown=nobody a.txt /", "can't find uid for user nobody: no such user: nobody"),
        ("COPY --chown=0:nobody a.txt /", "can't find gid for group nobody: no such group: nobody"),
        ("COPY --from=busybox /nope /", "COPY failed: stat nope: file does not exist"),
        ("COPY .wh.x /", "names that begin with .wh. mean whiteouts"),
        ("WORKDIR /file", "Cannot mkdir: /file is not a directory"),
    ],
)  # fmt: skip
async def test_copy_faults(yard: Yard, line: str, why: str) -> None:
    """dockerd's words, with file, line number and line; no image stays."""
    before = yard.images.count()
    with pytest.raises(Fault) as raised:
        await yard.build(f"FROM busybox\n{line}\n", {**CONTEXT, ".wh.x": ""})

    assert why in raised.value.message
    assert f"(Dockerfile:2: {line})" in raised.value.message
    assert yard.images.count() == before


async def test_hard_links_sparse_files_and_xattrs(yard: Yard) -> None:
    """Links within what is copied stay links; a link to what is not is a copy."""
    files: dict[str, Any] = {"d/": "", "d/one": "shared", "d/two": member(tarfile.LNKTYPE, link="d/one")}
    image_id, _ = await yard.build("FROM busybox\nCOPY d /d\nCOPY d/two /alone\n", files)
    links, alone = await yard.layer(image_id, -2), await yard.layer(image_id)

    assert links["d/two"].islnk() and links["d/two"].linkname == "d/one"
    assert alone["alone"].isreg() and await yard.content(image_id, "alone") == b"shared"


async def test_dockerignore(yard: Yard) -> None:
    """Excluded files are not there; a re-included one brings its directories; the Dockerfile's own ignore file wins."""
    ignore = "dir\n!dir/sub/d.txt\n*.sh\nDockerfile\n"
    image_id, _ = await yard.build("FROM busybox\nCOPY . /x\n", {**CONTEXT, ".dockerignore": ignore})
    names = set(await yard.layer(image_id))

    assert names == {
        "x",
        "x/.dockerignore",
        "x/a.txt",
        "x/b.txt",
        "x/dir",
        "x/dir/sub",
        "x/dir/sub/d.txt",
        "x/link",
    }
    image_id, _ = await yard.build(
        "FROM busybox\nCOPY . /x\n",
        {**CONTEXT, ".dockerignore": "*", "Dockerfile.dockerignore": "*\n!a.txt\n"},
    )
    assert set(await yard.layer(image_id)) == {"x", "x/a.txt"}


def packed(compression: str) -> bytes:
    """An archive as ADD unpacks it."""
    buffer = io.BytesIO()
    mode: Any = f"w:{compression}"
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, kind, link in (
            ("in/", tarfile.DIRTYPE, ""), ("in/z", tarfile.REGTYPE, ""), ("in/a", tarfile.LNKTYPE, "in/z"),
            ("lib/x", tarfile.REGTYPE, ""), ("../out", tarfile.REGTYPE, ""),
        ):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.uid, entry.gid = kind, link, 3, 4
            entry.size = 5 if kind == tarfile.REGTYPE else 0
            if name != "../out":
                archive.addfile(entry, io.BytesIO(b"hello"))
    return buffer.getvalue()


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
async def test_add_unpacks(yard: Yard, compression: str) -> None:
    """By content, not by name: owners as in the archive, links followed where the root has them, COPY does not."""
    files: dict[str, Any] = {"thing": packed(compression), "plain.txt": "no archive"}
    image_id, _ = await yard.build(
        "FROM busybox\nADD thing /\nADD plain.txt thing /d/\nCOPY thing /t\n", files
    )
    unpacked, mixed, copied = [await yard.layer(image_id, at) for at in (-3, -2, -1)]

    assert set(unpacked) == {"in", "in/a", "in/z", "usr", "usr/lib", "usr/lib/x"}
    assert (unpacked["in/z"].uid, unpacked["in/a"].isreg(), unpacked["in/z"].islnk()) == (3, True, True)
    assert await yard.content(image_id, "in/z", -3) == b"hello"
    assert {"d", "d/plain.txt", "d/in", "d/in/z"} <= set(mixed)
    assert list(copied) == ["t"]


async def test_a_hostile_archive_is_refused(yard: Yard) -> None:
    """A member that leaves the root ends the build."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../etc/evil"))
    with pytest.raises(InvalidInput, match="leaves the root"):
        await yard.build("FROM busybox\nADD evil.tar /x/\n", {"evil.tar": buffer.getvalue()})
    with pytest.raises(InvalidInput, match="leaves the root"):
        await yard.build("", body=buffer.getvalue())


async def test_copy_from_a_stage_keeps_owners_and_hits_by_content(yard: Yard) -> None:
    """A stage that is made anew with the same files lets the copy come from the cache."""
    text = "FROM busybox AS one\nRUN touch /made\n{}FROM busybox\nCOPY --from=one /made /private /x/\nCOPY --from=busybox /file /y\n"
    first, _ = await yard.build(text.format(""))
    assert "x" in await yard.layer(first, -2)
    second, said = await yard.build(text.format("RUN touch /other\n"))

    assert first == second
    assert said.count("Using cache") == 3
    assert await yard.content(first, "y") == b"a file"


async def test_a_linked_copy_asks_its_own_base_for_names(yard: Yard) -> None:
    """Numbers come from the cache on any base, a name only where it is explained by the same files."""
    await yard.base_image("other", BASE | {"etc/passwd": PASSWD.replace("77:88", "78:88")})
    owners = []
    for chown in ("web", "7:8"):
        for base in ("busybox", "other"):
            image_id, said = await yard.build(f"FROM {base}\nCOPY --link --chown={chown} a.txt /n\n", CONTEXT)
            owners.append(((await yard.layer(image_id))["n"].uid, "Using cache" in said))

    assert owners == [(77, False), (78, False), (7, False), (7, True)]


async def test_cache_says_why(yard: Yard) -> None:
    """Said once, at the step where it begins, with the input that differs; a first build has nothing to say."""
    text = "FROM busybox\nARG V=1\nCOPY a.txt dir /d/\nRUN touch /x $V\nENV E=1\nRUN touch /y\n"
    _, said = await yard.build(text, CONTEXT)
    assert "miss" not in said
    _, said = await yard.build(text, CONTEXT)
    assert said.count(" ---> Using cache\n") == 5 and "miss" not in said
    _, said = await yard.build(text, {**CONTEXT, "dir/c.txt": "changed"})
    assert " ---> Cache miss: dir/c.txt changed\n" in said
    _, said = await yard.build(text, CONTEXT, build_args={"V": "2"})
    assert " ---> Cache miss: build argument V changed\n" in said and said.count("Using cache") == 2
    await yard.build(text, CONTEXT)
    _, said = await yard.build(text.replace("E=1", "E=2"), CONTEXT)
    assert " ---> Cache miss: instruction changed, it was ENV E=1\n" in said and said.count("miss") == 1
    _, said = await yard.build(text.replace("/y", "/z"), CONTEXT)
    assert " ---> Cache miss: command changed\n" in said
    await yard.base_image("busybox", {**BASE, "new": "1"}, Env=["PATH=/bin"])
    _, said = await yard.build(text, CONTEXT)
    assert " ---> Cache miss: base image changed\n" in said and said.count("miss") == 1


async def test_cache_says_why_under_another_name(yard: Yard) -> None:
    """The same Dockerfile was built under another tag: that tells something; another Dockerfile on the same base tells nothing."""
    text = "FROM busybox\nARG V=1\nRUN touch /x $V\nRUN touch /y\n"
    await yard.build(text, tags=["one:latest"])
    _, said = await yard.build(text, tags=["two:latest"], build_args={"V": "2"})
    assert " ---> Cache miss: build argument V changed\n" in said and said.count("miss") == 1
    _, said = await yard.build("FROM busybox\nRUN touch /z\n", tags=["three:latest"])
    assert "miss" not in said


async def test_times_do_not_count(yard: Yard) -> None:
    """A file that was only touched comes from the cache."""
    files = {"f": "same"}
    text = "FROM busybox\nCOPY f /f\n"
    first, _ = await yard.build(text, body=tar({"Dockerfile": text, **files}, mtime=1))
    second, said = await yard.build(text, body=tar({"Dockerfile": text, **files}, mtime=2))

    assert first == second and "Using cache" in said


async def test_no_cache_and_a_label_after(yard: Yard) -> None:
    """--no-cache runs everything; a changed LABEL lets RUN come from the cache all the same."""
    await yard.build("FROM busybox\nLABEL a=1\nRUN touch /x\n")
    _, said = await yard.build("FROM busybox\nLABEL a=2\nRUN touch /x\n")
    assert yard.runner.ran == ["touch /x"] and said.count("Using cache") == 1
    _, said = await yard.build("FROM busybox\nLABEL a=2\nRUN touch /x\n", no_cache=True)
    assert yard.runner.ran == ["touch /x"] * 2 and "cache" not in said.lower()


async def test_the_cache_survives_a_restart(yard: Yard) -> None:
    """Another builder on the same root, as after kill -9."""
    text = "FROM busybox\nCOPY a.txt /\nRUN touch /x\n"
    first, _ = await yard.build(text, CONTEXT)
    yard.builder = type(yard.builder)(yard.rooms, runner=yard.runner)
    second, said = await yard.build(text, CONTEXT)

    assert first == second and said.count("Using cache") == 2


async def test_cache_from_an_image(yard: Yard) -> None:
    """With an empty cache the history and layers of a named image stand in for it."""
    text = "FROM busybox\nCOPY a.txt /\nRUN touch /x\nENV A=1\n"
    first, _ = await yard.build(text, CONTEXT)
    with yard.catalogue.transaction() as connection:
        connection.execute("DELETE FROM build_cache")
    second, said = await yard.build(text, CONTEXT, cache_from=("app", "missing"))

    assert said.count("Using cache") == 3 and first == second and yard.runner.ran == ["touch /x"]


async def test_failing_run(yard: Yard) -> None:
    """Its code and dockerd's words; the place in the stream; finished steps stay in the cache."""
    messages: list[dict[str, Any]] = []
    with pytest.raises(RunFailed) as raised:
        await yard.build("FROM busybox\nRUN touch /a\nRUN fail 7\nRUN touch /b\n", messages=messages)
    said = "".join(message.get("stream", "") for message in messages)

    assert (raised.value.message, raised.value.code) == (
        "The command '/bin/sh -c fail 7' returned a non-zero code: 7",
        7,
    )
    assert said.endswith("Dockerfile:3: RUN fail 7\n") and "touch /b" not in said
    assert yard.images.count() == 1
    _, said = await yard.build("FROM busybox\nRUN touch /a\nRUN touch /b\n")
    assert said.count("Using cache") == 1


async def test_cancelled_builds_leave_nothing(yard: Yard) -> None:
    """The running step is cancelled with the client, and only then."""
    building = asyncio.create_task(yard.build("FROM busybox\nRUN wait\n"))
    async with asyncio.timeout(20):
        await yard.runner.waiting.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building

    assert yard.runner.cancelled == 1 and yard.images.count() == 1 and yard.leftovers() == []


async def test_an_image_that_is_copied_from_may_be_removed_meanwhile(yard: Yard) -> None:
    """The build has its layers from the beginning."""
    other = await yard.base_image("other", {"only-here": "of another image"})
    text = "FROM busybox\nRUN wait\nCOPY --from=other /only-here /y\n"
    building = asyncio.create_task(yard.build(text))
    await yard.runner.waiting.wait()
    yard.images.remove(other)
    await yard.rooms.garbage.sweep()
    yard.runner.go_on.set()
    image_id, _ = await building

    assert await yard.content(image_id, "y") == b"of another image"


async def test_an_image_has_its_name_before_it_is_told_of(yard: Yard) -> None:
    """A client that reads slowly keeps nobody from removing what has no name."""
    named = []

    async def body() -> AsyncIterator[bytes]:
        yield tar({"Dockerfile": "FROM busybox\nENV A=1\n"})

    async def send(*messages: dict[str, Any]) -> None:
        if any("Successfully built" in message.get("stream", "") for message in messages):
            named.append(yard.images.find_name(Reference.parse("app:1")))

    from ketchd.engine.build import BuildRequest

    image_id = await yard.builder.build(BuildRequest(tags=(Reference.parse("app:1"),)), body(), send)

    assert named == [image_id]


async def test_a_cache_mount_that_nobody_owns_goes_with_the_next_builder(yard: Yard) -> None:
    """However deep it is: a kill between making and recording one left it."""
    stray = yard.base / "cachemounts" / "stray"
    stray.mkdir(parents=True)
    deepen(stray, 3000, "d" * 200)
    Builder(yard.rooms)
    assert not stray.exists()
    await yard.rooms.trash.emptied()
    assert list((yard.base / "trash").iterdir()) == []


async def test_a_client_that_is_gone_ends_its_build(yard: Yard) -> None:
    """Sending fails: the running step is cancelled, the connection's fault is raised."""

    async def body() -> AsyncIterator[bytes]:
        yield tar({"Dockerfile": "FROM busybox\nRUN wait\n"})

    async def send(*messages: dict[str, Any]) -> None:
        await yard.runner.waiting.wait()
        raise ConnectionResetError("gone")

    from ketchd.engine.build import BuildRequest

    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(20):
            await yard.builder.build(BuildRequest(), body(), send)
    assert yard.runner.cancelled == 1


async def test_equal_steps_of_two_builds_run_once(yard: Yard) -> None:
    """Two clients ask for the same: one runs it, both have it."""
    text = "FROM busybox\nRUN wait\n"
    builds = [asyncio.create_task(yard.build(text, tags=(f"app:{at}",))) for at in range(2)]
    async with asyncio.timeout(20):
        await yard.runner.waiting.wait()
        yard.runner.go_on.set()
        results = [await build for build in builds]

    assert yard.runner.ran == ["wait"] and results[0][0] == results[1][0]


async def test_a_locked_cache_mount_is_one_steps_at_a_time(yard: Yard) -> None:
    """Whichever builds the steps belong to."""
    text = "FROM busybox\nRUN --mount=type=cache,target=/c,sharing=locked --mount=type=cache,target=/again,id=/c,sharing=locked {}\n"
    first = asyncio.create_task(yard.build(text.format("wait"), tags=("app:0",)))
    await yard.runner.waiting.wait()
    second = asyncio.create_task(yard.build(text.format("touch /c/x"), tags=("app:1",)))
    await asyncio.wait({second}, timeout=0.5)
    assert yard.runner.ran == ["wait"]
    yard.runner.go_on.set()
    await first
    await second

    assert yard.runner.ran == ["wait", "touch /c/x"]


async def test_a_shared_step_has_the_context_of_who_began_it(yard: Yard) -> None:
    """Its build is cancelled, the other one goes on with the step."""
    text = "FROM busybox\nRUN --mount=type=bind,source=a.txt,target=/a wait\n"
    first = asyncio.create_task(yard.build(text, CONTEXT, tags=("app:0",)))
    await yard.runner.waiting.wait()
    second = asyncio.create_task(yard.build(text, CONTEXT, tags=("app:1",)))
    flights = yard.builder._shop.flights._flights
    async with asyncio.timeout(20):
        while not flights or next(iter(flights.values())).waiting < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    stage = set(yard.leftovers())
    first.cancel()
    await asyncio.wait({first}, timeout=0.3)
    assert set(yard.leftovers()) == stage  # the context's tar and the lease among it
    yard.runner.go_on.set()

    image_id, _ = await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert yard.images.get(image_id).repo_tags == ["app:1"] and yard.runner.ran == ["wait"]


async def test_a_layer_that_is_made_again_while_it_is_removed(yard: Yard) -> None:
    """The build has it from before it is published, whatever waits to remove it."""
    text = "FROM busybox\nWORKDIR /same\n"
    old, _ = await yard.build(text)
    layer = yard.images.get(old).layers[-1]
    async with yard.layers.holding([layer]):
        building = asyncio.create_task(yard.build(text, no_cache=True, tags=("new",)))
        async with asyncio.timeout(20):
            while not yard.layers._lock(layer)._waiters:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yard.images.remove(old)
        with yard.catalogue.transaction() as connection:
            connection.execute("DELETE FROM build_cache")
        sweeping = asyncio.create_task(yard.rooms.garbage.sweep())
        await asyncio.sleep(0)
    await sweeping
    image_id, _ = await building

    assert yard.images.get(image_id).layers[-1] == layer and await yard.layers.verify(layer)


async def test_the_queue_holds_a_third_build(yard: Yard) -> None:
    """Two at once; the third says that it waits."""
    messages: list[dict[str, Any]] = []
    first = [asyncio.create_task(yard.build(f"FROM busybox\nRUN wait {at}\n")) for at in range(2)]
    async with asyncio.timeout(20):
        while len(yard.runner.ran) < 2:  # noqa: ASYNC110 (both have begun)
            await asyncio.sleep(0.01)
        third = asyncio.create_task(yard.build("FROM busybox\n", messages=messages))
        while not messages:  # noqa: ASYNC110 (any message, whoever sends it)
            await asyncio.sleep(0)
        assert messages == [{"stream": "Build queued: 1 ahead of it\n"}]
        yard.runner.go_on.set()
        await asyncio.gather(*first, third)


async def test_stages_speak_in_order(yard: Yard) -> None:
    """The stream reads as if one stage followed the other, with one image ID a stage."""
    messages: list[dict[str, Any]] = []
    image_id, said = await yard.build(
        "FROM busybox AS a\nRUN say one\nFROM busybox AS b\nRUN say two\nFROM busybox\nCOPY --from=a / /a\n"
        "COPY --from=b / /b\nCMD [\"x\"]\n",
        messages=messages,
    )  # fmt: skip
    steps = [line for line in said.splitlines() if line.startswith("Step")]

    assert [line.split(" : ")[0] for line in steps] == [f"Step {at}/8" for at in range(1, 9)]
    assert said.index("one\n") < said.index("two\n") and "\x1b[91mand on stderr\n\x1b[0m" in said
    assert [message["aux"]["ID"] for message in messages if "aux" in message][-1] == str(image_id)
    assert {"stream": f"Successfully built {image_id.short}\n"} in messages
    assert messages[-1] == {"stream": "Successfully tagged app:latest\n"}


async def test_workdir(yard: Yard) -> None:
    """A directory that is there makes no layer."""
    image_id, _ = await yard.build("FROM busybox\nWORKDIR /usr/lib\nWORKDIR /new/deep\nWORKDIR deeper\n")
    history = yard.config(image_id).history[1:]

    assert [entry.empty_layer for entry in history] == [True, False, False]
    assert list(await yard.layer(image_id, -2)) == ["new", "new/deep"]
    assert yard.config(image_id).run.working_dir == "/new/deep/deeper"


async def test_reproducible(yard: Yard) -> None:
    """With SOURCE_DATE_EPOCH the same image on any machine: ID and all."""
    text = "FROM busybox\nWORKDIR /w\nCOPY a.txt /n/\nENV A=1\n"
    first, _ = await yard.build(text, CONTEXT, epoch=1000)
    with tempfile.TemporaryDirectory(prefix="ketch-build-") as directory:
        async with yard_at(Path(directory), yard.layers.kind) as other:
            await other.base_image("busybox", BASE, Cmd=["sh"], Env=["PATH=/bin"])
            second, _ = await other.build(text, CONTEXT, epoch=1000)

    assert first == second and yard.config(first).created == "1970-01-01T00:16:40Z"


async def test_a_source_date_is_no_part_of_a_key(yard: Yard) -> None:
    """Builds of any epoch have the steps from the cache, and their own times in the image's own layers; the base's stay."""
    text = "FROM busybox AS one\nRUN touch /x\nFROM busybox\nCOPY --from=one /x /y\nRUN touch /z\n"
    plain, _ = await yard.build(text)
    ids = []
    for epoch in (1000, 2000, 1000, 9_999_999_999):
        ids.append((await yard.build(text, epoch=epoch))[0])
        assert yard.runner.ran == ["touch /x", "touch /z"]
        image = yard.images.get(ids[-1])
        assert image.layers[:-2] == yard.images.get(plain).layers[:-2]
        times = [entry.mtime for at in (-1, -2) for entry in (await yard.layer(ids[-1], at)).values()]
        assert max(times) == epoch if epoch < 3000 else image.layers == yard.images.get(plain).layers
    assert ids[0] == ids[2] and len({plain, *ids}) == 4
    assert yard.config(ids[-1]).created == "2286-11-20T17:46:39Z"
    assert (await yard.build("FROM busybox\n", epoch=5))[0] == yard.images.resolve("busybox")


async def test_onbuild(yard: Yard) -> None:
    """Triggers run in the child, after FROM."""
    await yard.build("FROM busybox\nONBUILD COPY a.txt /t/\nONBUILD RUN touch /x\n", tags=("parent",))
    image_id, said = await yard.build("FROM parent\nENV A=1\n", CONTEXT)

    assert "# Executing 2 build triggers\n" in said and "Step 2/2" in said
    assert yard.config(image_id).run.on_build == () and list(await yard.layer(image_id, -2)) == [
        "t",
        "t/a.txt",
    ]


async def test_onbuild_of_a_stage(yard: Yard) -> None:
    """A stage that stands on another carries out its triggers, and has none of its own from them."""
    text = "FROM busybox AS a\nONBUILD COPY a.txt /t/\nONBUILD ENV A=1\nFROM a AS b\nRUN touch /x\nFROM b\nENV B=2\n"
    image_id, said = await yard.build(text, CONTEXT)

    assert said.count("# Executing 2 build triggers\n") == 1
    config = yard.config(image_id).run
    assert config.on_build == () and config.env[-2:] == ("A=1", "B=2")
    assert list(await yard.layer(image_id, -2)) == ["t", "t/a.txt"]


async def test_run_mounts(yard: Yard) -> None:
    """Binds are private copies, caches stay, optional secrets are left out, required ones are refused."""
    text = (
        "FROM busybox AS other\nFROM busybox\nRUN --mount=type=bind,source=dir,target=/src --mount=type=bind,from=other,src=/file,dst=/f "
        "--mount=type=cache,target=/c,mode=0700 --mount=type=tmpfs,target=/t,size=1m --mount=type=secret,id=s true\n"
    )
    await yard.build(text, CONTEXT)
    plans = list(yard.runner.mounts[-1])

    assert [(plan.target, plan.type) for plan in plans] == [
        ("/src", "bind"), ("/f", "bind"), ("/c", "bind"), ("/t", "tmpfs")
    ]  # fmt: skip
    assert "size=1048576" in plans[3].options and "ro" in plans[0].options and "ro" not in plans[2].options
    assert plans[0].source.endswith("/directory") and plans[1].source.endswith("/file/file")
    assert Path(plans[2].source).is_dir() and Path(plans[2].source).stat().st_mode & 0o777 == 0o700
    with pytest.raises(InvalidInput, match="secret s: not found"):
        await yard.build("FROM busybox\nRUN --mount=type=secret,id=s,required true\n")
    _, said = await yard.build(text, {**CONTEXT, "dir/c.txt": "other"})
    assert "Cache miss" in said


async def test_scratch_and_from_alone(yard: Yard) -> None:
    """FROM alone is that image; scratch has no ID; an empty Dockerfile of scratch makes nothing."""
    image_id, _ = await yard.build("FROM busybox\n")
    assert image_id == yard.images.resolve("busybox")
    image_id, said = await yard.build("FROM scratch\nCOPY a.txt /\n", CONTEXT)
    assert " ---> \n" in said and len(yard.images.get(image_id).layers) == 1
    with pytest.raises(InvalidInput, match="No image was generated"):
        await yard.build("FROM scratch\n")


async def test_the_dockerfile(yard: Yard) -> None:
    """Found by path or in lower case; compressed contexts; not found in dockerd's words."""
    image_id, _ = await yard.build("", body=tar({"./deep/File": "FROM busybox\n"}), file="deep/File")
    assert image_id == yard.images.resolve("busybox")
    await yard.build("", body=gzip.compress(tar({"dockerfile": "FROM busybox\n"})))
    with pytest.raises(EngineFailure, match=r"^Cannot locate specified Dockerfile: Dockerfile$"):
        await yard.build("", body=tar({"x": ""}))
    with pytest.raises(InvalidInput, match="invalid tar"):
        await yard.build("", body=b"x" * 2000)


async def test_quiet(yard: Yard) -> None:
    """The ID alone; after a failure all that was kept back."""
    messages: list[dict[str, Any]] = []
    image_id, said = await yard.build("FROM busybox\nRUN say hi\n", quiet=True, messages=messages)
    assert said == f"{image_id}\n" and len(messages) == 1
    with pytest.raises(RunFailed):
        await yard.build("FROM busybox\nRUN fail 1\n", quiet=True, messages=messages)
    assert {"stream": "Step 2/2 : RUN fail 1"} in messages


async def test_a_big_context_is_looked_into_once(yard: Yard) -> None:
    """Thousands of files: by a worker, and the second time not at all; the digests kept are few."""
    files = {f"d{at % 40}/f{at}": f"{at}" for at in range(3000)}
    text = "FROM busybox\nCOPY . /app\n"
    first, _ = await yard.build(text, files)
    assert len(await yard.layer(first)) == 3042
    second, said = await yard.build(text, files)
    assert first == second and "Using cache" in said
    _, said = await yard.build(text, {**files, "d7/f7": "changed"})
    assert "Cache miss: d7/ changed" in said


async def test_pruning(yard: Yard) -> None:
    """Without `all` what images share stays; afterwards a build starts afresh."""
    cache: BuildCache = yard.builder.cache
    await yard.build("FROM busybox\nRUN touch /x\nRUN --mount=type=cache,target=/c touch /y\n")
    usage = cache_usage(yard.rooms, (1, 50))
    assert {row["Type"] for row in usage} == {"regular", "exec.cachemount"} and all(
        "Parent" not in row for row in usage
    )
    gone, _ = await prune_cache(yard.rooms, cache, {"type": ["regular"]}, PruneLimits(), everything=False)
    assert gone == []
    yard.images.remove(yard.images.resolve("app"))
    gone, reclaimed = await prune_cache(yard.rooms, cache, {}, PruneLimits(), everything=True)

    assert len(gone) == 3 and reclaimed > 0 and cache.rows() == []
    assert list((yard.base / "cachemounts").iterdir()) == []
    layers = [Digest(row[0]) for row in yard.catalogue.query("SELECT diff_id FROM layers")]
    assert len(layers) == 1
    with pytest.raises(InvalidInput, match="invalid filter"):
        await prune_cache(yard.rooms, cache, {"nope": ["1"]}, PruneLimits(), everything=False)


async def test_missing_base(yard: Yard) -> None:
    """An image name that is none is refused with its line."""
    with pytest.raises(
        InvalidInput, match=r'failed to parse stage name "bad:x:y": invalid .*\(Dockerfile:1: FROM bad:x:y\)'
    ):
        await yard.build("FROM bad:x:y\n")
