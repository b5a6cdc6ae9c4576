"""What RUN --mount leaves in a writable layer, and what is taken away from it."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from ketchd.build import runmounts
from ketchd.build.cache import BuildCache
from ketchd.build.lexer import Place
from ketchd.build.ops import MountOp
from ketchd.build.runmounts import RunMounts, strip_mount_points
from ketchd.catalogue.database import Catalogue


def test_what_was_made_to_mount_on_goes(tmp_path: Path) -> None:
    """Empty directories and an empty file, with the parents that were made for them; nothing that holds something."""
    upper = tmp_path / "upper"
    for name in ("a/b/c", "kept/stub"):
        (upper / name).mkdir(parents=True)
    (upper / "kept/file").write_text("x")
    (upper / "empty").touch()
    (upper / "full").write_text("x")

    strip_mount_points(str(upper), ["/a/b/c", "/kept/stub", "/empty", "/full", "/not/there"])

    assert sorted(str(path.relative_to(upper)) for path in upper.rglob("*")) == ["full", "kept", "kept/file"]


@pytest.mark.parametrize("target", ["/link/stub", "/link/file", "/d/link/stub", "/link", "/d/up/victim/stub"])
def test_cve_2024_23652_no_link_leads_the_cleaner_out(tmp_path: Path, target: str) -> None:
    """A step that puts a link in a stub's way has nothing of the host removed, though it is as empty as a stub."""
    upper, victim = tmp_path / "upper", tmp_path / "victim"
    (victim / "stub").mkdir(parents=True)
    (victim / "file").touch()
    (upper / "d").mkdir(parents=True)
    (upper / "link").symlink_to(victim)
    (upper / "d/link").symlink_to("../../victim")
    (upper / "d/up").symlink_to("../..")

    strip_mount_points(str(upper), [target])

    assert sorted(path.name for path in victim.iterdir()) == ["file", "stub"]
    assert (upper / "link").is_symlink() and (upper / "d/link").is_symlink()


def test_a_cache_mount_is_free_though_its_size_was_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that is cancelled while the files of its cache are counted: nobody uses it any more, and it can be pruned."""
    counting, go_on = threading.Event(), threading.Event()

    def count(path: Path) -> int:
        counting.set()
        go_on.wait()
        return 0

    async def scenario() -> None:
        catalogue = Catalogue(tmp_path / "catalogue.sqlite")
        cache = BuildCache(catalogue, tmp_path)
        mounts = RunMounts(cache, tmp_path, lambda mount, directory: asyncio.sleep(0))
        op = MountOp(type="cache", target="/c", id="c", uid=os.getuid(), gid=os.getgid())

        async def step() -> None:
            async with mounts.made([op], "", "sh", Place("Dockerfile", 1, "RUN x")):
                pass

        running = asyncio.create_task(step())
        await asyncio.to_thread(counting.wait)
        running.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        rows = cache.rows()
        assert cache.forget(rows, everything=False) == rows != []
        catalogue.close()

    monkeypatch.setattr(runmounts, "disk_usage", count)
    asyncio.run(scenario())
