"""A registry's error answers, in the words in which dockerd repeats them. Pure.

Source: distribution-spec "Error Codes"; distribution's registry/client/errors.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus

from ketch_wire.faults import Fault
from ketchd.registry.challenge import Challenge
from ketchd.registry.sayings import one_line, said

BODY_LIMIT = 64 * 1024
_SHOWN = 1000
_MESSAGES = {
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
}
_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}


class Refused(Fault):
    """A registry answered with an error.

    code: as registries name it (`MANIFEST_UNKNOWN`), empty when it named none. http_status: what it answered with.
    retry_after: seconds it asks to wait, or None. is_told: it said so in words of its own, the status is not all there is.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        http_status: int,
        retry_after: float | None = None,
        is_told: bool = False,
    ) -> None:
        super().__init__(message)
        self.code_name = code
        self.http_status = http_status
        self.retry_after = retry_after
        self.is_told = is_told

    @property
    def is_denied(self) -> bool:
        """Whether other credentials could change the answer."""
        return self.http_status in (401, 403) or self.code_name in ("UNAUTHORIZED", "DENIED")


def refusal(
    status: int,
    body: bytes,
    challenges: Iterable[Challenge] = (),
    retry_after: float | None = None,
) -> Refused:
    """The fault for an answer of `status` 400 and more. Only the first of several errors counts."""
    code, message = _from_challenges(status, challenges)
    if not code:
        code, message = _from_body(status, body)
    is_told = bool(code or message)
    if not code and status == HTTPStatus.UNAUTHORIZED:
        code = "UNAUTHORIZED"
    if not code and status == HTTPStatus.TOO_MANY_REQUESTS:
        code, message = "TOOMANYREQUESTS", message or "too many requests"
    if code:
        words = code.lower().replace("_", " ")
        text = f"{words}: {message or _MESSAGES.get(code, words)}"
    elif status >= 500:
        text = f"received unexpected HTTP status: {status} {_phrase(status)}"
    else:
        text = f'error parsing HTTP {status} response body: {_phrase(status).lower()}: "{said(body)}"'
    return Refused(text.rstrip(), code=code, http_status=status, retry_after=retry_after, is_told=is_told)


def _from_challenges(status: int, challenges: Iterable[Challenge]) -> tuple[str, str]:
    """OAuth errors stand in the challenge: Docker Hub says so that a repository is private or absent."""
    if status >= 500:
        return "", ""
    for challenge in challenges:
        if challenge.scheme == "bearer":
            code = {"invalid_token": "UNAUTHORIZED", "insufficient_scope": "DENIED"}.get(
                challenge.parameters.get("error", "")
            )
            if code:
                return code, one_line(challenge.parameters.get("error_description", ""), _SHOWN)
    return "", ""


def _from_body(status: int, body: bytes) -> tuple[str, str]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else document
    if not isinstance(first, dict):
        return "", ""
    code, message = first.get("code"), first.get("message") or first.get("details")
    message = one_line(message, _SHOWN) if isinstance(message, str) else ""
    if isinstance(code, str) and code.replace("_", "").isalnum():
        return code.upper()[:64], message
    if (
        isinstance(first.get("details"), str) and message
    ):  # as token servers say it; the status tells what it means
        return _CODES.get(status, "UNKNOWN"), message
    return "", message


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
