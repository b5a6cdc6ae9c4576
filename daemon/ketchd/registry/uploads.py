"""An upload to a registry as a state machine: what to send next, given what was answered. Sans-IO.

Source: distribution-spec "Push": monolithic (POST then PUT) and chunked (POST, PATCHes, PUT), mount, and asking an
interrupted upload for its range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import quote, urlsplit

from ketch_wire.faults import EngineFailure
from ketchd.model.digest import Digest
from ketchd.registry.endpoints import follow

CHUNK = 64 * 1024 * 1024
_RANGE = re.compile(r"(?:bytes[= ])?(\d{1,18})-(\d{1,18})")


class Step(Enum):
    """What is to be sent next."""

    BEGIN = "begin"
    PATCH = "patch"
    PUT = "put"
    ASK = "ask"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Send:
    """One request: bytes [start, stop) of the blob are its body."""

    step: Step
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    start: int = 0
    stop: int = 0


class Upload:
    """One blob on its way. `next` says what to send; `answer` or `broken` what came of it.

    Up to `CHUNK` bytes go in one PUT; more in PATCHes of that size, so that a registry which keeps only whole requests
    loses no more than one. mounted: the registry had the blob in `source` and took it from there.
    """

    def __init__(
        self, base: str, path: str, digest: Digest, size: int, *, source: str = "", chunk: int = CHUNK
    ) -> None:
        self._root = f"{base}/{path}/blobs/uploads/"
        self._digest = digest
        self._size = size
        self._source = source
        self._chunk = chunk
        self._location = ""
        self._sent = 0
        self._step = Step.BEGIN
        self.mounted = False

    @property
    def sent(self) -> int:
        """Bytes that the registry is known to have."""
        return self._sent

    @property
    def location(self) -> str:
        """Where the upload under way lives; empty when there is none."""
        return self._location

    @property
    def is_done(self) -> bool:
        """Whether the registry has the blob."""
        return self._step is Step.DONE

    def next(self) -> Send:
        """The request to make now."""
        if self._step is Step.BEGIN:
            query = (
                f"?mount={quote(str(self._digest), safe='')}&from={quote(self._source)}"
                if self._source
                else ""
            )
            return Send(Step.BEGIN, "POST", self._root + query, {"Content-Length": "0"})
        if self._step is Step.ASK:
            return Send(Step.ASK, "GET", self._location)
        octets = {"Content-Type": "application/octet-stream"}
        if self._sent + self._chunk < self._size:
            stop = self._sent + self._chunk
            ranged = {**octets, "Content-Range": f"{self._sent}-{stop - 1}"}
            return Send(Step.PATCH, "PATCH", self._location, ranged, self._sent, stop)
        if self._sent:
            octets["Content-Range"] = f"{self._sent}-{max(self._size - 1, self._sent)}"
        url = f"{self._location}{'&' if urlsplit(self._location).query else '?'}digest={quote(str(self._digest), safe='')}"
        return Send(Step.PUT, "PUT", url, octets, self._sent, self._size)

    def answer(self, send: Send, status: int, headers: Mapping[str, str]) -> bool:
        """Take an answer in; False when its status is none that moves the upload on: then it is the caller's fault to tell.

        Raises EngineFailure when the answer is against the protocol.
        """
        if send.step is Step.BEGIN:
            return self._begun(send, status, headers)
        if send.step is Step.ASK:
            return self._told(send, status, headers)
        if (status == 416 and send.step is Step.PATCH) or (status == 416 and send.start):
            self._step = Step.ASK
            return True
        if send.step is Step.PATCH and status in (202, 204):
            self._relocate(send, headers)
            self._sent = min(_held(headers, send.stop), self._size)
            if self._sent < send.start:
                raise EngineFailure("the registry lost bytes of an upload that it had confirmed")
            self._step = Step.PUT
            return True
        if send.step is Step.PUT and status in (201, 204):
            self._step = Step.DONE
            return True
        return False

    def broken(self) -> None:
        """The connection broke while something was sent: ask what arrived, or begin."""
        self._step = Step.ASK if self._location else Step.BEGIN

    def restart(self) -> None:
        """Forget the upload under way and begin anew, without a mount."""
        self._location, self._sent, self._source, self._step = "", 0, "", Step.BEGIN

    def _begun(self, send: Send, status: int, headers: Mapping[str, str]) -> bool:
        if status == 201 and self._source:
            self._step, self.mounted = Step.DONE, True
            return True
        if status != 202:
            return False
        self._relocate(send, headers)
        least = headers.get("OCI-Chunk-Min-Length", "")
        if least.isascii() and least.isdigit() and len(least) < 15:
            self._chunk = max(self._chunk, int(least))
        self._sent, self._step = 0, Step.PUT
        return True

    def _told(self, send: Send, status: int, headers: Mapping[str, str]) -> bool:
        if status in (404, 410):
            self.restart()
            return True
        if status not in (200, 202, 204):
            return False
        if headers.get("Location"):
            self._relocate(send, headers)
        self._sent = _held(headers, 0)
        if self._sent > self._size:
            self.restart()
            return True
        self._step = Step.PUT
        return True

    def _relocate(self, send: Send, headers: Mapping[str, str]) -> None:
        location = headers.get("Location")
        if not location:
            raise EngineFailure("the registry accepts an upload but does not say where")
        self._location = follow(send.url, location)


def _held(headers: Mapping[str, str], otherwise: int) -> int:
    """How many bytes the registry has. `0-0` is what an empty upload says, and one of a single byte: it is sent again."""
    match = _RANGE.fullmatch(headers.get("Range", "").strip())
    if match is None:
        return otherwise
    last = int(match[2])
    return last + 1 if last else 0
