"""Changes of a file that a running container has mounted (hosts, hostname, resolv.conf): in place, for it would not see another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Give the file what `change` makes of its text. Whoever reads meanwhile finds it never empty. Raises OSError.

    On a full disk nothing is lost that is there: what has room already is written over.
    """
    with path.open("r+b") as file:
        before = file.read()
        after = change(before.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        if after != before:
            file.seek(0)
            file.write(after)
            file.truncate()
