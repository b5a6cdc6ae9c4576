"""Finding the program: argv[0] along the container's own PATH, seen from its working directory and its user.

Source: Go's exec.LookPath, whose messages users know.
"""

from __future__ import annotations

import errno
import os
import stat

from ketchd.sandbox.failures import LaunchError, not_executable, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def find_program(name: str, path: str) -> str:
    """The path to execute. path: the value of PATH. Raises LaunchError: 127 not there, 126 not executable."""
    if "/" in name:
        error = _why_not(name)
        if error is None:
            return name
        raise not_executable(error, f"exec: {_quoted(name)}: {_told(error, name)}")
    for directory in path.split(":") if path else []:
        # An empty element means the working directory; Go refuses to run what it finds through a relative one.
        candidate = os.path.normpath(os.path.join(directory or ".", name))
        if _why_not(candidate) is None:
            if candidate.startswith("/"):
                return candidate
            raise LaunchError(
                f"exec: {_quoted(name)}: cannot run executable found relative to current directory",
                code=126,
                status=400,
            )
    raise LaunchError(f"exec: {_quoted(name)}: executable file not found in $PATH", code=127, status=400)


def _why_not(path: str) -> OSError | None:
    try:
        info = os.stat(path)
    except OSError as error:
        return error
    if stat.S_ISDIR(info.st_mode):
        return OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not os.access(path, os.X_OK, effective_ids=True):
        return OSError(errno.EACCES, os.strerror(errno.EACCES), path)
    return None


def _told(error: OSError, name: str) -> str:
    return f"stat {name}: {reason(error)}" if error.errno in (errno.ENOENT, errno.ENOTDIR) else reason(error)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def with_home(env: Sequence[str], home: str) -> list[str]:
    """`env` with HOME from the passwd file when it has none."""
    kept = [entry for entry in env if entry != "HOME="]
    if any(entry.startswith("HOME=") for entry in kept):
        return kept
    return [*kept, f"HOME={home or '/'}"]


def value_of(env: Sequence[str], name: str) -> str:
    """The last value of `name` in `env`, or ""."""
    for entry in reversed(env):
        if entry.startswith(name + "="):
            return entry[len(name) + 1 :]
    return ""
