"""Ways down a tree that somebody is at work in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ketchd.layers.descent import remove_at


@pytest.mark.parametrize(
    ("name", "call"),
    [("file", "stat"), ("file", "unlink"), ("inner", "stat"), ("inner", "open"), ("inner", "rmdir"), ("top", "rmdir")],
)  # fmt: skip
def test_what_goes_meanwhile_is_removed_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    """`cp` onto a directory in which the container deletes its own files: something goes just before it is looked at or removed."""
    for directory in ("top/inner", "top/other"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / f"{directory[4:]}s").touch()
    (tmp_path / "top/file").touch()
    plain: Any = getattr(os, call)

    def racing(path: Any, *arguments: Any, **more: Any) -> Any:
        if path == name:
            subprocess.run(["rm", "-rf", *tmp_path.rglob(name)], check=True)
        return plain(path, *arguments, **more)

    parent = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(os, call, racing)
    try:
        remove_at("top", parent)
    finally:
        monkeypatch.undo()
        os.close(parent)
    assert list(tmp_path.iterdir()) == []
