"""Waiting for what a program or the kernel is about to do, and nobody announces."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object], *, seconds: float = 60, told: Callable[[], str] = str) -> None:
    """Wait until `holds`. Raises AssertionError, with what `told` says then, after as long as nothing here takes."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it does not come about\n{told()}"
        time.sleep(0.02)
