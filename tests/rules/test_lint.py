"""Formatter, linter, types and import rules are tests, so that one command says all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy", "-p", "ketchd", "-p", "ketch", "-p", "ketch_wire"],
        ["lint-imports"],
    ],
    ids=["format", "lint", "types", "imports"],
)
def test_the_rules_hold(command: list[str]) -> None:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_stay_short() -> None:
    """A module of more than 420 lines has more than one job."""
    long = {
        str(path.relative_to(PROJECT)): lines
        for top in ("daemon", "client", "shared")
        for path in (PROJECT / top).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 420
    }
    assert long == {}


def test_every_module_says_its_job() -> None:
    """The first line of every module of the three packages is a docstring."""
    silent = [
        str(path.relative_to(PROJECT))
        for top in ("daemon", "client", "shared")
        for path in (PROJECT / top).rglob("*.py")
        if path.read_text().strip() and not path.read_text().lstrip().startswith('"""')
    ]
    assert silent == []
