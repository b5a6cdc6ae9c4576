"""Environment variables and labels: as options and in files. Reads files and the client's own environment.

Source: docker/cli opts/env.go, opts/file.go (env files), opts/opts.go (labels).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ketch.faults import why

_SPACES = " \t"


def check_variable(text: str) -> str:
    """`KEY=value`; a bare KEY takes the client's own value if it has one. Raises ValueError."""
    name, assigned, _ = text.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {text}")
    if not assigned and name in os.environ:
        return f"{name}={os.environ[name]}"
    return text


def check_label(text: str) -> str:
    """`key[=value]`. Raises ValueError."""
    name = text.partition("=")[0].lstrip(_SPACES)
    if not name:
        raise ValueError(f"invalid label '{text}': empty name")
    if set(name) & set(_SPACES):
        raise ValueError(f"label '{text}' contains whitespaces")
    return text


def read_variables(files: Iterable[str], options: Iterable[str]) -> list[str]:
    """The lines of env files, then the options. A bare KEY that the client does not have is left out of a file's.

    Raises ValueError.
    """
    found = []
    for path in files:
        for line in _lines(path):
            if "=" not in line:
                if line not in os.environ:
                    continue
                line = f"{line}={os.environ[line]}"
            found.append(line)
    return [*found, *options]


def read_labels(files: Iterable[str], options: Iterable[str]) -> dict[str, str]:
    """The labels of files, where a bare name is none, then those of options. Raises ValueError."""
    pairs = [line for path in files for line in _lines(path) if "=" in line]
    return pair_map([*pairs, *options])


def pair_map(pairs: Iterable[str]) -> dict[str, str]:
    """`key=value` texts as a map; without `=` the value is empty."""
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except IsADirectoryError as error:
        raise ValueError(f"invalid env file ({path}): read {path}: is a directory") from error
    except OSError as error:
        raise ValueError(f"open {path}: {why(error)}") from error
    found = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        raw = raw.removesuffix(b"\r")
        try:
            line = raw.decode().lstrip()
        except UnicodeDecodeError:
            raise ValueError(
                f"invalid env file ({path}): invalid utf8 bytes at line {number}: {raw!r}"
            ) from None
        if not line or line.startswith("#"):
            continue
        name, assigned, _ = line.partition("=")
        if not name:
            raise ValueError(f"invalid env file ({path}): no variable name on line '{line}'")
        if set(name.strip() if not assigned else name) & set(_SPACES):
            raise ValueError(f"invalid env file ({path}): variable '{name}' contains whitespaces")
        found.append(line if assigned else name.strip())
    return found
