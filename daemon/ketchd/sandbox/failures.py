"""Why a process could not be started, with runc's wording and dockerd's codes."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INIT, PLAIN = "init", "plain"


class LaunchError(Exception):
    """The start failed.

    kind: `init` when dockerd puts runc's prefix before the message, `plain` when not. code: the exit code that dockerd
    records (126, 127, 128). status: of the HTTP answer.
    """

    def __init__(self, message: str, *, code: int = 128, status: int = 500, kind: str = INIT) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.kind = kind

    def to_wire(self) -> dict[str, Any]:
        """As a message."""
        return {"kind": self.kind, "code": self.code, "status": self.status, "message": self.message}


def reason(error: OSError) -> str:
    """The kernel's reason as Go spells it: lower case."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def not_executable(error: OSError, message: str) -> LaunchError:
    """A failure whose code depends on errno, as a shell would say it."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return LaunchError(message, code=127, status=400)
    if error.errno in (errno.EACCES, errno.EISDIR, errno.EPERM):
        return LaunchError(message, code=126, status=400)
    return LaunchError(message)


def as_launch_error(error: BaseException, step: str) -> LaunchError:
    """Whatever happened during `step`, as one LaunchError."""
    if isinstance(error, LaunchError):
        return error
    if isinstance(error, OSError):
        about = f"{error.filename}: " if error.filename else ""
        return LaunchError(f"{step}: {about}{reason(error)}")
    return LaunchError(f"{step}: {type(error).__name__}: {error}")
