"""Directories in each other, deeper than a path can name or a stack can hold, as a container may make them."""

from __future__ import annotations

import os
from pathlib import Path


def deepen(top: Path, levels: int = 3000, name: str = "d") -> None:
    """`levels` directories below `top`, each in the last, all called `name`; in the last a `file` with `text` in it."""
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=here)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        file = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=here)
        os.write(file, b"text")
        os.close(file)
    finally:
        os.close(here)


def depth(top: Path, name: str = "d") -> tuple[int, str]:
    """(how many directories called `name` lie in each other below `top`, what is in the `file` of the last)."""
    here, levels = os.open(top, os.O_RDONLY | os.O_DIRECTORY), 0
    try:
        while True:
            try:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                break
            os.close(here)
            here, levels = inner, levels + 1
        try:
            file = os.open("file", os.O_RDONLY, dir_fd=here)
        except FileNotFoundError:
            return levels, ""
        try:
            return levels, os.read(file, 100).decode()
        finally:
            os.close(file)
    finally:
        os.close(here)
