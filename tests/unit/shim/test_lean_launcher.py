"""What the launcher imports is paid for by every container: a list of what must not creep in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

import ketch_wire
import ketchd
from ketchd.kernel import capabilities
from ketchd.sandbox import defaults

ROOTS = [str(Path(package.__path__[0]).parent) for package in (ketchd, ketch_wire, msgpack)]
HEAVY = (
    "asyncio", "aiohttp", "structlog", "typing", "dataclasses", "enum", "re", "socket", "signal", "subprocess", "inspect",
    "json", "logging", "selectors", "pathlib", "contextlib", "threading", "site", "ketch_wire.launch", "ketch_wire.faults",
)  # fmt: skip


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The modules of a launcher that is ready."""
    code = (
        f"import sys; sys.path[:0] = {ROOTS!r}; import ketchd.shim.program; print(chr(10).join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", HEAVY)
def test_it_is_not_there(imported: set[str], name: str) -> None:
    assert name not in imported


def test_everything_of_ours_is_there_before_the_first_fork(imported: set[str]) -> None:
    """A module imported after the fork would be read, compiled and kept by each shim for itself."""
    wanted = {"ketchd.sandbox.init", "ketchd.sandbox.enterroot", "ketchd.kernel.bpf", "ketchd.shim.jsonlog"}

    assert wanted <= imported


def test_capability_names_are_in_the_kernels_order() -> None:
    assert capabilities.NAMES == defaults.ALL_CAPABILITIES
