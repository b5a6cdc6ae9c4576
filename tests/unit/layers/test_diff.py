"""A writable layer as a tar while its container runs on."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ketchd.layers import diff
from ketchd.layers.erofs import HEAD


@pytest.mark.parametrize("when", ["listed", "looked at"])
def test_what_goes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """`commit --pause=false` of a program with temporary files: they vanish between being listed, looked at and read."""
    upper = tmp_path / "upper"
    (upper / "directory").mkdir(parents=True)
    for name in ("a", "file", "z"):
        (upper / name).write_text(name)
    plain_stat: Any = os.stat

    def racing(path: Any, **more: Any) -> os.stat_result:
        """The container removes what is just being looked at."""
        info: os.stat_result = plain_stat(path, **more)
        if path == b"file" and (upper / "file").exists():
            (upper / "file").unlink()
        if path == b"directory" and (upper / "directory").is_dir():
            (upper / "directory").rmdir()
            if when == "listed":
                (upper / "directory").write_text("no directory any more")
        if when == "listed" and path == b"file":
            return plain_stat(path, **more)  # type: ignore[no-any-return]
        return info

    monkeypatch.setattr(os, "stat", racing)
    place = {"path": str(tmp_path / "layer"), "kind": "erofs"}
    facts = diff.from_upper({"place": place, "upper": str(upper), "lower": []}, None)  # type: ignore[arg-type]
    monkeypatch.undo()

    content = Path(facts["path"]).read_bytes()[HEAD : HEAD + facts["tar_size"]]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == ["a", "z"]
