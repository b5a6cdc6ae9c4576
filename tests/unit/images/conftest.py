"""Rooms for the image journeys, one set a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ketch_testing.rooms import rooms_below
from ketchd.engine.rooms import Rooms


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    async with rooms_below(tmp_path / "data") as made:
        yield made
