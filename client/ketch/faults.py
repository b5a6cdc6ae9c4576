"""What ends a command: one clear line and the exit code that docker would give."""

from __future__ import annotations

from ketch_wire import faults


class CommandFailed(faults.Fault):
    """A command ends here. `code` is the exit code; an empty message prints nothing."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class UsageError(CommandFailed):
    """The command line is wrong; `message` is everything to be printed, hints included."""


class EngineAnswer(CommandFailed):
    """The engine answered with an error status. `reason` is its message without our prefix."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"Error response from daemon: {reason}")
        self.status = status
        self.reason = reason


class EngineAway(CommandFailed):
    """No engine listens, or it went away in the middle of an answer."""


def why(error: OSError) -> str:
    """The kernel's reason in small letters, as docker's lines have it. Pure."""
    return (error.strerror or str(error)).lower()
