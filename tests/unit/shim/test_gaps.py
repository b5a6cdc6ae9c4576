"""Gaps in the heap are taken, and what is allocated afterwards lies together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ketchd.shim import gaps

SCRIPT = """
import sys
from ketchd.shim import gaps
size, page = int(sys.argv[1]), 4096
blocks = [bytes(size - sys.getsizeof(b"")) for _ in range(1500)]
del blocks[::7]  # gaps in every page
gaps.close()
new = [bytes(size - sys.getsizeof(b"")) for _ in range(page // size)]
print(len({id(one) // page for one in new}))
"""


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """What was taken is given back."""
    yield
    gaps._kept.clear()


@pytest.mark.parametrize("size", [64, 208, 512, 1024])
def test_what_is_allocated_afterwards_lies_together(size: int) -> None:
    """In an interpreter of its own, as the launcher's: pytest's own gaps are more than a limit is made for."""
    command = [sys.executable, "-I", "-c", SCRIPT, str(size)]
    pages = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert int(pages) <= 3


def test_it_ends_where_blocks_never_come_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another interpreter, another allocator: it takes what its limit allows, and no more."""
    monkeypatch.setattr(gaps, "id", lambda one: 0, raising=False)

    gaps.close()

    assert sum(sys.getsizeof(one) for one in gaps._kept) <= 50 * gaps._LIMIT
