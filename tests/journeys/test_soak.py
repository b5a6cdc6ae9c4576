"""Two minutes of storm: hundreds of containers at random while ketchd is killed again and again. `./dev soak` runs longer."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import needs_root
from soak.storm import Storm


@needs_root
@pytest.mark.root
@pytest.mark.slow
def test_nothing_is_left_after_a_storm() -> None:
    base = Path(tempfile.mkdtemp(prefix="ketch-soak-"))
    seconds = float(os.environ.get("KETCH_SOAK_SECONDS", "90"))
    try:
        storm = Storm(base, seed=20260101, workers=4)
        assert storm.run(seconds) == []
        assert storm.machine.leftovers() == []
    finally:
        shutil.rmtree(base, ignore_errors=True)
