"""Dockerfiles good and bad against golden files: what each line becomes, and the fault with its file, number and line.

`KETCH_WRITE_GOLDEN=1` writes them anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from ketch_wire.faults import Fault
from ketchd.build import instructions, lexer, plan, stages
from ketchd.build.instructions import Instruction
from ketchd.build.stages import Base, Options

GOLDEN = Path(__file__).parents[2] / "golden" / "dockerfiles"
BASES = {
    (name, platform): Base("sha256:" + "a" * 64, ("sha256:" + "b" * 64,))
    for name in ("busybox", "debian:bookworm")
    for platform in ("", "linux/amd64")
}


def render(instruction: Instruction) -> str:
    """One instruction: its line, its class and what is set."""
    values = [
        f"{entry.name}={getattr(instruction, entry.name)!r}"
        for entry in fields(instruction)
        if entry.name not in ("place", "text")
        and getattr(instruction, entry.name) not in ("", (), None, False, 0)
    ]
    return f"{instruction.place.number} {type(instruction).__name__} {' '.join(values)}".rstrip()


def expect(path: Path, text: str) -> None:
    """`text` is what the golden file says."""
    golden = path.with_suffix(".expect")
    if os.environ.get("KETCH_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("good/*.Dockerfile")), ids=lambda path: str(path.stem))
def test_good(path: Path) -> None:
    """Each line is the instruction that the golden file shows."""
    source = lexer.read(path.read_bytes().decode())
    parsed = instructions.parse(source)

    lines = [f"{number} warning {text}" for number, text in source.warnings]
    expect(path, "\n".join([*map(render, parsed), *lines]) + "\n")


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("bad/*.Dockerfile")), ids=lambda path: str(path.stem))
def test_bad(path: Path) -> None:
    """The one-line fault names file, line number and the line."""
    options = Options()
    with pytest.raises(Fault) as raised:
        source = lexer.read(path.read_bytes().decode())
        dockerfile = stages.split(source, instructions.parse(source), options)
        plan.make_graph(dockerfile, options, BASES)

    message = raised.value.message
    assert "\n" not in message
    assert "Dockerfile" in message
    expect(path, message + "\n")
