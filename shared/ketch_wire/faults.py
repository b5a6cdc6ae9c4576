"""Faults, named by what the caller can do about them; one HTTP status each.

A message is lower case, without a full stop, and says what failed, on which thing, why.
Raised everywhere below the API; translated once, in `ketchd.api.faultmap`.
"""

from __future__ import annotations


class Fault(Exception):
    """Base of every fault a user may see. `status` is the Engine API's HTTP status."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(Fault):
    """The request is wrong: change it."""

    status = 400


class Unauthorized(Fault):
    """Credentials are missing or wrong: log in."""

    status = 401


class Forbidden(Fault):
    """Not allowed, whoever asks."""

    status = 403


class NotFound(Fault):
    """The named thing is not there."""

    status = 404


class Conflict(Fault):
    """The state of the thing forbids it now: change the state first."""

    status = 409


class NotModified(Fault):
    """The thing already is as asked (304, no body)."""

    status = 304


class Unsupported(Fault):
    """This engine does not do that."""

    status = 501


class Unavailable(Fault):
    """Not now: try again later."""

    status = 503


class EngineFailure(Fault):
    """The engine or the host failed; the request was right."""

    status = 500
