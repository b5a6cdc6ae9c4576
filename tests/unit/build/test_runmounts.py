"""What RUN --mount leaves in a writable layer, and what is taken away from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ketchd.build.runmounts import strip_mount_points


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
