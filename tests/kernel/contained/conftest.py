"""A launcher and shims of one's own for each test, and the proof that nothing stays."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ketch_testing.contained import Contained, contained_here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs root and a static busybox."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="root is needed for namespaces and mounts"))
            elif not Path("/bin/busybox").exists():
                item.add_marker(
                    pytest.mark.skip(reason="/bin/busybox is missing (apt-get install busybox-static)")
                )


@pytest.fixture
async def box() -> AsyncIterator[Contained]:
    """See ketch_testing.contained."""
    async for made in contained_here():
        yield made
